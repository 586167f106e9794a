//! `bulla-agent SETTINGS PROGRAM [ARGUMENTS]`: runs inside the enclave, before the application.
//!
//! It is an ordinary program of the container: it prepares what its settings ask for, leaves a
//! helper behind where something must be renewed, and then *becomes* the application (execve), which
//! so stays process 1 with its own arguments. The kernel knows it by its path, and takes the helper away
//! from the application's children at that moment, so that wait(2) says nothing of it; in a session of
//! its own it gets no signals that are meant for the application's group or terminal. What it fails at ends the container: an application
//! that expects an attested key must not start without one.
//!
//! Settings are a file of the measured configuration. `tls`: [`tls`].
#![forbid(unsafe_code)]

mod tls;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use bulla_agent::settings::Settings;

/// Exit codes of container engines.
const OURS: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// In the environment of the helper that renews.
const RENEWER: &str = "BULLA_AGENT_RENEWS";

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let (Some(path), Some(program)) = (words.next(), words.next()) else {
        eprintln!("bulla-agent: usage: bulla-agent SETTINGS PROGRAM [ARGUMENTS]");
        return ExitCode::from(OURS);
    };
    let settings = match Settings::read(path.as_ref()) {
        Ok(settings) => settings,
        Err(error) => return failed(error),
    };
    if std::env::var_os(RENEWER).is_some() {
        // Fails only for the leader of a group, which a child is not.
        let _ = rustix::process::setsid();
        if let Some(tls) = &settings.tls {
            tls::renew(tls);
        }
        return ExitCode::SUCCESS;
    }
    if let Some(tls) = &settings.tls {
        let prepared = tls::prepare(tls).and_then(|()| start_renewer(&path, &program));
        if let Err(error) = prepared {
            return failed(format!("no attested TLS key: {error}"));
        }
    }
    let error = Command::new(&program).args(words).exec();
    eprintln!(
        "bulla-agent: cannot start {}: {error}",
        program.to_string_lossy()
    );
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    })
}

fn failed(reason: impl std::fmt::Display) -> ExitCode {
    eprintln!("bulla-agent: {reason}");
    ExitCode::from(OURS)
}

/// This program once more, as a helper beside what will be the application.
fn start_renewer(settings: &OsString, program: &OsString) -> Result<(), tls::TlsError> {
    let own = std::env::current_exe().map_err(tls::TlsError::Renewer)?;
    Command::new(own)
        .arg(settings)
        .arg(program)
        .env(RENEWER, "1")
        .stdin(std::process::Stdio::null())
        .spawn()
        .map(drop)
        .map_err(tls::TlsError::Renewer)
}
