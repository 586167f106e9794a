//! `bulla`: run unmodified container images in SGX enclaves.
//!
//! One module per command; [`workload`] and [`enclave`] are shared by those that deal with an
//! enclave. Nothing is initialised that a command does not need: `bulla run` starts a small program
//! in a few milliseconds.
//!
//! Three programs are made of it: `bulla`; `bulla-start`, which is what a confidential image brings
//! along: it can start that image and nothing else, and is a fraction of the size; and `bulla-run`,
//! which takes over from `bulla run` where nothing but the start is left to do, see [`quick`].
#![forbid(unsafe_code)]

mod agent;
mod args;
mod banner;
mod build;
mod cache;
mod check;
mod cluster;
mod containers;
mod coordinator;
mod coordinator_args;
mod debugger;
mod diff;
mod disclose;
mod doctor;
mod doctor_attestation;
mod enclave;
mod exec;
mod failure;
mod image_key;
mod import;
mod in_enclave;
mod inspect;
mod keys;
mod manifest;
mod measure;
mod platform;
mod proxy;
mod quick;
mod quoter;
mod registry;
mod run;
mod settle;
mod sign;
mod start;
mod state;
mod verify;
mod volumes;
mod workload;

use args::{Arguments, Command};
use clap::{CommandFactory, Parser, error::ErrorKind};
use failure::{BULLA_FAILED, Failure};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

/// The program `bulla`.
pub fn main() -> ExitCode {
    let quick = quick::arguments().map(|arguments| Arguments {
        command: Command::Run(arguments),
    });
    let arguments = match quick.map_or_else(parse, Ok) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let (result, json) = match &arguments.command {
        Command::Run(arguments) => (run::run(arguments, workload::prepare), arguments.json),
        Command::Measure(arguments) => (measure::run(arguments).map(|()| 0), false),
        Command::Inspect(arguments) => (inspect::run(arguments).map(|()| 0), false),
        Command::Build(arguments) => (build::run(arguments).map(|()| 0), false),
        Command::Sign(arguments) => (sign::run(arguments).map(|()| 0), false),
        Command::Diff(arguments) => (diff::run(arguments), false),
        Command::Pull(arguments) => (registry::pull(arguments).map(|()| 0), false),
        Command::Push(arguments) => (registry::push(arguments).map(|()| 0), false),
        Command::Images(arguments) => (registry::images(arguments).map(|()| 0), false),
        Command::Check(arguments) => (check::run(arguments), false),
        Command::Cache(arguments) => (cache::run(arguments).map(|()| 0), false),
        Command::Ps(arguments) => (containers::ps(arguments).map(|()| 0), false),
        Command::Logs(arguments) => (containers::logs(arguments).map(|()| 0), false),
        Command::Stop(arguments) => (containers::stop(arguments).map(|()| 0), false),
        Command::Kill(arguments) => (containers::kill(arguments).map(|()| 0), false),
        Command::Rm(arguments) => (containers::rm(arguments).map(|()| 0), false),
        Command::Wait(arguments) => (containers::wait(arguments).map(|()| 0), false),
        Command::Exec(arguments) => (exec::run(arguments), false),
        Command::Start(arguments) => (start::run(arguments), false),
        Command::Manifest(arguments) => (manifest::run(arguments).map(|()| 0), false),
        Command::Coordinator(arguments) => (coordinator::run(arguments), false),
        Command::Status(contact) => (cluster::status(contact).map(|()| 0), false),
        Command::Certificate { kind, contact } => {
            (cluster::certificate(*kind, contact).map(|()| 0), false)
        }
        Command::Secret(command) => (cluster::secret(command).map(|()| 0), false),
        Command::Namespace(command) => (cluster::namespace(command).map(|()| 0), false),
        Command::Audit(command) => (cluster::audit(command).map(|()| 0), false),
        Command::Revoke(arguments) => (cluster::revoke(arguments).map(|()| 0), false),
        Command::Recover(arguments) => (cluster::recover(arguments).map(|()| 0), false),
        Command::Import(arguments) => (import::run(arguments).map(|()| 0), false),
        Command::Doctor(arguments) => (doctor::run(arguments), false),
        Command::Verify(arguments) => (verify::run(arguments), false),
        Command::Proxy(arguments) => (proxy::run(arguments).map(|()| 0), false),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "bulla", &mut script);
            (print(&String::from_utf8_lossy(&script)).map(|()| 0), false)
        }
    };
    exit(result, json)
}

/// The program `bulla-start`.
pub fn main_of_image() -> ExitCode {
    match parse::<start::Program>() {
        Ok(start::Program::Start(arguments)) => exit(start::run(&arguments), false),
        Err(code) => code,
    }
}

/// The program `bulla-run`.
pub fn main_of_run() -> ExitCode {
    match quick::run() {
        Some((result, json)) => exit(result, json),
        None => exit(Err(quick::leave_to_whole()), false),
    }
}

fn parse<A: Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        let _ = error.print();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
            _ => ExitCode::from(BULLA_FAILED),
        }
    })
}

fn exit(result: Result<u8, Failure>, json: bool) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            banner::error(&failure, json);
            ExitCode::from(failure.code)
        }
    }
}

/// Writes to standard output; a reader that has gone away is no error.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(format!(
            "cannot write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::new)?;
    print(&(text + "\n"))
}
