//! A key and an RA-TLS certificate as files, renewed before the certificate expires.
//!
//! The key is made here, in the enclave, and is in no file but those. Both files appear whole: a
//! new pair is written beside the old one and renamed, key first.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use bulla_attest::Device;
use bulla_attest::ratls::{IssueError, Request, issue};
use thiserror::Error;

use bulla_agent::settings::Tls;

use crate::files;

/// Why there is no key.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// Longest pause after a renewal that failed: the old certificate still has a third of its time.
const RETRY: Duration = Duration::from_secs(60);

/// Makes key and certificate.
pub fn prepare(tls: &Tls) -> Result<(), TlsError> {
    let now = UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
    let request = Request {
        common_name: tls.common_name.clone(),
        names: tls.names.clone(),
        valid_seconds: tls.lifetime(),
        gramine: tls.gramine,
        endorsements: tls.endorsements,
        ..Request::new(now)
    };
    let device = Device::new();
    let identity = issue(&device, &request)?;
    device
        .forget()
        .map_err(file_error("/dev/attestation/user_report_data".as_ref()))?;
    let directory = &tls.directory;
    files::directory(directory, 0o755).map_err(file_error(directory))?;
    let key = directory.join("tls.key");
    files::put(&key, identity.key_pem().as_bytes(), 0o600).map_err(file_error(&key))?;
    let certificate = directory.join("tls.crt");
    files::put(&certificate, identity.certificate_pem().as_bytes(), 0o644)
        .map_err(file_error(&certificate))
}

/// Renews for ever.
pub fn renew(tls: &Tls) {
    let period = Duration::from_secs(tls.lifetime()) * 2 / 3;
    let mut pause = period;
    loop {
        std::thread::sleep(pause);
        pause = match prepare(tls) {
            Ok(()) => {
                notify(tls.reload_signal);
                period
            }
            Err(error) => {
                eprintln!("bulla-agent: the TLS certificate cannot be renewed: {error}");
                RETRY.min(period / 16)
            }
        };
    }
}

/// Tells the application.
pub fn notify(signal: i32) {
    let application = rustix::process::Pid::INIT;
    if let Some(signal) = rustix::process::Signal::from_named_raw(signal)
        && let Err(error) = rustix::process::kill_process(application, signal)
    {
        eprintln!("bulla-agent: the application cannot be told of the new certificate: {error}");
    }
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> TlsError {
    let path = path.to_owned();
    move |source| TlsError::File {
        path: path.clone(),
        source,
    }
}
