//! Any text as a template of a manifest: it ends, and within its bounds.
#![no_main]

use std::collections::BTreeMap;

use bulla_coordinator::secrets::Secret;
use bulla_coordinator::template::{Data, Functions, Reserved, render};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let secret = || Secret::of_certificate(vec![1, 2, 3], None);
    let secrets = BTreeMap::from([("a".to_owned(), secret()), ("b".to_owned(), secret())]);
    let reserved = Reserved {
        root_ca: secret(),
        marble_cert: secret(),
        coordinator_root: secret(),
        coordinator_intermediate: secret(),
    };
    let data = Data {
        secrets: &secrets,
        previous: &BTreeMap::new(),
        reserved: &reserved,
    };
    for functions in [Functions::Files, Functions::Environment] {
        if let Ok(text) = render(bytes, functions, &data) {
            assert!(text.len() <= (64 << 20) + bytes.len());
        }
    }
});
