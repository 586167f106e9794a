//! `bulla run` of an image that is known already, as fast as it can be.
//!
//! Most of `bulla` is for other things, and the mere start of so large a program takes longer than
//! what there is to do before the enclave starts. So `bulla` becomes `bulla-run` if that lies beside it
//! (see `sys/entry.rs` of the loader). Whatever is not plain sailing goes back to `bulla`: an image that
//! has to be read, a mistake in the arguments, a `bulla` of another build.

use crate::args::{RunAlone, RunArguments};
use crate::failure::Failure;
use crate::{run, workload};
use bulla_loader::{WHOLE, is_of_this_build};
use clap::Parser;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// What the name of `bulla`'s file is without.
const SUFFIX: &str = "-run";

/// The arguments of a well-formed `bulla run`, without the definition of all other commands, whose
/// making takes longer than what `run` itself does before its enclave starts. Anything else is
/// left to the whole definition, which knows what to say.
pub fn arguments() -> Option<Box<RunArguments>> {
    if std::env::args_os().nth(1)? != "run" {
        return None;
    }
    let RunAlone::Run(arguments) = RunAlone::try_parse().ok()?;
    Some(arguments)
}

/// Runs the command if the image is known; its result, and whether that is to be told as JSON.
pub fn run() -> Option<(Result<u8, Failure>, bool)> {
    if !is_ours(&whole().ok()?) {
        return None;
    }
    let arguments = arguments()?;
    let stored = workload::known(&arguments.workload)?;
    // As `ps` and `pkill` know it.
    let _ = rustix::thread::set_name(c"bulla");
    let result = run::run(&arguments, |workload| {
        workload::prepare_stored(workload, stored)
    });
    Some((result, arguments.json))
}

/// Becomes `bulla`; returns if that cannot be.
pub fn leave_to_whole() -> Failure {
    let whole = match whole() {
        Ok(whole) => whole,
        Err(error) => return Failure::new(format!("cannot find this program's file: {error}")),
    };
    let mut words = std::env::args_os();
    let mut command = std::process::Command::new(&whole);
    command.arg0(words.next().unwrap_or_else(|| OsString::from("bulla")));
    let error = command.args(words).env(WHOLE, "1").exec();
    Failure::new(format!(
        "{}: {error}; bulla-run is a part of bulla: install both in one directory",
        whole.display()
    ))
}

/// The file of `bulla`, whichever of the two this is.
pub fn whole() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let name = own.file_name().and_then(|name| name.to_str());
    Ok(match name.and_then(|name| name.strip_suffix(SUFFIX)) {
        Some(name) => own.with_file_name(name),
        None => own,
    })
}

/// Whether a program is of this build: one that was installed later knows another enclave.
fn is_ours(path: &Path) -> bool {
    let mut beginning = [0; 4096];
    let read = File::open(path).and_then(|mut file| file.read(&mut beginning));
    read.is_ok_and(|len| is_of_this_build(&beginning[..len]))
}
