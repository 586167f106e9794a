//! The kernel: its global state and the runtime's entry points.

use alloc::sync::Arc;

use bulla_abi::config::Config;
use spin::Once;

use crate::platform::{Exception, Platform};
use crate::process::thread::Work;
use crate::{Registers, Result, Thread, syscall};

/// Global state. Everything else hangs off processes.
pub struct Kernel {
    pub config: Config,
}

static KERNEL: Once<Kernel> = Once::new();

/// The kernel; set by [`boot`].
pub fn kernel() -> &'static Kernel {
    KERNEL
        .get()
        .expect("boot builds the kernel before anything else runs")
}

/// Why the first process could not be started.
#[derive(Debug)]
pub struct BootError {
    /// Exit code for the container: 125 ours, 126 not executable, 127 not found.
    pub code: u8,
    /// One line that names the thing, the reason and the remedy.
    pub message: alloc::string::String,
}

/// Builds the kernel and the first process; the thread's `start` state is its first instruction.
pub fn boot(
    platform: &'static dyn Platform,
    config: Config,
) -> core::result::Result<Arc<Thread>, BootError> {
    crate::platform::set_platform(platform);
    KERNEL.call_once(|| Kernel { config });
    Err(BootError {
        code: 125,
        message: "no program loader yet".into(),
    })
}

/// What the runtime does next with a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Return to user code with the registers as they are.
    User,
    /// The thread has ended: its slot is free.
    Exit,
}

/// One system call of user code.
pub fn handle_syscall(thread: &Arc<Thread>, registers: &mut Registers) {
    syscall::dispatch(thread, registers);
}

/// A fault of user code.
pub fn handle_exception(_thread: &Arc<Thread>, _registers: &mut Registers, _exception: Exception) {}

/// Before user code runs (again): call when the thread's work word is not 0, and before the first
/// entry to user code.
pub fn before_user(thread: &Arc<Thread>, _registers: &mut Registers) -> Next {
    if thread.work().contains(Work::EXIT) {
        Next::Exit
    } else {
        Next::User
    }
}

/// Signals that the host forwards to the container (bit n−1 = signal n).
pub fn host_signals(_mask: u64) -> Result<()> {
    Ok(())
}
