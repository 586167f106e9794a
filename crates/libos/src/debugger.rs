//! `bulla run --gdb`: tells the host's debugger which objects are mapped where.
//!
//! Only on request ([`Insecure::Debugger`]), which is measured and announced. Programs and
//! libraries that are mapped for execution are brought in as a whole first: a breakpoint in a page
//! that comes in later would be overwritten.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use bulla_abi::config::Insecure;
use bulla_abi::hostcall::log_level;

use crate::Thread;
use crate::kernel::kernel;
use crate::mm::MapLine;
use crate::platform::{Protection, platform};
use crate::sync::SpinLock;

/// What has been announced: address and path.
static ANNOUNCED: SpinLock<BTreeSet<(u64, String)>> = SpinLock::new(BTreeSet::new());
static ATTACHED: AtomicBool = AtomicBool::new(false);

/// Whether a debugger wants to know.
pub fn is_wanted() -> bool {
    kernel().config.insecure.contains(&Insecure::Debugger)
}

/// Tells of what is new in the thread's address space; the first time, waits until the debugger
/// has attached. The address space must be resident.
pub fn announce(thread: &Arc<Thread>) {
    let mm = thread.mm();
    let root = thread.fs().root();
    let lines = mm.maps();
    let path = |line: &MapLine| {
        let path = line.path.as_ref()?.display_path(&root);
        Some(String::from_utf8_lossy(&path).into_owned())
    };
    for (index, line) in lines.iter().enumerate() {
        if !line.protection.contains(Protection::EXECUTE) || line.shared {
            continue;
        }
        let Some(name) = path(line) else { continue };
        // The object begins with the mapping of the file's first byte, at or below.
        let same = |other: &&MapLine| other.file == line.file && other.path.is_some();
        let first = lines[..=index]
            .iter()
            .rev()
            .filter(same)
            .find(|other| other.offset == 0);
        let Some(first) = first else { continue };
        if !ANNOUNCED.lock().insert((first.start, name.clone())) {
            continue;
        }
        for part in lines.iter().filter(same) {
            if part.start >= first.start && !part.protection.is_empty() {
                // What cannot be brought in now is not there for the debugger either.
                let _ = mm.populate(&(part.start..part.end));
            }
        }
        platform().log(log_level::OBJECT, &format!("{:x} {name}", first.start));
    }
    if !ATTACHED.swap(true, Ordering::SeqCst) {
        platform().log(log_level::ATTACH, "");
    }
}
