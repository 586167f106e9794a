//! Any bytes as a tar archive.
#![no_main]

use bulla_oci::tar::{Reader, Seekable};
use libfuzzer_sys::fuzz_target;
use std::io::Cursor;

fuzz_target!(|bytes: &[u8]| {
    let Ok(source) = Seekable::new(Cursor::new(bytes)) else {
        return;
    };
    let mut reader = Reader::new(source);
    let mut entries = 0;
    while let Ok(Some(entry)) = reader.next_entry() {
        let stored: u64 = entry.segments.iter().map(|segment| segment.len).sum();
        assert!(stored <= bytes.len() as u64);
        entries += 1;
        assert!(entries <= bytes.len() / 512 + 1);
    }
});
