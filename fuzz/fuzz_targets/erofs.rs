//! The EROFS reader on any bytes, as if their hashes were right: no panic, no endless loop.
#![no_main]

#[path = "../../crates/rootfs/tests/common/exercise.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|image: &[u8]| {
    exercise::exercise(image);
});
