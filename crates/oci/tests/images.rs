//! Images made by hand: honest ones of every format, and hostile ones.

use bulla_abi::config::Rootfs;
use bulla_oci::{Cache, Digest, Error, Image, Kind, Limits, NodeId, Reference, Tree};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Writes tar archives, wrong ones too.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, kind: u8, path: &[u8], link: &[u8], mode: u32, size: u64, data: &[u8]) -> Tar {
        let mut header = [0u8; 512];
        header[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
        header[157..157 + link.len()].copy_from_slice(link);
        let octal = |value: u64, digits: usize| format!("{value:0digits$o}\0").into_bytes();
        header[100..108].copy_from_slice(&octal(mode.into(), 7));
        header[108..116].copy_from_slice(&octal(0, 7));
        header[116..124].copy_from_slice(&octal(0, 7));
        header[124..136].copy_from_slice(&octal(size, 11));
        header[136..148].copy_from_slice(&octal(1_700_000_000, 11));
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        let padded = self.0.len().next_multiple_of(512);
        self.0.resize(padded, 0);
        self
    }

    fn file(self, path: &str, data: &[u8]) -> Tar {
        self.raw(b'0', path.as_bytes(), b"", 0o644, data.len() as u64, data)
    }

    fn dir(self, path: &str) -> Tar {
        self.raw(b'5', path.as_bytes(), b"", 0o755, 0, b"")
    }

    fn symlink(self, path: &str, target: &str) -> Tar {
        self.raw(b'2', path.as_bytes(), target.as_bytes(), 0o777, 0, b"")
    }

    fn link(self, path: &str, target: &str) -> Tar {
        self.raw(b'1', path.as_bytes(), target.as_bytes(), 0o644, 0, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len != rest + len.to_string().len() {
                len = rest + len.to_string().len();
            }
            content.extend_from_slice(format!("{len} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        let size = content.len() as u64;
        self.raw(b'x', b"PaxHeaders/x", b"", 0o644, size, &content)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn config(layers: &[Vec<u8>], arch: &str) -> String {
    let ids = layers
        .iter()
        .map(|layer| format!("\"{}\"", Digest::of(layer)));
    let ids: Vec<String> = ids.collect();
    format!(
        r#"{{"architecture":"{arch}","os":"linux","config":{{"Cmd":["/bin/x"],"Env":["A=b"]}},
        "rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    )
}

fn docker_archive(layers: &[Vec<u8>], arch: &str) -> Vec<u8> {
    let mut tar = Tar::default().file("c.json", config(layers, arch).as_bytes());
    let mut names = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        tar = tar.file(&format!("{at}/layer.tar"), layer);
        names.push(format!("\"{at}/layer.tar\""));
    }
    let manifest = format!(
        r#"[{{"Config":"c.json","RepoTags":["docker.io/library/x:1"],"Layers":[{}]}}]"#,
        names.join(",")
    );
    tar.file("manifest.json", manifest.as_bytes()).end()
}

struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture {
            dir: TempDir::new().unwrap(),
        }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn open(&self, path: &Path) -> Result<Image, Error> {
        Image::open(&Reference::parse(path.as_os_str())?, self.dir.path())
    }

    fn flatten(&self, layers: &[Vec<u8>]) -> Result<Tree, Error> {
        let path = self.put("image.tar", &docker_archive(layers, "amd64"));
        self.open(&path)?
            .flatten(self.dir.path(), Limits::default())
    }

    /// An OCI layout with compressed layers and an index of two platforms.
    fn layout(&self, layers: &[Vec<u8>], compress: impl Fn(&[u8]) -> Vec<u8>) -> PathBuf {
        let blob = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            self.put(&format!("oci/blobs/sha256/{}", digest.hex()), bytes);
            format!(r#""digest":"{digest}","size":{}"#, bytes.len())
        };
        let media = "application/vnd.oci.image";
        let manifest = |arch: &str| {
            let descriptors = layers.iter().map(|layer| {
                let blob = blob(&compress(layer));
                format!(r#"{{"mediaType":"{media}.layer.v1.tar+gzip",{blob}}}"#)
            });
            let descriptors: Vec<String> = descriptors.collect();
            let config = blob(config(layers, arch).as_bytes());
            blob(
                format!(
                    r#"{{"schemaVersion":2,"config":{{"mediaType":"{media}.config.v1+json",
                    {config}}},"layers":[{}]}}"#,
                    descriptors.join(",")
                )
                .as_bytes(),
            )
        };
        let platform = |arch: &str| {
            let manifest = manifest(arch);
            format!(
                r#"{{"mediaType":"{media}.manifest.v1+json",{manifest},
                "platform":{{"os":"linux","architecture":"{arch}"}}}}"#
            )
        };
        let inner = format!(
            r#"{{"schemaVersion":2,"mediaType":"{media}.index.v1+json",
            "manifests":[{},{}]}}"#,
            platform("arm64"),
            platform("amd64")
        );
        let outer = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{media}.index.v1+json",{},
            "annotations":{{"org.opencontainers.image.ref.name":"latest"}}}}]}}"#,
            blob(inner.as_bytes())
        );
        self.put("oci/oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        self.put("oci/index.json", outer.as_bytes());
        self.dir.path().join("oci")
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    ruzstd::encoding::compress_to_vec(bytes, level)
}

