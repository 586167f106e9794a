//! Pseudo-terminals: /dev/ptmx and /dev/pts.

use alloc::sync::Arc;

use super::file::FileOps;
use super::path::PathRef;
use super::permission::Caller;
use crate::Result;
use crate::errno::ENXIO;

/// Opens a new master.
pub fn open_master(_path: &PathRef) -> Result<Arc<dyn FileOps>> {
    Err(ENXIO.because("pseudo-terminals are not there yet"))
}

/// Opens the slave of this number.
pub fn open_slave(_caller: &Caller<'_>, _number: u32, _flags: u32) -> Result<Arc<dyn FileOps>> {
    Err(ENXIO)
}

/// The slave that is the controlling terminal of a session.
pub fn controlled_by(_session: u32) -> Option<Arc<dyn FileOps>> {
    None
}

/// Device number and foreground group of a session's terminal.
pub fn of_session(_session: u32) -> Option<(u64, u32)> {
    None
}
