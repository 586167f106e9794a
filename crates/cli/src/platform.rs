//! Choosing the platform: SGX where it is there and wanted, else the emulator.

use crate::args::{Platform, PlatformArguments};
use crate::failure::Failure;
use bulla_loader::backend::Backend;
use std::path::Path;

/// The driver's device; its absence means that enclaves cannot be made here.
pub const ENCLAVE_DEVICE: &str = "/dev/sgx_enclave";

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
        return emulated(arguments.profile.as_deref());
    }
    if arguments.profile.is_some() {
        return Err(Failure::new("--profile is for the emulated platform only"));
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
    let backend = bulla_loader::backend::hardware::Hardware::open().map_err(Failure::new)?;
    Ok(Opened {
        backend: Box::new(backend),
        profile: None,
    })
}

fn emulated(_profile: Option<&str>) -> Result<Opened, Failure> {
    Err(Failure::new("this build has no emulated platform"))
}