fn text(tree: &Tree, path: &str) -> Option<String> {
    String::from_utf8(tree.read(path.as_bytes(), 1 << 20)?).ok()
}

/// All paths of a tree, in order.
fn list(tree: &Tree) -> Vec<String> {
    fn walk(tree: &Tree, id: NodeId, path: &str, out: &mut Vec<String>) {
        for (name, child) in tree.children(id) {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            out.push(path.clone());
            walk(tree, child, &path, out);
        }
    }
    let mut out = Vec::new();
    walk(tree, NodeId::ROOT, "", &mut out);
    out
}

fn two_layers() -> Vec<Vec<u8>> {
    vec![
        Tar::default()
            .dir("usr/")
            .dir("usr/bin/")
            .symlink("bin", "usr/bin")
            .file("usr/bin/x", b"old")
            .file("etc/deleted", b"1")
            .file("etc/kept", b"2")
            .file("opaque/lower", b"3")
            .file("opaque/sub/lower", b"4")
            .end(),
        Tar::default()
            .file("bin/x", b"new")
            .file("etc/.wh.deleted", b"")
            .file("opaque/upper", b"5")
            .file("opaque/.wh..wh..opq", b"")
            .link("etc/linked", "etc/kept")
            .end(),
    ]
}

fn check_two_layers(tree: &Tree) {
    assert_eq!(
        list(tree),
        [
            "/bin",
            "/etc",
            "/etc/kept",
            "/etc/linked",
            "/opaque",
            "/opaque/upper",
            "/usr",
            "/usr/bin",
            "/usr/bin/x"
        ]
    );
    assert_eq!(text(tree, "/bin/x").as_deref(), Some("new"));
    assert_eq!(text(tree, "/etc/linked").as_deref(), Some("2"));
}

#[test]
fn layers_hide_and_replace() {
    let tree = Fixture::new().flatten(&two_layers()).unwrap();
    check_two_layers(&tree);
}

#[test]
fn whiteouts_spare_their_own_layer() {
    let tree = Fixture::new().flatten(&[
        Tar::default()
            .file("d/a", b"lower")
            .file("d/b", b"lower")
            .end(),
        Tar::default()
            .file("d/a", b"upper")
            .file("d/.wh.a", b"")
            .file("d/.wh.b", b"")
            .file("d/.wh.never-there", b"")
            .end(),
    ]);
    let tree = tree.unwrap();
    assert_eq!(list(&tree), ["/d", "/d/a"]);
    assert_eq!(text(&tree, "d/a").as_deref(), Some("upper"));
}

#[test]
fn oci_layouts_and_compressions() {
    for compress in [gzip, zstd, <[u8]>::to_vec] {
        let fixture = Fixture::new();
        let path = fixture.layout(&two_layers(), compress);
        let image = fixture.open(&path).unwrap();
        assert_eq!(image.config.cmd, ["/bin/x"]);
        check_two_layers(
            &image
                .flatten(fixture.dir.path(), Limits::default())
                .unwrap(),
        );
        let tagged = path.with_file_name("oci:latest");
        let content = fixture.open(&tagged).unwrap().content();
        assert_eq!(content, image.content());
        let error = fixture.open(&path.with_file_name("oci:3")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("holds no image 3; there is latest"),
            "{error}"
        );
    }
}

