//! `bulla-agent SETTINGS PROGRAM [ARGUMENTS]`: runs inside the enclave, before the application.
//!
//! It is an ordinary program of the container: it prepares what its settings ask for, leaves a
//! helper behind where something must be renewed, and then *becomes* the application (execve), which
//! so stays process 1 with its own arguments. What it fails at ends the container: an application
//! that expects an attested key must not start without one.
//!
//! Settings are a file of the measured configuration. `tls`: [`tls`]; `coordinator`: [`marble`].
#![forbid(unsafe_code)]

mod files;
mod marble;
mod tls;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use bulla_agent::settings::Settings;

/// Exit codes of container engines.
const OURS: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Where this program is (bulla_abi::config::AGENT).
const AGENT: &str = "/run/bulla/agent";

/// In the environment of the helper that renews.
pub const RENEWER: &str = "BULLA_AGENT_RENEWS";

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
        renew(&settings);
        return ExitCode::SUCCESS;
    }
    // The coordinator first where there are no files to put a key among before.
    let is_sealed = settings
        .coordinator
        .as_ref()
        .is_some_and(|coordinator| coordinator.image_key.is_some());
    let prepare = || settings.tls.as_ref().map_or(Ok(()), tls::prepare);
    if !is_sealed && let Err(error) = prepare() {
        return failed(format!("no attested TLS key: {error}"));
    }
    let activated = match settings
        .coordinator
        .as_ref()
        .map(marble::activate)
        .transpose()
    {
        Ok(activated) => activated,
        Err(error) => {
            eprintln!("bulla-agent: not activated: {error}");
            return ExitCode::from(error.exit_code());
        }
    };
    if is_sealed && let Err(error) = prepare() {
        return failed(format!("no attested TLS key: {error}"));
    }
    if settings.tls.is_some() || activated.is_some() {
        let uuid = activated
            .as_ref()
            .map(|activated| activated.uuid.to_string());
        let environment = activated.as_ref().map(|activated| &activated.env);
        if let Err(error) = start_renewer(&path, &program, uuid, environment) {
            return failed(format!("the helper that renews cannot be started: {error}"));
        }
    }
    let mut arguments: Vec<OsString> = words.collect();
    let mut program = program;
    let mut environment = Default::default();
    if let Some(activated) = activated {
        environment = activated.env;
        let mut argv = activated.argv.into_iter().map(OsString::from);
        if let Some(first) = argv.next() {
            program = first;
            arguments = argv.collect();
        }
    }
    let error = become_application(&program, &arguments, environment);
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

fn become_application(
    program: &OsStr,
    arguments: &[OsString],
    environment: BTreeMap<String, OsString>,
) -> io::Error {
    Command::new(program)
        .args(arguments)
        .envs(environment)
        .exec()
}

/// This program once more, as a helper beside what will be the application.
/// `environment`: what the coordinator gave, for `reload_command`.
fn start_renewer(
    settings: &OsStr,
    program: &OsStr,
    uuid: Option<String>,
    environment: Option<&BTreeMap<String, OsString>>,
) -> io::Result<()> {
    // Its own place, also where the root has changed since it began.
    let mut renewer = Command::new(AGENT);
    renewer
        .arg(settings)
        .arg(program)
        .envs(environment.into_iter().flatten())
        .env(RENEWER, "1");
    if let Some(uuid) = uuid {
        renewer.env(marble::UUID, uuid);
    }
    renewer.stdin(std::process::Stdio::null()).spawn().map(drop)
}

/// Renews what the settings ask for, for ever.
fn renew(settings: &Settings) {
    std::thread::scope(|scope| {
        if let Some(tls) = &settings.tls {
            scope.spawn(|| tls::renew(tls));
        }
        let uuid = std::env::var(marble::UUID).ok();
        if let (Some(coordinator), Some(uuid)) = (
            &settings.coordinator,
            uuid.and_then(|uuid| uuid.parse().ok()),
        ) {
            scope.spawn(move || marble::renew(coordinator, uuid));
        }
    });
}
