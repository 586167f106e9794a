//! Time. It is the host's; we make it monotonic and avoid asking for it.
//!
//! Between two answers of the host, time follows the TSC at the rate measured between earlier
//! answers. Where RDTSC is not allowed, every reading asks the host.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bulla_abi::hostcall::HostCall;
use bulla_libos::elf::vdso::ClockPage;
use bulla_libos::sync::SpinLock;

use crate::hostcall;

/// How long an answer of the host is extrapolated, in ns.
const FRESH: u64 = 20_000_000;
/// Least time between two answers from which a rate is computed, in ns.
const RATE_SPAN: u64 = 2_000_000;

static USE_TSC: AtomicBool = AtomicBool::new(false);
static LAST: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy)]
struct Base {
    tsc: u64,
    monotonic: u64,
    realtime: u64,
    /// ns per tick, 32.32 fixed point; 0 while unknown.
    rate: u64,
    /// First answer, for the rate.
    first: (u64, u64),
}

static BASE: SpinLock<Base> = SpinLock::new(Base {
    tsc: 0,
    monotonic: 0,
    realtime: 0,
    rate: 0,
    first: (0, 0),
});

/// Allows the TSC. `hz` is the host's word for its rate, until two answers give one; 0 unknown.
pub fn set_tsc(usable: bool, hz: u64) {
    USE_TSC.store(usable, Ordering::Relaxed);
    // Anything outside of 100 MHz … 100 GHz is no TSC.
    if (100_000_000..=100_000_000_000).contains(&hz) {
        BASE.lock().rate = ((1_000_000_000u128 << 32) / u128::from(hz)) as u64;
    }
}

/// For the vDSO: [`BASE`] for those who cannot take its lock.
static PAGE: ClockPage = ClockPage::new();

/// The address of the vDSO's clock page, if programs may read the TSC.
pub fn page() -> Option<u64> {
    let usable = USE_TSC.load(Ordering::Relaxed);
    usable.then_some(core::ptr::from_ref(&PAGE) as u64)
}

fn ask(clock: u64) -> u64 {
    u64::try_from(hostcall::call(HostCall::Clock, [clock, 0, 0, 0])).unwrap_or(0)
}

fn tsc() -> u64 {
    // SAFETY: allowed on this platform, or emulated after a trap.
    unsafe { _rdtsc() }
}

/// (monotonic, realtime) now.
fn now() -> (u64, u64) {
    if !USE_TSC.load(Ordering::Relaxed) {
        return (ask(1), ask(0));
    }
    let base = *BASE.lock();
    if base.rate != 0 && base.monotonic != 0 {
        let passed = (u128::from(tsc().wrapping_sub(base.tsc)) * u128::from(base.rate)) >> 32;
        if passed < u128::from(FRESH) {
            let passed = passed as u64;
            return (base.monotonic + passed, base.realtime + passed);
        }
    }
    let (monotonic, realtime) = (ask(1), ask(0));
    let ticks = tsc();
    let mut shared = BASE.lock();
    if shared.first.0 == 0 {
        shared.first = (ticks, monotonic);
    }
    let old_rate = shared.rate;
    let (first_ticks, first_time) = shared.first;
    let span = monotonic.saturating_sub(first_time);
    if span > RATE_SPAN && ticks > first_ticks {
        shared.rate = ((u128::from(span) << 32) / u128::from(ticks - first_ticks)) as u64;
    }
    // Whoever reads the page must not see time go back either: the new line starts no lower than
    // where the old one is, as far as it was used.
    let mut start = monotonic;
    if shared.rate != 0 && shared.monotonic != 0 {
        let ahead = (u128::from(ticks.wrapping_sub(shared.tsc)) * u128::from(old_rate)) >> 32;
        let ahead = u64::try_from(ahead).unwrap_or(u64::MAX).min(FRESH);
        start = start.max(shared.monotonic.saturating_add(ahead));
    }
    shared.tsc = ticks;
    shared.monotonic = start;
    shared.realtime = realtime;
    if shared.rate != 0 {
        let fresh = (u128::from(FRESH) << 32) / u128::from(shared.rate);
        let fresh = u64::try_from(fresh).unwrap_or(0);
        PAGE.publish([ticks, start, realtime, shared.rate, fresh]);
    }
    (start, realtime)
}

/// Monotonic time in ns; never goes back.
pub fn monotonic() -> u64 {
    let now = now().0;
    let last = LAST.fetch_max(now, Ordering::Relaxed);
    now.max(last)
}

/// Wall-clock time in ns.
pub fn realtime() -> u64 {
    now().1
}
