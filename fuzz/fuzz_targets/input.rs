//! Any bytes as what the host adds to a configuration: nothing enters that is not allowed.
#![no_main]

use bulla_abi::config::{Config, HostPolicy, HostVariable};
use bulla_abi::input::{ExecRequest, HostInput};
use bulla_abi::pattern;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (&[u8], &str)| {
    let (bytes, text) = data;
    let _ = ExecRequest::from_bytes(bytes);
    let Some(input) = HostInput::from_bytes(bytes) else {
        return;
    };
    let _ = pattern::check(text);
    let locked = Config::default().admit(&input);
    if locked.is_ok() {
        assert!(input.arguments.is_none() && input.environment.is_empty());
    }
    let config = Config {
        host: HostPolicy {
            arguments: Some(vec![text.into()]),
            environment: vec![HostVariable {
                name: "A".into(),
                pattern: text.into(),
                required: false,
            }],
            hostname: true,
            resolver: true,
            exec: false,
            secrets: Vec::new(),
        },
        ..Config::default()
    };
    if let Ok(admitted) = config.admit(&input) {
        for word in &admitted.argv {
            assert!(pattern::matches(text, word) && !word.contains(&0));
        }
        for file in &admitted.files {
            assert!(!file.content.contains(&0) && std::str::from_utf8(&file.content).is_ok());
        }
    }
});
