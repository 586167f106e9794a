//! Where images come from: registries that want tokens, credential helpers, downloads that break
//! off, several processes at once, the Docker daemon, containers-storage.

use bulla_test_apps::{bulla, image, platform_options};
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg("120")
            .arg(bulla())
            .args(words)
            .env("BULLA_CACHE", self.path("cache"))
            .env("BULLA_STATE", self.path("state"))
            .env("DOCKER_CONFIG", self.path("docker"));
        command
    }

    /// Runs an image in an enclave.
    fn start(&self, words: &[&str]) -> Command {
        let platform = platform_options();
        let mut all = vec!["run", "--quiet"];
        all.extend(platform.iter().map(String::as_str));
        all.extend(words);
        self.command(&all)
    }

    fn docker_config(&self, text: &str) {
        fs::create_dir_all(self.path("docker")).unwrap();
        fs::write(self.path("docker/config.json"), text).unwrap();
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    format!("sha256:{}", &text[..64])
}

/// A registry with one image, `box:1`.
#[derive(Default)]
struct Behaviour {
    /// Tokens are given to this user, and nothing without one.
    user: Option<(&'static str, &'static str)>,
    /// The connection breaks after so many bytes of a blob, unless the request is for the rest.
    breaks_after: Option<usize>,
    /// Instead of breaking, it goes on saying nothing.
    stalls: bool,
    /// A blob that comes with this byte changed.
    damaged: bool,
    /// A blob that says it is this much longer than the manifest does.
    longer: usize,
    /// This many requests for manifests and blobs are answered like this.
    busy: AtomicUsize,
    busy_status: &'static str,
}

struct Registry {
    port: u16,
    /// Requests, as `GET /v2/… RANGE`.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    fn start(behaviour: Behaviour) -> Registry {
        let rootfs = image("busybox").rootfs;
        let layer = Command::new("tar")
            .args(["--sort=name", "--mtime=@0", "-C"])
            .arg(rootfs)
            .args(["-cf", "-", "."])
            .output()
            .unwrap()
            .stdout;
        let layer_digest = sha256(&layer);
        let config = format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{}},\"rootfs\":{{\"type\":\
             \"layers\",\"diff_ids\":[\"{layer_digest}\"]}}}}"
        )
        .into_bytes();
        let config_digest = sha256(&config);
        let manifest = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\
             \"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\
             \"{config_digest}\",\"size\":{}}},\"layers\":[{{\"mediaType\":\
             \"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"{layer_digest}\",\"size\":{}}}]}}",
            config.len(),
            layer.len()
        );
        let mut blobs = HashMap::new();
        blobs.insert(config_digest, config);
        blobs.insert(layer_digest, layer);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::new((behaviour, blobs, manifest.into_bytes(), requests.clone()));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || {
                    let (behaviour, blobs, manifest, requests) = &*shared;
                    let _ = serve(stream, port, behaviour, blobs, manifest, requests);
                });
            }
        });
        Registry { port, requests }
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn name(&self) -> String {
        format!("{}/box:1", self.host())
    }

    fn seen(&self, part: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|line| line.contains(part)).count()
    }
}

