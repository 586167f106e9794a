//! The first process.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use bulla_abi::config::Config;

use crate::Thread;
use crate::kernel::BootError;

fn ours(message: String) -> BootError {
    BootError { code: 125, message }
}

/// Builds process 1 from the configuration.
pub fn first_thread(config: &Config) -> Result<Arc<Thread>, BootError> {
    let _ = config;
    Err(ours(format!("no program loader yet")))
}
