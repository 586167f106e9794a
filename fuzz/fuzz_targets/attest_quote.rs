//! Quotes: decoding, and verifying against real collateral; nothing altered is accepted.
#![no_main]

use bulla_attest::{Collateral, Quote, verify};

static COLLATERAL: &[u8] =
    include_bytes!("../../crates/attest/tests/data/sgx_quote_collateral.json");
static GENUINE: &[u8] = include_bytes!("../../crates/attest/tests/data/sgx_quote");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if Quote::decode(bytes).is_ok() {
        let collateral = Collateral::from_json(COLLATERAL).expect("it is real");
        if let Ok(evidence) = verify(bytes, &collateral, 1_751_328_000) {
            let genuine = verify(GENUINE, &collateral, 1_751_328_000).expect("it is genuine");
            assert!(evidence == genuine || evidence.platform == bulla_attest::Platform::Emulated);
        }
    }
});
