//! Any text as a manifest: errors are fine, panics are not.
#![no_main]

use bulla_image::manifest::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(manifest) = Manifest::parse(text) {
        manifest.check().expect("what was accepted is still right");
    }
});
