//! What happens, a line each on standard error: for people, or JSON for machines.
//!
//! Fields are names, addresses, codes and reasons, never bodies, headers or values; they are escaped
//! and bounded, since strangers choose some of them.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};

/// Longer fields serve nobody, and strangers could fill the disk with them.
const MOST_FIELD: usize = 300;

static AS_JSON: AtomicBool = AtomicBool::new(false);

/// Whether lines are JSON from now on.
pub fn as_json(is_json: bool) {
    AS_JSON.store(is_json, Ordering::Relaxed);
}

pub fn event(name: &str, fields: &[(&str, &dyn Display)]) {
    eprintln!("{}", line(name, fields, AS_JSON.load(Ordering::Relaxed)));
}

fn line(name: &str, fields: &[(&str, &dyn Display)], is_json: bool) -> String {
    let quoted = |text: &str| serde_json::Value::from(bounded(text)).to_string();
    if !is_json {
        let mut line = format!("bulla coordinator: {name}");
        for (key, value) in fields {
            line += &format!(" {key}={}", quoted(&value.to_string()));
        }
        return line;
    }
    let mut line = format!(
        "{{\"time\":{},\"event\":{}",
        quoted(&crate::core::now()),
        quoted(name)
    );
    for (key, value) in fields {
        line += &format!(",{}:{}", quoted(key), quoted(&value.to_string()));
    }
    line + "}"
}

fn bounded(text: &str) -> &str {
    match text.char_indices().nth(MOST_FIELD) {
        Some((at, _)) => &text[..at],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_send_stays_one_bounded_line() {
        let hostile = format!("a\n{{\"event\":\"forged\"}}\x1b[31m{}", "x".repeat(1000));
        for is_json in [false, true] {
            let line = line("refused", &[("reason", &hostile), ("code", &7)], is_json);
            assert!(!line.contains(['\n', '\x1b']), "{line}");
            assert!(line.len() < 800, "{line}");
        }
        let line = line("refused", &[("reason", &hostile)], true);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["event"], "refused");
    }
}