#[test]
fn oci_archives_and_compressed_archives() {
    let fixture = Fixture::new();
    let layout = fixture.layout(&two_layers(), gzip);
    let mut tar = Tar::default();
    let mut todo = vec![layout.clone()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(&layout).unwrap().to_str().unwrap();
                tar = tar.file(name, &fs::read(&path).unwrap());
            }
        }
    }
    let archive = tar.end();
    for bytes in [gzip(&archive), archive] {
        let path = fixture.put("oci.tar", &bytes);
        let image = fixture.open(&path).unwrap();
        check_two_layers(
            &image
                .flatten(fixture.dir.path(), Limits::default())
                .unwrap(),
        );
    }
}

#[test]
fn attributes_and_odd_names() {
    let long = "d/".to_owned() + &"n".repeat(200);
    let layer = Tar::default()
        .pax(&[
            ("path", b"caf\xe9"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("mtime", b"1700000001.25"),
            ("uid", b"4000000"),
        ])
        .raw(b'0', b"short", b"", 0o4755, 1, b"x")
        .raw(
            b'L',
            b"././@LongLink",
            b"",
            0o644,
            long.len() as u64 + 1,
            &{
                let mut name = long.clone().into_bytes();
                name.push(0);
                name
            },
        )
        .raw(b'0', &long.as_bytes()[..100], b"", 0o600, 2, b"yz")
        .end();
    let tree = Fixture::new().flatten(&[layer]).unwrap();
    let node = tree.node(tree.lookup(b"/caf\xe9").unwrap());
    let attributes = &node.attributes;
    assert_eq!((attributes.mode, attributes.uid), (0o4755, 4_000_000));
    assert_eq!(attributes.mtime, (1_700_000_001, 250_000_000));
    let expected = [(b"security.capability".to_vec(), b"\x01\0\0\x02".to_vec())];
    assert_eq!(attributes.xattrs, expected);
    assert_eq!(text(&tree, &long).as_deref(), Some("yz"));
}

#[test]
fn hard_links_share_and_never_cross_layers() {
    let tree = Fixture::new().flatten(&[
        Tar::default().file("a", b"1").link("b", "a").end(),
        Tar::default().link("c", "a").file(".wh.a", b"").end(),
    ]);
    let tree = tree.unwrap();
    assert_eq!(list(&tree), ["/b", "/c"]);
    assert_ne!(tree.lookup(b"b"), tree.lookup(b"c"));
    assert_eq!(text(&tree, "c").as_deref(), Some("1"));
}

#[test]
fn sparse_files_have_holes() {
    // Old GNU format: two pieces in the header, read through a real tar where there is one.
    let fixture = Fixture::new();
    let file = fixture.put("holes", b"");
    let handle = File::options().write(true).open(&file).unwrap();
    use std::os::unix::fs::FileExt;
    handle.write_all_at(b"begin", 0).unwrap();
    handle.write_all_at(b"end", 10 << 20).unwrap();
    let mut plain = Vec::new();
    File::open(&file).unwrap().read_to_end(&mut plain).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix"],
        &["--format=posix", "--sparse-version=0.1"],
    ] {
        let output = std::process::Command::new("tar")
            .arg("-S")
            .args(format)
            .arg("-C")
            .arg(fixture.dir.path())
            .args(["-cf", "-", "holes"])
            .output();
        let Ok(output) = output else { return };
        let tree = fixture.flatten(&[output.stdout]).unwrap();
        let found = tree.read(b"holes", 1 << 30).unwrap();
        assert!(found == plain, "{format:?}: {} bytes", found.len());
    }
}

#[test]
fn refuses_other_architectures() {
    let fixture = Fixture::new();
    let path = fixture.put("image.tar", &docker_archive(&two_layers(), "arm64"));
    let error = fixture.open(&path).unwrap_err().to_string();
    assert_eq!(
        error,
        "the image is for linux/arm64; bulla needs linux/amd64"
    );
}

