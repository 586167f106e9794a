//! Choosing the platform: SGX where it is there and wanted, else the emulator.

use crate::args::{Platform, PlatformArguments};
use crate::failure::Failure;
use crate::state::State;
use bulla_loader::backend::Backend;
use bulla_loader::backend::emulated::{Emulated, Profile};
use bulla_loader::backend::hardware::Hardware;
use std::path::Path;

/// The driver's device; its absence means that enclaves cannot be made here.
pub const ENCLAVE_DEVICE: &str = "/dev/sgx_enclave";

/// What the emulated platform imitates unless told otherwise.
const DEFAULT_PROFILE: &str = "full";

/// A platform that is ready to make an enclave.
pub struct Opened {
    pub backend: Box<dyn Backend>,
    /// The machine that is imitated, on the emulated platform.
    pub profile: Option<&'static str>,
}

/// Opens the platform that the arguments ask for.
pub fn open(arguments: &PlatformArguments) -> Result<Opened, Failure> {
    let hardware = match arguments.platform {
        Platform::Hardware => true,
        Platform::Emulated => false,
        // Only a device that can be opened counts; `doctor` says what is in its way.
        Platform::Auto if arguments.profile.is_some() => false,
        Platform::Auto => std::fs::File::open(ENCLAVE_DEVICE).is_ok(),
    };
    if !hardware {
        return emulated(arguments);
    }
    if arguments.profile.is_some() {
        return Err(Failure::new("--profile is for the emulated platform only"));
    }
    if arguments.examine_exits || arguments.emulate_with_seccomp {
        return Err(Failure::new(
            "--examine-exits and --emulate-with-seccomp are for the emulated platform only",
        ));
    }
    if !Path::new(ENCLAVE_DEVICE).exists() {
        return Err(Failure::new(format!(
            "there is no {ENCLAVE_DEVICE}: this machine offers no SGX to Linux; `bulla doctor` \
             says why, `--platform emulated` runs without secrecy"
        )));
    }
    open_hardware()
}

fn open_hardware() -> Result<Opened, Failure> {
    let backend = Hardware::open().map_err(Failure::new)?;
    Ok(Opened {
        backend: Box::new(backend),
        profile: None,
    })
}

fn emulated(arguments: &PlatformArguments) -> Result<Opened, Failure> {
    let profile = match arguments.profile.as_deref() {
        // Whatever the emulator can do: programs find the most there.
        None => DEFAULT_PROFILE,
        Some(name) => name,
    };
    let profile = Profile::named(profile).ok_or_else(|| {
        let names: Vec<&str> = Profile::NAMED.iter().map(|profile| profile.name).collect();
        Failure::new(format!(
            "no profile is called {profile:?}; there are {}",
            names.join(", ")
        ))
    })?;
    let mut machine = profile;
    machine.examined = arguments.examine_exits;
    machine.seccomp = arguments.emulate_with_seccomp;
    let backend = Emulated::new(machine, &State::of_user().emulated_fuses());
    Ok(Opened {
        backend: Box::new(backend.map_err(Failure::new)?),
        profile: Some(profile.name),
    })
}
