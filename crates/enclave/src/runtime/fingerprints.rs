//! Fingerprints of pages, by the key of this run.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use bulla_abi::hostcall::features;
use bulla_enclave::fingerprint::{self, Key, Width};
use bulla_libos::Platform;
use bulla_libos::cpuid::{AVX, AVX512};
use spin::Once;

use crate::boot::HOST;
use crate::platform::Enclave;
use crate::xstate;

static KEY: Once<Box<Key>> = Once::new();

/// See [`Platform::fingerprints`].
pub fn find(pages: &[u8], of: &mut [u128]) -> bool {
    let hints = HOST.features.load(Ordering::Relaxed);
    let Some(width) = width(hints, xstate::offered()) else {
        return false;
    };
    let key = KEY.call_once(|| {
        let mut seed = [0; 32];
        Enclave.random(&mut seed);
        Box::new(Key::from_seed(hints, &seed))
    });
    // SAFETY: the registers are this enclave's. VPCLMULQDQ is the host's word: a lie makes the CPU
    // fault and the enclave stop.
    unsafe { fingerprint::of_pages(width, key, pages, of) };
    true
}

/// The widest registers there are for VPCLMULQDQ.
fn width(hints: u64, offered: u64) -> Option<Width> {
    if hints & features::VPCLMULQDQ == 0 {
        None
    } else if offered & AVX512 == AVX512 {
        Some(Width::Zmm)
    } else if offered & AVX != 0 {
        Some(Width::Ymm)
    } else {
        None
    }
}