fn serve(
    mut stream: TcpStream,
    port: u16,
    behaviour: &Behaviour,
    blobs: &HashMap<String, Vec<u8>>,
    manifest: &[u8],
    requests: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let (mut authorization, mut range) = (String::new(), None);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = value.trim().to_owned(),
            "range" => range = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let path = first.split_whitespace().nth(1).unwrap_or_default();
    let shown = range.clone().unwrap_or_default();
    requests.lock().unwrap().push(format!("{path} {shown}"));
    let mut answer = |status: &str, headers: &str, body: &[u8]| {
        let len = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n{headers}\r\n"
        )?;
        stream.write_all(body)
    };
    if path.starts_with("/token") {
        let (user, password) = behaviour.user.unwrap_or_default();
        let basic = format!("Basic {}", base64(format!("{user}:{password}").as_bytes()));
        return match authorization == basic {
            true => answer("200 OK", "", b"{\"token\":\"a-token\",\"expires_in\":300}"),
            false => answer("401 Unauthorized", "", b"{}"),
        };
    }
    if behaviour.user.is_some() && authorization != "Bearer a-token" {
        let header = format!(
            "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"test\"\r\n"
        );
        return answer("401 Unauthorized", &header, b"{}");
    }
    let busy = |left: usize| left.checked_sub(1);
    let asked = path.contains("/manifests/") || path.contains("/blobs/");
    if asked && behaviour.busy.fetch_update(SeqCst, SeqCst, busy).is_ok() {
        return answer(behaviour.busy_status, "Retry-After: 1\r\n", b"busy");
    }
    if path.contains("/manifests/") {
        let header = "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n";
        return answer("200 OK", header, manifest);
    }
    let Some((_, digest)) = path.rsplit_once("/blobs/") else {
        return answer("200 OK", "", b"{}");
    };
    let Some(blob) = blobs.get(digest) else {
        return answer("404 Not Found", "", b"{}");
    };
    let mut blob = blob.clone();
    if behaviour.damaged {
        let middle = blob.len() / 2;
        blob[middle] ^= 1;
    }
    blob.extend(vec![0; behaviour.longer]);
    let start = range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes="));
    let start = start.and_then(|range| range.split('-').next()?.parse::<usize>().ok());
    match (start, behaviour.breaks_after) {
        (Some(start), _) if start < blob.len() => {
            let total = blob.len();
            let header = format!("Content-Range: bytes {start}-{}/{total}\r\n", total - 1);
            answer("206 Partial Content", &header, &blob[start..])
        }
        (None, Some(limit)) if blob.len() > limit => {
            let total = blob.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")?;
            stream.write_all(&blob[..limit])?;
            if behaviour.stalls {
                // Until the other side gives up.
                let _ = reader.read_line(&mut String::new());
            }
            Ok(())
        }
        _ => answer("200 OK", "", &blob),
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let mut word = [0; 3];
        word[..three.len()].copy_from_slice(three);
        let word = u32::from_be_bytes([0, word[0], word[1], word[2]]);
        for at in 0..4 {
            match at <= three.len() {
                true => out.push(DIGITS[(word >> (18 - 6 * at) & 63) as usize] as char),
                false => out.push('='),
            }
        }
    }
    out
}

/// `bulla run` of a registry's image.
fn run(place: &Place, registry: &Registry) -> Output {
    let host = registry.host();
    let words = [
        "--plain-http",
        &*host,
        &registry.name(),
        "busybox",
        "echo",
        "it runs",
    ];
    place.start(&words).output().unwrap()
}

#[test]
fn a_token_is_asked_for_with_the_password_of_the_configuration() {
    let registry = Registry::start(Behaviour {
        user: Some(("me", "secret")),
        ..Behaviour::default()
    });
    let place = Place::new();
    let output = run(&place, &registry);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(said(&output).contains(&registry.host()), "{output:?}");
    let auth = base64(b"me:wrong");
    let config = |auth: &str| {
        format!(
            "{{\"auths\":{{\"{}\":{{\"auth\":\"{auth}\"}}}}}}",
            registry.host()
        )
    };
    place.docker_config(&config(&auth));
    assert_eq!(run(&place, &registry).status.code(), Some(125));
    place.docker_config(&config(&base64(b"me:secret")));
    let output = run(&place, &registry);
    assert_eq!(output.stdout, b"it runs\n", "{output:?}");
    assert!(registry.seen("/token") >= 3);
    assert!(
        registry.seen("scope=repository%3Abox%3Apull") + registry.seen("scope=repository:box:pull")
            >= 1
    );
}

#[test]
fn credential_helpers_are_asked() {
    let registry = Registry::start(Behaviour {
        user: Some(("me", "secret")),
        ..Behaviour::default()
    });
    let host = registry.host();
    for (name, config) in [
        (
            "one",
            format!("{{\"credHelpers\":{{\"{host}\":\"bulla-test\"}}}}"),
        ),
        ("all", "{\"credsStore\":\"bulla-test\"}".to_owned()),
    ] {
        let place = Place::new();
        place.docker_config(&config);
        let helper = place.path("docker-credential-bulla-test");
        let script = format!(
            "#!/bin/sh\nread server\necho \"$1 $server\" >> {}\n\
             echo '{{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"secret\"}}'\n",
            place.path("asked").display()
        );
        fs::write(&helper, script).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!(
            "{}:{}",
            place.dir.path().display(),
            std::env::var("PATH").unwrap()
        );
        let words = [
            "--plain-http",
            &*host,
            &registry.name(),
            "busybox",
            "echo",
            "it runs",
        ];
        let output = place.start(&words).env("PATH", path).output().unwrap();
        assert_eq!(output.stdout, b"it runs\n", "{name}: {output:?}");
        let asked = fs::read_to_string(place.path("asked")).unwrap();
        assert!(asked.contains(&format!("get {host}")), "{asked}");
        // A helper that is missing is named.
        let other = Place::new();
        other.docker_config(&config);
        let output = run(&other, &registry);
        assert_eq!(output.status.code(), Some(125), "{name}: {output:?}");
    }
}

