//! RLIMIT_CPU: SIGXCPU at the soft limit and every second beyond it, SIGKILL at the hard one.

use alloc::sync::{Arc, Weak};

use super::SECOND_NS;
use super::timers::{Expire, Timer, now};
use crate::process::Process;
use crate::process::limits::{RLIM_INFINITY, Resource};
use crate::signal::send::{Origin, to_process};
use crate::signal::{SIGKILL, SIGXCPU, SigInfo};
use crate::sync::SpinLock;

/// How long (ns) until the clock is looked at again, at most and at least: threads may run side by
/// side, or stand still.
const LOOK_MAX: u64 = 100_000_000;
const LOOK_MIN: u64 = 1_000_000;

/// Watches one process's CPU time.
pub struct CpuLimit {
    process: Weak<Process>,
    timer: Arc<Timer>,
    /// CPU time (ns) of the next SIGXCPU; 0 before the first.
    next: SpinLock<u64>,
}

impl CpuLimit {
    /// Starts to watch.
    pub fn start(process: &Arc<Process>) -> Arc<CpuLimit> {
        let limit = Arc::new(CpuLimit {
            process: Arc::downgrade(process),
            timer: Timer::new(),
            next: SpinLock::new(0),
        });
        let target: Weak<dyn Expire> = Arc::<Self>::downgrade(&limit);
        limit.timer.arm(now() + LOOK_MIN, target);
        limit
    }
}

impl Expire for CpuLimit {
    fn expire(&self, now: u64) -> Option<u64> {
        let process = self
            .process
            .upgrade()
            .filter(|process| !process.has_ended())?;
        let limit = process.limits.get(Resource::Cpu);
        if limit.soft == RLIM_INFINITY && limit.hard == RLIM_INFINITY {
            return None;
        }
        let used = process.cpu_time();
        // A limit of 0 means one second (setrlimit(2)).
        let ns = |seconds: u64| seconds.max(1).saturating_mul(SECOND_NS);
        let (soft, hard) = (ns(limit.soft), ns(limit.hard));
        if used >= hard {
            let _ = to_process(&process, SigInfo::kernel(SIGKILL), Origin::Host);
            return None;
        }
        let mut next = self.next.lock();
        *next = (*next).max(soft);
        let due = used >= *next;
        if due {
            *next = next.saturating_add(SECOND_NS);
        }
        let left = (*next).min(hard).saturating_sub(used);
        drop(next);
        if due {
            let _ = to_process(&process, SigInfo::kernel(SIGXCPU), Origin::Inside);
        }
        Some(now.saturating_add(left.clamp(LOOK_MIN, LOOK_MAX)))
    }
}
