//! Policies: what is read accepts nothing that is not named.
#![no_main]

use bulla_attest::Policy;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(policy) = Policy::from_toml(bytes) {
        for accept in &policy.accept {
            assert!(
                !accept.mrenclave.is_empty()
                    || !accept.mrsigner.is_empty()
                    || !accept.rootfs.is_empty()
                    || !accept.image.is_empty()
                    || !accept.mrtd.is_empty()
            );
        }
    }
});