#[test]
fn a_download_that_breaks_off_is_continued() {
    let registry = Registry::start(Behaviour {
        breaks_after: Some(100_000),
        ..Behaviour::default()
    });
    let place = Place::new();
    let output = run(&place, &registry);
    assert_eq!(output.stdout, b"it runs\n", "{output:?}");
    assert_eq!(registry.seen("bytes=100000-"), 1, "{:?}", registry.requests);
}

#[test]
fn a_download_that_was_killed_is_continued() {
    let place = Place::new();
    let registry = Registry::start(Behaviour::default());
    // What an earlier process left: the beginning.
    let blobs = registry.name();
    let host = registry.host();
    let words = ["pull", "--plain-http", &*host, &*blobs];
    assert!(place.command(&words).output().unwrap().status.success());
    let store = place.path("cache");
    let layer = files(&store)
        .into_iter()
        .filter(|path| path.parent().is_some_and(|dir| dir.ends_with("sha256")))
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let bytes = fs::read(&layer).unwrap();
    let other = Place::new();
    let again = Registry::start(Behaviour::default());
    // Finds out where parts are kept by breaking a download off for good.
    let partial = partial_of(&store, &layer, &other.path("cache"));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, &bytes[..bytes.len() / 3]).unwrap();
    let output = run(&other, &again);
    assert_eq!(output.stdout, b"it runs\n", "{output:?}");
    assert_eq!(again.seen(&format!("bytes={}-", bytes.len() / 3)), 1);
    // A beginning that is another's is not believed: the end has the wrong digest, and all of it is
    // fetched anew.
    let third = Place::new();
    let partial = partial_of(&store, &layer, &third.path("cache"));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, vec![7; bytes.len() / 3]).unwrap();
    let output = run(&third, &again);
    assert_eq!(output.stdout, b"it runs\n", "{output:?}");
}

