//! RA-TLS certificates: none made of random bytes is approved.
#![no_main]

use std::sync::Arc;

use bulla_attest::ratls::{Approver, CertificateEvidence};
use bulla_attest::{Judge, NoSource, Policy};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = CertificateEvidence::of_certificate(bytes, 1_751_328_000);
    let judge = Judge {
        policy: Policy {
            insecure_any_enclave: true,
            ..Policy::default()
        },
        source: Arc::new(NoSource),
        disclosed: None,
    };
    assert!(judge.approve(bytes, 1_751_328_000).is_err());
});