#[test]
fn explains_what_is_no_image() {
    let fixture = Fixture::new();
    let error = |path: &Path| fixture.open(path).unwrap_err().to_string();
    let path = fixture.put("text", &b"just some text\n".repeat(1000));
    assert!(
        error(&path).contains("neither a docker-archive"),
        "{}",
        error(&path)
    );
    let path = fixture.put("short", b"x");
    assert!(
        error(&path).contains("neither a docker-archive"),
        "{}",
        error(&path)
    );
    let path = fixture.put("empty", b"");
    assert!(
        error(&path).contains("neither a docker-archive"),
        "{}",
        error(&path)
    );
    let path = fixture.put("other.tar", &Tar::default().file("x", b"y").end());
    assert!(
        error(&path).contains("neither a docker-archive"),
        "{}",
        error(&path)
    );
    assert!(error(fixture.dir.path()).contains("--rootfs"));
    let path = fixture.dir.path().join("absent.tar");
    assert!(
        error(&path).contains("there is no file"),
        "{}",
        error(&path)
    );
}

#[test]
fn notices_truncation_everywhere() {
    let fixture = Fixture::new();
    let whole = docker_archive(&two_layers(), "amd64");
    for len in (600..whole.len() - 1024).step_by(512 + 100) {
        let path = fixture.put("cut.tar", &whole[..len]);
        let result = fixture.open(&path);
        let result = result.and_then(|image| image.flatten(fixture.dir.path(), Limits::default()));
        let error = result.unwrap_err().to_string();
        let expected = ["truncated", "lacks", "neither"];
        assert!(
            expected.iter().any(|word| error.contains(word)),
            "{len}: {error}"
        );
    }
}

#[test]
fn notices_flipped_bits() {
    let fixture = Fixture::new();
    let mut bytes = docker_archive(&two_layers(), "amd64");
    let at = bytes.windows(3).position(|bytes| bytes == b"old").unwrap();
    bytes[at] ^= 1;
    let path = fixture.put("image.tar", &bytes);
    let image = fixture.open(&path).unwrap();
    let error = image
        .flatten(fixture.dir.path(), Limits::default())
        .unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");

    let layout = fixture.layout(&two_layers(), gzip);
    for entry in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(&path, bad).unwrap();
        let result = fixture.open(&layout);
        let result = result.and_then(|image| image.flatten(fixture.dir.path(), Limits::default()));
        if let Ok(tree) = result {
            // Only the manifest and the configuration of the other platform are never read.
            check_two_layers(&tree);
            let text = String::from_utf8_lossy(&good).to_string();
            assert!(
                text.contains("arm64") || text.contains("layers"),
                "{path:?}"
            );
        }
        fs::write(&path, good).unwrap();
    }
}

#[test]
fn refuses_hostile_entries() {
    let deep = "d/".repeat(1500);
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        ("leads out", Tar::default().file("../x", b"").end()),
        ("leads out", Tar::default().file("a/../../x", b"").end()),
        (
            "leads out",
            Tar::default().link("x", "../../etc/passwd").end(),
        ),
        ("missing file", Tar::default().link("x", "y").end()),
        (
            "to a directory",
            Tar::default().dir("d/").link("x", "d").end(),
        ),
        (
            "loop",
            Tar::default()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", b"")
                .end(),
        ),
        (
            "not a directory",
            Tar::default().file("a", b"").file("a/b", b"").end(),
        ),
        (
            "zero byte",
            Tar::default()
                .pax(&[("path", b"a\0b")])
                .file("x", b"")
                .end(),
        ),
        (
            "too long a name",
            Tar::default()
                .pax(&[("path", "n".repeat(300).as_bytes())])
                .file("x", b"")
                .end(),
        ),
        (
            "too long a path",
            Tar::default()
                .pax(&[("path", deep.repeat(2).as_bytes())])
                .file("x", b"")
                .end(),
        ),
        (
            "too large",
            Tar::default()
                .pax(&[("size", b"9223372036854775807")])
                .file("x", b"")
                .end(),
        ),
        (
            "truncated",
            Tar::default()
                .raw(b'0', b"x", b"", 0o644, 1 << 32, b"")
                .end(),
        ),
        (
            "too large",
            Tar::default()
                .raw(b'L', b"x", b"", 0o644, 1 << 32, b"")
                .end(),
        ),
        (
            "malformed",
            Tar::default()
                .pax(&[("mtime", b"12:30")])
                .file("x", b"")
                .end(),
        ),
        (
            "unknown type",
            Tar::default().raw(b'Z', b"x", b"", 0o644, 0, b"").end(),
        ),
    ];
    for (expected, layer) in hostile {
        let error = Fixture::new().flatten(&[layer]).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // Deep, but allowed: nothing recurses without bound.
    let layer = Tar::default()
        .pax(&[("path", deep.as_bytes())])
        .dir("x/")
        .end();
    Fixture::new().flatten(&[layer]).unwrap();
}

