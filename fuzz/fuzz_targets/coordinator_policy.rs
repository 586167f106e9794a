//! Any bytes as a signed or encrypted manifest: nothing that is not signed counts as signed.
#![no_main]

use std::sync::OnceLock;

use bulla_coordinator::policy::{PolicyKey, open};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static KEY: OnceLock<PolicyKey> = OnceLock::new();
    let key = KEY.get_or_init(|| PolicyKey::of_root(b"root").expect("there is one"));
    if let Ok(policy) = open(bytes, key) {
        for signature in &policy.signatures {
            assert!(!signature.is_by(b"nobody's certificate", ""));
        }
    }
});
