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
    let (mut entries, mut stored) = (0, 0);
    // Whether an entry's content is there shows when it is skipped: the next call fails if not.
    while let Ok(next) = reader.next_entry() {
        assert!(stored <= bytes.len() as u64);
        let Some(entry) = next else {
            return;
        };
        stored = entry.segments.iter().map(|segment| segment.len).sum();
        entries += 1;
        assert!(entries <= bytes.len() / 512 + 1);
    }
});
