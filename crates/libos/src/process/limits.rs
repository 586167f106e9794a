//! Resource limits (getrlimit, prlimit64).

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Result;
use crate::errno::{EINVAL, EPERM};
use crate::fs::procfs::Setting;
use crate::sync::SpinLock;

pub const RLIM_INFINITY: u64 = u64::MAX;

/// `struct rlimit64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

const fn both(value: u64) -> Limit {
    Limit {
        soft: value,
        hard: value,
    }
}

/// Resources, with Linux's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Resource {
    Cpu = 0,
    FileSize = 1,
    Data = 2,
    Stack = 3,
    Core = 4,
    ResidentSet = 5,
    Processes = 6,
    Files = 7,
    LockedMemory = 8,
    AddressSpace = 9,
    Locks = 10,
    PendingSignals = 11,
    MessageQueues = 12,
    Nice = 13,
    RealTimePriority = 14,
    RealTimeTime = 15,
}

/// Number of resources.
pub const RESOURCES: usize = 16;

/// Most descriptors that a process may be allowed (/proc/sys/fs/nr_open).
pub static FILES_MAX: Setting = Setting::between(1 << 20, 64, 1 << 20);

/// A process's limits. The defaults are those of a container under Docker.
pub struct Limits(SpinLock<[Limit; RESOURCES]>);

impl Default for Limits {
    fn default() -> Limits {
        let mut limits = [both(RLIM_INFINITY); RESOURCES];
        limits[Resource::Stack as usize].soft = 8 << 20;
        // Core files only where a program asks for them.
        limits[Resource::Core as usize].soft = 0;
        // Tables that programs make for every possible descriptor, and loops that close them all,
        // stay short; servers raise it.
        limits[Resource::Files as usize] = Limit {
            soft: 1 << 16,
            hard: 1 << 20,
        };
        limits[Resource::PendingSignals as usize] = both(crate::signal::pending::QUEUE_MAX as u64);
        limits[Resource::MessageQueues as usize] = both(819_200);
        limits[Resource::Nice as usize] = both(0);
        limits[Resource::RealTimePriority as usize] = both(0);
        Limits(SpinLock::new(limits))
    }
}

impl Limits {
    /// fork: the same limits.
    pub fn copy_from(&self, other: &Limits) {
        let limits = *other.0.lock();
        *self.0.lock() = limits;
    }

    pub fn get(&self, resource: Resource) -> Limit {
        self.0.lock()[resource as usize]
    }

    /// By Linux's number; EINVAL.
    pub fn get_by_number(&self, resource: u32) -> Result<Limit> {
        self.0
            .lock()
            .get(resource as usize)
            .copied()
            .ok_or(EINVAL.because("no such resource"))
    }

    /// Sets a limit. EPERM when the hard limit would rise and the caller has no right to.
    pub fn set_by_number(&self, resource: u32, limit: Limit, may_raise: bool) -> Result<()> {
        let mut limits = self.0.lock();
        let old = limits
            .get_mut(resource as usize)
            .ok_or(EINVAL.because("no such resource"))?;
        if limit.soft > limit.hard {
            return Err(EINVAL.because("soft limit above the hard one"));
        }
        if limit.hard > old.hard && !may_raise {
            return Err(EPERM.because("raising a hard limit needs CAP_SYS_RESOURCE"));
        }
        *old = limit;
        Ok(())
    }

    /// Most open files (RLIMIT_NOFILE).
    pub fn files(&self) -> usize {
        self.get(Resource::Files).soft.min(FILES_MAX.value()) as usize
    }

    /// Stack size (RLIMIT_STACK).
    pub fn stack(&self) -> u64 {
        self.get(Resource::Stack).soft
    }
}
