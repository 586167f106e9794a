//! Clocks, scheduling, and what the CPU offers.

use std::arch::x86_64::{__cpuid_count, _rdtsc};

use bulla_abi::hostcall::features;

use super::raw::{Answer, Errno, plain};

/// Time of a clock in ns (through the vDSO).
#[inline]
pub fn clock(id: i32) -> Answer {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid structure to fill in.
    if unsafe { libc::clock_gettime(id, &mut now) } != 0 {
        return Err(Errno(libc::EINVAL));
    }
    Ok(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// The same without the vDSO.
pub fn clock_by_system_call(id: i32) -> Answer {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    plain!(libc::SYS_clock_gettime, id, &raw mut now)?;
    Ok(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

pub fn yield_now() {
    let _ = plain!(libc::SYS_sched_yield);
}

/// This thread's id.
pub fn thread_id() -> i32 {
    plain!(libc::SYS_gettid).unwrap_or(0) as i32
}

/// CPUID: eax, ebx, ecx, edx.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = __cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// What the CPU has, as [`features`] bits.
pub fn cpu_features() -> u64 {
    let mut bits = 0;
    if is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") {
        bits |= features::SHA;
    }
    if is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq") {
        bits |= features::AES;
    }
    if is_x86_feature_detected!("rdrand") {
        bits |= features::RDRAND;
    }
    if is_x86_feature_detected!("vpclmulqdq") {
        bits |= features::VPCLMULQDQ;
    }
    bits
}

/// A moment on both the TSC and the monotonic clock.
#[derive(Clone, Copy)]
pub struct Moment {
    tsc: u64,
    ns: u64,
}

impl Moment {
    pub fn now() -> Moment {
        // The clock is read between two TSC reads; of a few tries the tightest counts.
        let mut best = (u64::MAX, Moment { tsc: 0, ns: 0 });
        for _ in 0..5 {
            // SAFETY: RDTSC is available on every x86-64 CPU and allowed by Linux.
            let before = unsafe { _rdtsc() };
            let ns = clock(libc::CLOCK_MONOTONIC).unwrap_or(0);
            // SAFETY: as above.
            let after = unsafe { _rdtsc() };
            let width = after.wrapping_sub(before);
            if width < best.0 {
                let tsc = before.wrapping_add(width / 2);
                best = (width, Moment { tsc, ns });
            }
        }
        best.1
    }

    /// On the monotonic clock.
    pub fn nanoseconds(self) -> u64 {
        self.ns
    }

    /// TSC frequency in Hz: from the CPU when it says so, else measured from `self` until now.
    /// 0 when the TSC is not invariant.
    pub fn frequency(self) -> u64 {
        // CPUID 80000007H.EDX bit 8: the TSC runs at one rate in all states (SDM vol. 3, 18.17.1).
        let extended = __cpuid_count(0x8000_0000, 0).eax;
        if extended < 0x8000_0007 || __cpuid_count(0x8000_0007, 0).edx & 1 << 8 == 0 {
            return 0;
        }
        // CPUID 15H: TSC = crystal (ecx, Hz) * ebx / eax; fields are 0 when not enumerated.
        if __cpuid_count(0, 0).eax >= 0x15 {
            let ratio = __cpuid_count(0x15, 0);
            if ratio.eax != 0 && ratio.ebx != 0 && ratio.ecx != 0 {
                return u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax);
            }
        }
        // Measured: an error of 50 ns over at least 0.5 ms is 100 ppm, and the enclave soon has a
        // better rate of its own. Loading has usually taken longer.
        const WINDOW_NS: u64 = 500_000;
        let mut now = Moment::now();
        while now.ns.wrapping_sub(self.ns) < WINDOW_NS {
            std::hint::spin_loop();
            now = Moment::now();
        }
        let (ticks, ns) = (now.tsc.wrapping_sub(self.tsc), now.ns - self.ns);
        (u128::from(ticks) * 1_000_000_000 / u128::from(ns)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_and_frequency_are_plausible() {
        assert!(clock(libc::CLOCK_REALTIME).unwrap() > 1_600_000_000_000_000_000);
        assert!(clock(77).is_err());
        let hz = Moment::now().frequency();
        assert!(
            hz == 0 || (500_000_000..10_000_000_000).contains(&hz),
            "{hz}"
        );
    }
}
