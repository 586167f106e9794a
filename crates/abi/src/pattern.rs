//! Patterns that host-provided text must match: small enough to be read at a glance, and matched
//! in time proportional to pattern times text, whatever both are.
//!
//! | pattern | matches |
//! |---|---|
//! | `*` | any characters, also none |
//! | `?` | one character |
//! | `[a-z0-9_]`, `[!/]` | one character of a set, or outside of it |
//! | `\x` | x itself |
//! | anything else | itself |
//!
//! The whole text must match. Bytes are compared, so `?` is one byte.

/// Why something is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid(pub &'static str);

impl core::fmt::Display for Invalid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.0)
    }
}

/// One step of a pattern, and the bytes of the pattern after it.
enum Step<'a> {
    Any(&'a [u8]),
    One(Class<'a>, &'a [u8]),
    End,
}

enum Class<'a> {
    Every,
    Byte(u8),
    Set { members: &'a [u8], inverted: bool },
}

impl Class<'_> {
    fn has(&self, byte: u8) -> bool {
        match *self {
            Class::Every => true,
            Class::Byte(wanted) => wanted == byte,
            Class::Set { members, inverted } => {
                let mut found = false;
                let mut rest = members;
                while let [first, tail @ ..] = rest {
                    match tail {
                        [b'-', last, after @ ..] => {
                            found |= (*first..=*last).contains(&byte);
                            rest = after;
                        }
                        _ => {
                            found |= *first == byte;
                            rest = tail;
                        }
                    }
                }
                found != inverted
            }
        }
    }
}

fn step(pattern: &[u8]) -> Result<Step<'_>, Invalid> {
    Ok(match pattern {
        [] => Step::End,
        [b'*', rest @ ..] => Step::Any(rest),
        [b'?', rest @ ..] => Step::One(Class::Every, rest),
        [b'\\', byte, rest @ ..] => Step::One(Class::Byte(*byte), rest),
        [b'\\'] => return Err(Invalid("it ends with a single backslash")),
        [b'[', rest @ ..] => {
            let (inverted, rest) = match rest {
                [b'!' | b'^', rest @ ..] => (true, rest),
                rest => (false, rest),
            };
            // A bracket that comes first is a member.
            let end = rest.iter().skip(1).position(|&byte| byte == b']');
            let end = end.ok_or(Invalid("a [ has no matching ]"))? + 1;
            let members = &rest[..end];
            Step::One(Class::Set { members, inverted }, &rest[end + 1..])
        }
        [byte, rest @ ..] => Step::One(Class::Byte(*byte), rest),
    })
}

/// Whether `pattern` is one.
pub fn check(pattern: &str) -> Result<(), Invalid> {
    let mut rest = pattern.as_bytes();
    loop {
        rest = match step(rest)? {
            Step::End => return Ok(()),
            Step::Any(rest) | Step::One(_, rest) => rest,
        };
    }
}

/// Whether all of `text` matches. An invalid pattern matches nothing.
pub fn matches(pattern: &str, text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern.as_bytes(), text);
    // Where to go on when what follows the last `*` does not match: it takes one byte more.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        let advanced = match step(pattern) {
            Err(_) => return false,
            Ok(Step::End) if text.is_empty() => return true,
            Ok(Step::End) => None,
            Ok(Step::Any(rest)) => {
                retry = Some((rest, text));
                Some((rest, text))
            }
            Ok(Step::One(class, rest)) => match text.split_first() {
                Some((&byte, tail)) if class.has(byte) => Some((rest, tail)),
                _ => None,
            },
        };
        (pattern, text) = match (advanced, retry) {
            (Some(next), _) => next,
            (None, Some((after, from))) => match from.split_first() {
                Some((_, from)) => {
                    retry = Some((after, from));
                    (after, from)
                }
                None => return false,
            },
            (None, None) => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything/at all", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("--port=[0-9]*", "--port=80", true),
            ("--port=[0-9]*", "--port=x", false),
            ("*.conf", "a.conf.conf", true),
            ("*.conf", "a.confx", false),
            ("[!/]*", "/etc", false),
            ("[!/]*", "etc", true),
            ("[]x]", "]", true),
            ("[a-]", "-", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("[a", "a", false),
        ] {
            assert_eq!(
                matches(pattern, text.as_bytes()),
                expected,
                "{pattern:?} {text:?}"
            );
        }
        assert!(check("[a").is_err() && check("a\\").is_err() && check("[]").is_err());
        assert_eq!(check("*[a-z]?\\["), Ok(()));
    }

    #[test]
    fn no_text_takes_exponential_time() {
        let text: String = core::iter::repeat_n('a', 5_000).collect();
        assert!(!matches("*a*a*a*a*a*a*a*a*a*b", text.as_bytes()));
    }
}
