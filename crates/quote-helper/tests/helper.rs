//! The helper with a stand-in for Intel's library, asked by bulla's own AESM client.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bulla_attest::{Aesm, AesmError};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn library(&self, options: &[&str]) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/library.c");
        let library = self.path("libquote.so");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .args(options)
            .arg(source)
            .status()
            .unwrap();
        assert!(status.success());
        library
    }

    fn command(&self, library: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulla-quote-helper"));
        command.arg("--library").arg(library).arg("--socket");
        command
            .arg(self.path("run/aesm.socket"))
            .stderr(Stdio::piped());
        command
    }

    fn refused(&self, library: &Path) -> String {
        let Output { status, stderr, .. } = self.command(library).output().unwrap();
        assert!(!status.success());
        String::from_utf8_lossy(&stderr).into_owned()
    }

    fn start(&self, fails: &str) -> Helper {
        let library = self.library(&[]);
        let child = self
            .command(&library)
            .env("FAKE_FAILS", fails)
            .spawn()
            .unwrap();
        let helper = Helper(child);
        let end = Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(self.path("run/aesm.socket")).is_err() {
            assert!(Instant::now() < end, "it does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        helper
    }

    fn aesm(&self) -> Aesm {
        Aesm::at(&self.path("run/aesm.socket"))
    }
}

struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_librarys_quotes_come_through() {
    let place = Place::new();
    let _helper = place.start("");
    let aesm = place.aesm();
    assert_eq!(aesm.target_info().unwrap(), [0x17; 512]);
    let report: [u8; 432] = std::array::from_fn(|at| at as u8);
    let quote = aesm.quote(&report).unwrap();
    assert_eq!(quote[48..432], report[..384]);
    // Clients that misbehave are let go, and the next is served.
    for bytes in [
        &[][..],
        &[1],
        &[0xff; 4],
        &[4, 0, 0, 0, 1],
        &[1, 0, 0, 0, 0xff],
        &[0; 4],
    ] {
        let mut stream = UnixStream::connect(place.path("run/aesm.socket")).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read(&mut [0; 64]);
    }
    assert!(aesm.quote(&report).is_ok());
    // A second one does not push the first aside.
    let said = place.refused(&place.library(&[]));
    assert!(said.contains("answers there already"), "{said}");
}

#[test]
fn the_librarys_errors_come_through_in_words() {
    for (fails, code) in [("target", 44), ("size", 12), ("large", 1), ("quote", 29)] {
        let place = Place::new();
        let _helper = place.start(fails);
        match place.aesm().quote(&[0; 432]) {
            Err(AesmError::Refused { code: given, .. }) => assert_eq!(given, code, "{fails}"),
            other => panic!("{fails}: {other:?}"),
        }
    }
}

#[test]
fn what_is_not_the_library_is_named() {
    let place = Place::new();
    let said = place.refused(&place.path("none.so"));
    assert!(said.contains("libsgx-dcap-ql"), "{said}");
    let said = place.refused(&place.library(&["-DWITHOUT_QUOTE"]));
    assert!(said.contains("sgx_qe_get_quote"), "{said}");
    // A socket that nobody serves any more is replaced; a file is not.
    std::fs::create_dir_all(place.path("run")).unwrap();
    drop(UnixListener::bind(place.path("run/aesm.socket")).unwrap());
    let helper = place.start("");
    assert!(place.aesm().target_info().is_ok());
    drop(helper);
    std::fs::remove_file(place.path("run/aesm.socket")).unwrap();
    std::fs::write(place.path("run/aesm.socket"), "x").unwrap();
    let said = place.refused(&place.library(&[]));
    assert!(said.contains("there is a file"), "{said}");
}
