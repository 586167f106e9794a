//! Any bytes as a coordinator's manifest: what is accepted is accepted again.
#![no_main]

use bulla_coordinator::manifest::{Manifest, check};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok((manifest, warnings)) = Manifest::parse(bytes) {
        assert_eq!(check(&manifest).ok(), Some(warnings));
        let _ = manifest.updaters();
    }
});