#[test]
fn a_registry_that_stalls_is_given_up_and_asked_for_the_rest() {
    let registry = Registry::start(Behaviour {
        breaks_after: Some(100_000),
        stalls: true,
        ..Behaviour::default()
    });
    let place = Place::new();
    let host = registry.host();
    let name = registry.name();
    let mut command = place.command(&["pull", "--plain-http", &host, &name]);
    let output = command.env("BULLA_REGISTRY_TIMEOUT", "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(registry.seen("bytes=100000-"), 1, "{:?}", registry.requests);
}

#[test]
fn a_busy_registry_is_asked_again_a_few_times() {
    for status in ["429 Too Many Requests", "503 Service Unavailable"] {
        for (busy, succeeds) in [(2, true), (1000, false)] {
            let registry = Registry::start(Behaviour {
                busy: AtomicUsize::new(busy),
                busy_status: status,
                ..Behaviour::default()
            });
            let place = Place::new();
            let words = ["pull", "--plain-http", &registry.host(), &registry.name()];
            let output = place.command(&words).output().unwrap();
            assert_eq!(output.status.success(), succeeds, "{output:?}");
            if !succeeds {
                assert!(said(&output).contains(&status[..3]), "{output:?}");
                assert!(registry.seen("/manifests/") <= 3, "{:?}", registry.requests);
            }
        }
    }
}

#[test]
fn a_blob_that_is_longer_than_its_manifest_says_is_refused() {
    let registry = Registry::start(Behaviour {
        longer: 512,
        ..Behaviour::default()
    });
    let place = Place::new();
    let output = run(&place, &registry);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(
        said(&output).contains("larger than its manifest says"),
        "{output:?}"
    );
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// Where another cache keeps the part of a blob.
fn partial_of(cache: &Path, blob: &Path, other: &Path) -> PathBuf {
    let inner = blob.strip_prefix(cache).unwrap();
    let store = inner.ancestors().nth(3).unwrap();
    other
        .join(store)
        .join("partial")
        .join(blob.file_name().unwrap())
}

#[test]
fn what_is_damaged_on_the_way_is_not_kept() {
    let registry = Registry::start(Behaviour {
        damaged: true,
        ..Behaviour::default()
    });
    let place = Place::new();
    let output = run(&place, &registry);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(said(&output).contains("digest"), "{output:?}");
    let kept = files(&place.path("cache"));
    // What was begun may lie in `partial`, where the next attempt looks at all of it again.
    let blobs = kept.iter().filter(|path| {
        path.parent()
            .is_some_and(|dir| dir.ends_with("blobs/sha256"))
    });
    assert_eq!(blobs.count(), 0, "{kept:?}");
}

#[test]
fn several_processes_share_one_cache() {
    let registry = Registry::start(Behaviour::default());
    let place = Place::new();
    let host = registry.host();
    let name = registry.name();
    let words = ["--plain-http", &*host, &*name, "busybox", "echo", "it runs"];
    let children: Vec<_> = (0..4)
        .map(|_| {
            let mut command = place.start(&words);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"it runs\n", "{output:?}");
    }
    // Each blob came once.
    assert_eq!(registry.seen("/blobs/"), 2, "{:?}", registry.requests);
}

#[test]
fn one_that_waited_for_another_that_gave_up_starts_anew() {
    let registry = Registry::start(Behaviour::default());
    let place = Place::new();
    let host = registry.host();
    let words = ["pull", "--plain-http", &*host, &*registry.name()];
    assert!(place.command(&words).output().unwrap().status.success());
    let layer = files(&place.path("cache"))
        .into_iter()
        .filter(|path| path.parent().is_some_and(|dir| dir.ends_with("sha256")))
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    // As a process that fetches it would hold it.
    let other = Place::new();
    let partial = partial_of(&place.path("cache"), &layer, &other.path("cache"));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    let held = fs::File::create(&partial).unwrap();
    held.lock().unwrap();
    let mut waiting = other.command(&words);
    let waiting = waiting.stderr(Stdio::piped()).spawn().unwrap();
    while registry.seen("/manifests/") < 2 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    fs::remove_file(&partial).unwrap();
    drop(held);
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_docker_daemon_gives_its_images() {
    let place = Place::new();
    let socket = place.path("docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let archive = image("busybox").archive;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut first = String::new();
            reader.read_line(&mut first).unwrap();
            let answer = match first.starts_with("GET /images/box:1/get ") {
                true => {
                    let mut bytes =
                        b"HTTP/1.0 200 OK\r\nContent-Type: application/x-tar\r\n\r\n".to_vec();
                    fs::File::open(&archive)
                        .unwrap()
                        .read_to_end(&mut bytes)
                        .unwrap();
                    bytes
                }
                false => b"HTTP/1.0 404 Not Found\r\n\r\n{\"message\":\"No such image\"}".to_vec(),
            };
            let _ = stream.write_all(&answer);
        }
    });
    let host = format!("unix://{}", socket.display());
    let run = |name: &str, host: &str| {
        let words = [name, "busybox", "echo", "it runs"];
        place
            .start(&words)
            .env("DOCKER_HOST", host)
            .output()
            .unwrap()
    };
    let output = run("docker-daemon:box:1", &host);
    assert_eq!(output.stdout, b"it runs\n", "{output:?}");
    let output = run("docker-daemon:other:1", &host);
    assert!(said(&output).contains("No such image"), "{output:?}");
    let output = run("docker-daemon:box:1", "unix:///nowhere/docker.sock");
    assert!(said(&output).contains("/nowhere/docker.sock"), "{output:?}");
    let output = run("docker-daemon:box:1", "tcp://127.0.0.1:1");
    assert!(
        said(&output).contains("only unix:// is spoken"),
        "{output:?}"
    );
    // Nothing of it stays.
    let kept = files(&place.path("cache"));
    assert!(
        !kept
            .iter()
            .any(|path| path.extension().is_some_and(|e| e == "tar")),
        "{kept:?}"
    );
}

#[test]
fn containers_storage_gives_its_images() {
    let place = Place::new();
    let storage = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
        place.path("graph").display(),
        place.path("run").display()
    );
    fs::write(place.path("storage.conf"), storage).unwrap();
    let archive = format!("docker-archive:{}", image("busybox").archive.display());
    let copied = Command::new("skopeo")
        .args([
            "--insecure-policy",
            "copy",
            &archive,
            "containers-storage:localhost/box:1",
        ])
        .env("CONTAINERS_STORAGE_CONF", place.path("storage.conf"))
        .output()
        .expect("skopeo is missing; run scripts/packages.sh test");
    assert!(copied.status.success(), "{copied:?}");
    let run = |name: &str| {
        let words = [name, "busybox", "echo", "it runs"];
        let mut command = place.start(&words);
        command.env("CONTAINERS_STORAGE_CONF", place.path("storage.conf"));
        command.output().unwrap()
    };
    let output = run("containers-storage:localhost/box:1");
    assert_eq!(output.stdout, b"it runs\n", "{output:?}");
    let output = run("containers-storage:localhost/other:1");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(said(&output).contains("localhost/other:1"), "{output:?}");
}