/// What an archive says twice, or in two ways: the later entry is there, as with every unpacker, and a
/// PAX record is stronger than the header.
#[test]
fn entries_that_contradict_each_other() {
    let tree = Fixture::new().flatten(&[Tar::default()
        .file("twice", b"first")
        .file("twice", b"second")
        .dir("kept/")
        .file("kept/inside", b"x")
        .dir("kept/")
        .symlink("link", "twice")
        .file("link", b"a file now")
        .file("was-file", b"x")
        .dir("was-file/")
        .pax(&[("path", b"named"), ("size", b"4")])
        .raw(b'0', b"../escape", b"", 0o644, 9999, b"four")
        .pax(&[("linkpath", b"twice")])
        .raw(b'2', b"other", b"/nowhere", 0o777, 0, b"")
        .file("after", b"read in step")
        .end()]);
    let tree = tree.unwrap();
    for (path, content) in [
        ("/twice", "second"),
        ("/kept/inside", "x"),
        ("/link", "a file now"),
        ("/named", "four"),
        ("/other", "second"),
        ("/after", "read in step"),
    ] {
        assert_eq!(text(&tree, path).as_deref(), Some(content), "{path}");
    }
    assert_eq!(text(&tree, "/escape"), None);
    // Links are made in the tree alone: what they name outside is never opened.
    let outside = Fixture::new().flatten(&[Tar::default()
        .symlink("dir", "/etc")
        .file("dir/marker", b"in the image")
        .raw(b'2', b"device", b"/dev/sda", 0o777, 0, b"")
        .end()]);
    let outside = outside.unwrap();
    assert_eq!(
        text(&outside, "/etc/marker").as_deref(),
        Some("in the image")
    );
    assert!(!Path::new("/etc/marker").exists());
}

/// A layer without an entry, and one with more behind its end; one of nothing at all is no archive.
#[test]
fn layers_without_entries() {
    let mut longer = Tar::default().file("a", b"x").end();
    longer.extend_from_slice(&[b'?'; 700]);
    let tree = Fixture::new().flatten(&[Tar::default().end(), longer]);
    assert_eq!(list(&tree.unwrap()), ["/a"]);
    let error = Fixture::new().flatten(&[Vec::new()]).unwrap_err();
    assert!(error.to_string().contains("ends too early"), "{error}");
}

#[test]
fn symbolic_links_stay_inside() {
    let tree = Fixture::new().flatten(&[Tar::default()
        .symlink("up", "../../..")
        .symlink("etc", "/private/etc")
        .file("etc/passwd", b"inside")
        .file("up/top", b"x")
        .end()]);
    let tree = tree.unwrap();
    assert_eq!(
        text(&tree, "/private/etc/passwd").as_deref(),
        Some("inside")
    );
    assert_eq!(text(&tree, "/top").as_deref(), Some("x"));
}

#[test]
fn limits_hold() {
    let fixture = Fixture::new();
    let path = fixture.put("image.tar", &docker_archive(&two_layers(), "amd64"));
    let image = fixture.open(&path).unwrap();
    for limits in [
        Limits {
            entries: 3,
            ..Limits::default()
        },
        Limits {
            bytes: 2000,
            ..Limits::default()
        },
        Limits {
            layers: 1,
            ..Limits::default()
        },
    ] {
        assert!(image.flatten(fixture.dir.path(), limits).is_err());
    }
    // A tar bomb: megabytes of zeros in a few kilobytes.
    let layer = Tar::default().file("zeros", &vec![0; 4 << 20]).end();
    let layout = fixture.layout(&[layer], gzip);
    let limits = Limits {
        bytes: 1 << 20,
        ..Limits::default()
    };
    assert!(
        fixture
            .open(&layout)
            .unwrap()
            .flatten(fixture.dir.path(), limits)
            .is_err()
    );
}

