//! What bulla says about itself while a container runs, all on standard error.
//!
//! Warnings about emulation and insecure options cannot be turned off.

use crate::failure::Failure;
use bulla_abi::config::Insecure;
use serde::Serialize;
use serde_json::json;
use std::io::{IsTerminal, Write};

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Text,
    /// One JSON object a line.
    Json,
    /// Warnings and errors only.
    Quiet,
}

/// What is known when an enclave is about to start.
#[derive(Serialize)]
pub struct Start<'a> {
    pub platform: &'a str,
    /// The platform that is imitated, on an emulated one.
    pub profile: Option<&'a str>,
    pub emulated: bool,
    pub layout: &'a str,
    pub mrenclave: String,
    pub mrsigner: String,
    pub image: String,
    pub insecure: Vec<&'static str>,
}

/// Label of a container, and of an image that is built: insecure options, separated by commas.
pub const INSECURE_LABEL: &str = "org.bulla.insecure";

/// The options' names.
pub fn names(options: &[Insecure]) -> Vec<&'static str> {
    options.iter().map(|&option| insecure(option).0).collect()
}

/// An option's name and what it gives away.
pub fn insecure(option: Insecure) -> (&'static str, &'static str) {
    match option {
        Insecure::HostFaults => (
            "insecure_host_faults",
            "the host may lie to the program about the addresses of page faults",
        ),
        Insecure::Exec => (
            "insecure_exec",
            "the host may start programs in the container, which see all its data",
        ),
        Insecure::Debug => ("insecure_debug", "the host can read the enclave's memory"),
        Insecure::Strace => (
            "insecure_strace",
            "the host sees system calls with their arguments",
        ),
        Insecure::Report => (
            "insecure_report",
            "the host sees which system calls and options were refused",
        ),
        Insecure::HostImageKey => (
            "key file of the image",
            "the host has the key of the image's files, so they are secret from others only",
        ),
        Insecure::HostKey => (
            "insecure_host key of a volume",
            "the host knows the key of a protected volume, so it can read and change its files",
        ),
        Insecure::HostFiles => (
            "insecure_passthrough mount",
            "the host sees and may change all files of a directory that it shares",
        ),
        Insecure::HostSecrets => (
            "insecure_host secret",
            "the host knows a secret of the environment",
        ),
        Insecure::Debugger => (
            "insecure_debugger",
            "whoever may debug this process reads and changes the container's memory",
        ),
    }
}

const EMULATED: &str = "the SGX platform is EMULATED: nothing is secret from this machine, and \
    nobody can verify what runs here; use it for development and tests only";

/// Announces the start.
pub fn start(start: &Start, options: &[Insecure], style: Style) {
    if style == Style::Json {
        let mut warnings: Vec<String> = Vec::new();
        if start.emulated {
            warnings.push(EMULATED.to_owned());
        }
        warnings.extend(options.iter().map(|&option| {
            let (name, meaning) = insecure(option);
            format!("{name}: {meaning}")
        }));
        let mut value = json!(start);
        value["event"] = "start".into();
        value["warnings"] = warnings.into();
        line(&value.to_string());
        return;
    }
    if start.emulated {
        warning(EMULATED);
    }
    for &option in options {
        let (name, meaning) = insecure(option);
        warning(&format!("{name} is in use: {meaning}"));
    }
    if style == Style::Text {
        line(&format!(
            "bulla: {} layout, MRENCLAVE {}",
            start.layout, start.mrenclave
        ));
    }
}

/// Announces the end.
pub fn end(code: u8, stats: Option<&bulla_loader::Stats>, style: Style) {
    match (style, stats) {
        (Style::Json, _) => {
            let value = json!({ "event": "end", "exit_code": code, "stats": stats });
            line(&value.to_string());
        }
        (_, Some(stats)) => {
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "{stats}");
        }
        (_, None) => {}
    }
}

/// Reports a failure of bulla's own.
pub fn error(failure: &Failure, json: bool) {
    if json {
        let value = json!({
            "event": "error", "exit_code": failure.code, "message": failure.message,
        });
        line(&value.to_string());
    } else {
        line(&format!("bulla: {failure}"));
    }
}

fn warning(text: &str) {
    let (bold, plain) = match std::io::stderr().is_terminal() {
        true => ("\x1b[1;31m", "\x1b[0m"),
        false => ("", ""),
    };
    line(&format!("{bold}bulla: WARNING: {text}{plain}"));
}

/// One write, so that lines of several processes do not mix.
fn line(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}
