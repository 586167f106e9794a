//! Any bytes as what the host tells of its interfaces, addresses and routes.
#![no_main]

use bulla_libos::net::interfaces::check::{What, message};
use bulla_libos::net::interfaces::message::messages;

const KINDS: [What; 5] = [
    What::Link,
    What::Address,
    What::Route,
    What::Neighbour,
    What::Rule,
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&first, stream)) = bytes.split_first() else {
        return;
    };
    let what = KINDS[first as usize % KINDS.len()];
    for (header, body) in messages(stream) {
        let Ok(Some(kept)) = message(what, header.kind, body) else {
            continue;
        };
        // What is kept is of the right form: looked at once more, all of it stays.
        let again = message(what, what.kind(), &kept);
        assert_eq!(again, Ok(Some(kept)), "{what:?}");
    }
});
