//! The first entry: the host's parameters are copied in and validated, the configuration is read,
//! the kernel starts.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bulla_abi::boot::BootHeader;
use bulla_abi::config::Config;
use bulla_abi::hostcall::{BootParams, HostCall, features, platform};
use bulla_abi::input::{self, HostInput};
use bulla_libos::Thread;

use crate::platform::ENCLAVE;
use crate::{hostcall, untrusted};

/// The rootfs file in host memory, and the CPU hints; validated.
pub struct Host {
    pub rootfs: AtomicU64,
    pub rootfs_len: AtomicU64,
    pub features: AtomicU64,
    pub cpus: AtomicU64,
    /// The platform reports page faults in the SSA, by its own word: without it the enclave relies
    /// on less, so that a lie only makes faults fatal.
    pub exinfo: AtomicBool,
}

pub static HOST: Host = Host {
    rootfs: AtomicU64::new(0),
    rootfs_len: AtomicU64::new(0),
    features: AtomicU64::new(0),
    cpus: AtomicU64::new(1),
    exinfo: AtomicBool::new(true),
};

/// Whether faults are reported with their address.
pub fn has_exinfo() -> bool {
    HOST.exinfo.load(Ordering::Relaxed)
}

/// Starts the kernel; the first thread.
pub fn boot(header: &BootHeader, params: u64) -> Arc<Thread> {
    let params = read_params(params);
    let config = read_config(header).admit(&read_input(&params));
    HOST.rootfs.store(params.rootfs, Ordering::Relaxed);
    HOST.rootfs_len.store(params.rootfs_len, Ordering::Relaxed);
    HOST.features.store(params.features, Ordering::Relaxed);
    HOST.cpus
        .store(params.cpus.clamp(1, 1024), Ordering::Relaxed);
    HOST.exinfo
        .store(params.platform & platform::EXINFO != 0, Ordering::Relaxed);
    if params.platform & platform::SITES_TRAP != 0 {
        bulla_libos::mm::sites::keep();
    }
    crate::clock::set_tsc(params.platform & platform::RDTSC != 0, params.tsc_hz);
    if params.features & features::RDRAND == 0 {
        crate::panic::fatal("the CPU has no RDRAND; an enclave cannot run here");
    }
    let config = match config {
        Ok(config) => config,
        Err(refused) => fail(125, &alloc::format!("{refused}")),
    };
    crate::xstate::find_out();
    if let Some(missing) = crate::cpu::first_missing(&config.cpu_features) {
        let message = alloc::format!(
            "this CPU has no {missing}, which the manifest demands; start the container on \
             another machine, or take {missing} out of [cpu] features"
        );
        fail(125, &message);
    }
    match bulla_libos::boot(&ENCLAVE, config) {
        Ok(thread) => thread,
        Err(error) => fail(error.code, &error.message),
    }
}

fn fail(code: u8, message: &str) -> ! {
    log(0, message);
    loop {
        hostcall::call(HostCall::Exit, [u64::from(code) << 8, 0, 0, 0]);
    }
}

/// What the host adds to the configuration: copied in once.
fn read_input(params: &BootParams) -> HostInput {
    if params.input_len == 0 {
        return HostInput::default();
    }
    if params.input_len > input::SIZE_MAX || !untrusted::is_outside(params.input, params.input_len)
    {
        crate::panic::fatal("the host's input is too large or lies inside the enclave");
    }
    let mut bytes = alloc::vec![0u8; params.input_len as usize];
    if untrusted::copy_in(params.input, &mut bytes).is_err() {
        crate::panic::fatal("the host's input cannot be read");
    }
    match HostInput::from_bytes(&bytes) {
        Some(input) => input,
        None => crate::panic::fatal("the host's input is malformed or of another version"),
    }
}

fn read_params(address: u64) -> BootParams {
    let mut params = BootParams::default();
    let mut bytes = [0u8; size_of::<BootParams>()];
    if untrusted::copy_in(address, &mut bytes).is_err() {
        crate::panic::fatal("the host gave no boot parameters");
    }
    let word = |index: usize| {
        let mut word = [0u8; 8];
        word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
        u64::from_le_bytes(word)
    };
    params.size = word(0);
    params.rootfs = word(1);
    params.rootfs_len = word(2);
    params.features = word(3);
    params.cpus = word(4);
    params.tsc_hz = word(5);
    params.platform = word(6);
    params.host_pid = word(7);
    params.input = word(8);
    params.input_len = word(9);
    if params.size != size_of::<BootParams>() as u64 {
        crate::panic::fatal("loader and enclave are of different versions; rebuild both");
    }
    if !untrusted::is_outside(params.rootfs, params.rootfs_len) {
        crate::panic::fatal("the host's root file system lies inside the enclave");
    }
    params
}

fn read_config(header: &BootHeader) -> Config {
    // SAFETY: configuration pages of the image, read-only and verified by the bootstrap.
    let bytes = unsafe {
        core::slice::from_raw_parts(header.config_start as *const u8, header.config_len as usize)
    };
    match Config::from_bytes(bytes) {
        Some(config) => config,
        None => crate::panic::fatal("the configuration is malformed or of another version"),
    }
}

/// A line for the host's log.
pub fn log(level: u8, message: &str) {
    let bytes = &message.as_bytes()[..message.len().min(4096)];
    if hostcall::put(0, bytes).is_ok() {
        hostcall::call(HostCall::Log, [bytes.len() as u64, u64::from(level), 0, 0]);
    }
}