#[test]
fn several_images_need_a_name() {
    let fixture = Fixture::new();
    let layer = Tar::default().file("x", b"").end();
    let layers = [layer.clone()];
    let archive = Tar::default()
        .file("c.json", config(&layers, "amd64").as_bytes())
        .file("l.tar", &layer)
        .file(
            "manifest.json",
            br#"[{"Config":"c.json","RepoTags":["docker.io/me/a:1"],"Layers":["l.tar"]},
            {"Config":"c.json","RepoTags":["docker.io/me/b:latest"],"Layers":["l.tar"]}]"#,
        )
        .end();
    let path = fixture.put("two.tar", &archive);
    let error = fixture.open(&path).unwrap_err().to_string();
    assert!(
        error.contains("several images") && error.contains("me/b:latest"),
        "{error}"
    );
    for tag in ["me/a:1", "docker.io/me/a:1", "b", "me/b:latest", "a:1"] {
        let named = path.with_file_name(format!("two.tar:{tag}"));
        fixture
            .open(&named)
            .unwrap_or_else(|error| panic!("{tag}: {error}"));
    }
    assert!(fixture.open(&path.with_file_name("two.tar:c")).is_err());
}

fn fake_build(tree: Tree, mut file: &File) -> Result<Rootfs, Error> {
    let text = list(&tree).join("\n");
    file.write_all(text.as_bytes()).unwrap();
    Ok(Rootfs {
        data_size: text.len() as u64,
        tree_size: 0,
        salt: [0; 32],
        root_hash: *Digest::of(text.as_bytes()).bytes(),
        sites: None,
    })
}

#[test]
fn the_cache_builds_once() {
    let fixture = Fixture::new();
    let cache = Cache::at(fixture.dir.path().join("cache")).unwrap();
    let path = fixture.put("image.tar", &docker_archive(&two_layers(), "amd64"));
    let reference = Reference::parse(path.as_os_str()).unwrap();
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| cache.image(&reference, &mut fake_build).unwrap()))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    });
    assert_eq!(results.iter().filter(|stored| stored.built).count(), 1);
    assert!(
        results
            .windows(2)
            .all(|pair| pair[0].rootfs == pair[1].rootfs)
    );
    assert_eq!(results[0].config.env, ["A=b"]);

    // The same layers in another file: found by content.
    let copy = fixture.put("copy.tar", &fs::read(&path).unwrap());
    let reference = Reference::parse(copy.as_os_str()).unwrap();
    assert!(!cache.image(&reference, &mut fake_build).unwrap().built);

    // A changed file is noticed, a failed build leaves nothing.
    let layer = Tar::default().file("x", b"").end();
    fixture.put("image.tar", &docker_archive(&[layer], "amd64"));
    let reference = Reference::parse(path.as_os_str()).unwrap();
    let mut failing = |_: Tree, _: &File| Err(Error::Rootfs("disk full".to_owned()));
    cache.image(&reference, &mut failing).unwrap_err();
    let stored = cache.image(&reference, &mut fake_build).unwrap();
    assert!(stored.built);
    assert_eq!(fs::read_to_string(stored.path).unwrap(), "/x");
    let left = fs::read_dir(fixture.dir.path().join("cache/rootfs-3")).unwrap();
    assert!(
        left.flatten()
            .all(|e| e.path().extension().is_some_and(|e| e != "tmp"))
    );
}

#[test]
fn directories_are_rebuilt_when_they_change() {
    let fixture = Fixture::new();
    let cache = Cache::at(fixture.dir.path().join("cache")).unwrap();
    fixture.put("root/etc/hostname", b"a");
    let root = fixture.dir.path().join("root");
    std::os::unix::fs::symlink("etc", root.join("link")).unwrap();
    fs::hard_link(root.join("etc/hostname"), root.join("etc/same")).unwrap();
    let first = cache.directory(&root, &mut fake_build).unwrap();
    assert!(first.built && !cache.directory(&root, &mut fake_build).unwrap().built);
    let tree = bulla_oci::directory::tree(&root).unwrap();
    assert_eq!(tree.lookup(b"etc/same"), tree.lookup(b"link/hostname"));
    assert!(matches!(
        tree.node(tree.lookup(b"link").unwrap()).kind,
        Kind::Symlink(_)
    ));
    fixture.put("root/etc/new", b"b");
    let second = cache.directory(&root, &mut fake_build).unwrap();
    assert!(second.built && second.path != first.path && !first.path.exists());
    assert!(
        cache
            .directory(&root.join("etc/hostname"), &mut fake_build)
            .is_err()
    );
}
