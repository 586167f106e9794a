//! The service thread: runs timers. It belongs to no process of the
//! container.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;

use super::timers;
use crate::Thread;
use crate::fs::context::FsContext;
use crate::fs::table::FdTable;
use crate::mm::AddressSpace;
use crate::platform::platform;
use crate::process::Process;
use crate::process::thread::{StartState, Work};

static SERVICE: Once<Arc<Thread>> = Once::new();
static SPAWNED: AtomicBool = AtomicBool::new(false);

fn service_thread() -> &'static Arc<Thread> {
    SERVICE.call_once(|| {
        let start = StartState {
            registers: Default::default(),
            fs_base: 0,
            fpu: None,
        };
        let process = Process::new(0, AddressSpace::new());
        let thread = Arc::new(Thread::new(
            0,
            process,
            Arc::new(FdTable::default()),
            Arc::new(FsContext::default()),
            start,
        ));
        *thread.name.lock() = b"timers".to_vec();
        thread
    })
}

/// Whether a thread that the platform is given to run is the service thread: the runtime calls
/// [`service_loop`] on it instead of entering user code.
pub fn is_service(thread: &Thread) -> bool {
    thread.process.pid == 0
}

/// The first deadline has changed: wakes the service thread, or starts it when there is none yet.
/// A container without timers needs no slot for it.
pub fn wake() {
    let thread = service_thread();
    if !SPAWNED.swap(true, Ordering::SeqCst) && platform().spawn(thread.clone()).is_err() {
        SPAWNED.store(false, Ordering::SeqCst);
        platform().log(
            0,
            "no thread slot is left for timers: raise `threads` in the manifest",
        );
    }
    thread.notify();
}

/// Runs timers until the container ends.
pub fn service_loop(thread: &Arc<Thread>) -> ! {
    loop {
        let seen = thread.event_count();
        // A kick has no other purpose than to end the sleep.
        thread.clear_work(Work::all());
        let next = timers::run_timers(platform().monotonic());
        platform().sleep(thread, seen, next);
    }
}
