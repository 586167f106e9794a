//! Collateral for a real quote.
#![no_main]

use bulla_attest::{Collateral, verify};

static GENUINE: &[u8] = include_bytes!("../../crates/attest/tests/data/sgx_quote");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(collateral) = Collateral::from_json(bytes) {
        let _ = collateral.next_update();
        let _ = verify(GENUINE, &collateral, 1_751_328_000);
        let again = Collateral::from_json(collateral.to_json().as_bytes());
        assert_eq!(again.ok(), Some(collateral));
    }
});
