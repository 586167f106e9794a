//! Any bytes as what AESM answers, and as what a client asks of our own server of its protocol.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use bulla_attest::Aesm;
use bulla_attest::aesm_server::{QuotingLibrary, serve};

static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Library;

impl QuotingLibrary for Library {
    fn target_info(&self) -> Result<[u8; 512], u32> {
        Ok([1; 512])
    }

    fn quote_size(&self) -> Result<u32, u32> {
        Ok(100)
    }

    fn quote(&self, report: &[u8; 432]) -> Result<Vec<u8>, u32> {
        Ok(report[..100].to_vec())
    }
}

/// Sockets of a double of AESM, and of our server.
fn sockets() -> &'static (PathBuf, PathBuf) {
    static SOCKETS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    SOCKETS.get_or_init(|| {
        let name = |what: &str| {
            let path = format!("bulla-fuzz-{what}-{}", std::process::id());
            std::env::temp_dir().join(path)
        };
        let listen = |path: &Path| UnixListener::bind(path).expect("a socket can be made");
        let (double, server) = (name("aesm"), name("server"));
        let (of_double, of_server) = (listen(&double), listen(&server));
        thread::spawn(move || {
            for client in of_double.incoming() {
                let mut client = client.expect("it connects");
                let mut length = [0; 4];
                if client.read_exact(&mut length).is_err() {
                    continue;
                }
                let mut request = vec![0; u32::from_le_bytes(length) as usize];
                let _ = client.read_exact(&mut request);
                let answer = ANSWER.lock().expect("nobody panics").clone();
                let _ = client.write_all(&answer);
            }
        });
        thread::spawn(move || serve(&of_server, &Library));
        (double, server)
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (double, server) = sockets();
    *ANSWER.lock().expect("nobody panics") = bytes.to_vec();
    let aesm = Aesm::at(double).with_timeout(Duration::from_secs(5));
    let _ = aesm.target_info();
    if let Ok(quote) = aesm.quote(&[0; 432]) {
        assert!(!quote.is_empty());
    }
    let mut client = UnixStream::connect(server).expect("it still serves");
    if client.write_all(bytes).is_ok() && client.shutdown(Shutdown::Write).is_ok() {
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        assert!(answer.len() < 4096);
    }
});
