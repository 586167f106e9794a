//! Built images in the hands of other tools: buildah takes, gives and runs them as any image, and a
//! container of an engine keeps its volumes only where its emulated machine is kept as well.

use bulla_test_apps::{bulla, image, platform_options};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

struct Place {
    dir: tempfile::TempDir,
}

fn all(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bulla(&self, words: &[&str]) -> Output {
        Command::new("timeout")
            .arg("120")
            .arg(bulla())
            .args(words)
            .env("BULLA_CACHE", self.path("cache"))
            .env("BULLA_STATE", self.path("state"))
            .current_dir(self.dir.path())
            .output()
            .unwrap()
    }

    /// An engine with its storage here.
    fn engine(&self, name: &str, words: &[&str]) -> Output {
        let config = self.path("containers.conf");
        fs::write(&config, "[containers]\ndefault_ulimits = []\n").unwrap();
        let mut command = Command::new("timeout");
        command
            .args(["120", name, "--root"])
            .arg(self.path("storage"));
        command.arg("--runroot").arg(self.path("run"));
        command.args(["--storage-driver", "vfs"]);
        if name == "podman" {
            command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
        }
        command
            .args(words)
            .env("CONTAINERS_CONF", &config)
            .current_dir(self.dir.path())
            .output()
            .unwrap_or_else(|_| panic!("{name} is missing; run scripts/packages.sh test"))
    }

    fn succeed(&self, name: &str, words: &[&str]) -> String {
        let output = self.engine(name, words);
        assert!(
            output.status.success(),
            "{name} {words:?}: {}",
            all(&output)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Busybox as a confidential image, `box.tar`.
    fn new(manifest: &str) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { dir };
        let text = format!(
            "entrypoint = [\"/bin/busybox\"]\n[arguments]\nmode = \"host\"\nfixed = [\"true\"]\n{manifest}"
        );
        fs::write(place.path("bulla.toml"), text).unwrap();
        let busybox = image("busybox").archive.display().to_string();
        let build = ["build", &busybox, "-t", "bulla-test:box", "-o", "box.tar"];
        let output = place.bulla(&[&build[..], &["--manifest", "bulla.toml"]].concat());
        assert!(output.status.success(), "{}", all(&output));
        place
    }

    fn mrenclave(&self, image: &str) -> String {
        let output = self.bulla(&["measure", "--json", "--layout", "dynamic", image]);
        let measured: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        measured["layouts"][0]["mrenclave"].to_string()
    }
}

#[test]
fn buildah_takes_gives_and_runs_a_built_image() {
    let place = Place::new("");
    place.succeed("buildah", &["pull", "-q", "docker-archive:box.tar"]);
    let names = place.succeed("buildah", &["images", "--format", "{{.Name}}:{{.Tag}}"]);
    let name = names.lines().next().unwrap();
    let container = place.succeed("buildah", &["from", "--pull-never", name]);
    // Buildah leaves entry points out, whatever the image.
    let start = ["/bulla/bulla", "start", "echo", "by buildah"];
    let run = ["run", "--isolation", "chroot", &container];
    let output = place.engine("buildah", &[&run[..], &start].concat());
    assert_eq!(output.stdout, b"by buildah\n", "{}", all(&output));
    assert!(all(&output).contains("EMULATED"), "{}", all(&output));
    // What it gives is the same enclave, and so is what it makes of it.
    let committed = ["commit", "-q", &*container, "localhost/derived:1"];
    place.succeed("buildah", &committed);
    let measured = place.mrenclave("box.tar");
    for (from, to) in [
        (name, "docker-archive:copy.tar:copy"),
        (name, "oci-archive:copy.oci"),
        ("localhost/derived:1", "docker-archive:derived.tar:derived"),
    ] {
        place.succeed("buildah", &["push", "-q", from, to]);
        let file = to.split(':').nth(1).unwrap();
        assert_eq!(place.mrenclave(file), measured, "{file}");
        let platform = platform_options();
        let platform: Vec<&str> = platform.iter().map(String::as_str).collect();
        let run = [&["run", "--quiet"][..], &platform, &[file, "echo", file]].concat();
        let output = place.bulla(&run);
        assert_eq!(
            output.stdout,
            format!("{file}\n").as_bytes(),
            "{}",
            all(&output)
        );
    }
}

#[test]
fn a_second_container_opens_a_volume_where_the_machine_is_kept() {
    let place = Place::new("[[mounts]]\ntarget = \"/data\"\ntype = \"volume\"\n");
    place.succeed("podman", &["load", "-q", "-i", "box.tar"]);
    let format = "{{.Repository}}:{{.Tag}}";
    let names = place.succeed("podman", &["images", "--format", format]);
    let name = names.lines().next().unwrap();
    for dir in ["lost", "data", "state-of-all"] {
        fs::create_dir(place.path(dir)).unwrap();
    }
    let run = |data: &str, options: &[&str], words: &[&str]| {
        let volume = format!("{}:/data", place.path(data).display());
        let run = ["run", "--rm", "--network", "host", "-v", &volume];
        place.engine("podman", &[&run[..], options, &[name], words].concat())
    };
    let write = ["sh", "-c", "echo kept >/data/x"];
    let output = run("lost", &[], &write);
    assert!(output.status.success(), "{}", all(&output));
    assert!(
        !all(&output).contains("earlier container"),
        "{}",
        all(&output)
    );
    let output = run("lost", &[], &["cat", "/data/x"]);
    let said = all(&output);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(
        said.contains("the volume at /data is of an earlier container"),
        "{said}"
    );
    assert!(said.contains("BULLA_STATE=/state"), "{said}");
    let state = format!("{}:/state", place.path("state-of-all").display());
    let state = ["-e", "BULLA_STATE=/state", "-v", &state];
    let output = run("data", &state, &write);
    assert!(output.status.success(), "{}", all(&output));
    let output = run("data", &state, &["cat", "/data/x"]);
    assert_eq!(output.stdout, b"kept\n", "{}", all(&output));
    assert!(
        !all(&output).contains("earlier container"),
        "{}",
        all(&output)
    );
}

/// A setting of the environment that is none is no silent default.
#[test]
fn settings_of_the_environment_that_are_none_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place { dir };
    let root = place.path("root");
    fs::create_dir_all(&root).unwrap();
    let run = |variable: &str, value: &str, words: &[&str]| {
        let output = Command::new(bulla())
            .args(words)
            .env("BULLA_CACHE", place.path("cache"))
            .env("BULLA_STATE", place.path("state"))
            .env(variable, value)
            .current_dir(place.dir.path())
            .output()
            .unwrap();
        all(&output)
    };
    for (number, (value, warned)) in [("much", true), ("-1", true), ("", true), ("1G", false)]
        .into_iter()
        .enumerate()
    {
        // Looked at when something is added.
        fs::write(root.join(format!("file-{number}")), "new").unwrap();
        let words = ["check", "--rootfs", "root"];
        let said = run("BULLA_CACHE_LIMIT", value, &words);
        let warning = "bulla: warning: BULLA_CACHE_LIMIT: ";
        assert_eq!(said.contains(warning), warned, "{value:?}: {said}");
        assert_eq!(said.contains("20G holds"), warned, "{value:?}: {said}");
    }
    for (value, warned) in [
        ("0", true),
        ("-3", true),
        ("1m", true),
        ("", true),
        ("5", false),
    ] {
        // Nobody is there: the refusal comes at once.
        let said = run("BULLA_REGISTRY_TIMEOUT", value, &["pull", "localhost:1/x"]);
        let warning = format!("bulla: warning: BULLA_REGISTRY_TIMEOUT={value:?}");
        assert_eq!(said.contains(&warning), warned, "{said}");
        assert!(said.contains("the registry localhost:1"), "{said}");
    }
}
