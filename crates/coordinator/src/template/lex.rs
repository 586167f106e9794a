//! Splits a template into text and actions, and actions into tokens.

use super::TemplateError;

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// `.`
    Dot,
    /// `.name`
    Field(String),
    /// `$`, `$name`
    Variable(String),
    /// A keyword, function, `true`, `false` or `nil`.
    Word(String),
    Text(Vec<u8>),
    Int(i64),
    Float(f64),
    Pipe,
    Open,
    Close,
    Comma,
    /// `=`
    Assign,
    /// `:=`
    Declare,
}

/// A token, and whether white space stood before it: `.a.b` is one operand, `.a .b` are two.
#[derive(Debug, Clone, PartialEq)]
pub struct Spaced {
    pub token: Token,
    pub spaced: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Text(Vec<u8>),
    Action { tokens: Vec<Spaced>, line: usize },
}

fn error(line: usize, reason: impl Into<String>) -> TemplateError {
    TemplateError::Parse {
        line,
        reason: reason.into(),
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

pub fn pieces(input: &[u8]) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut trim_next = false;
    let line_of = |at: usize| 1 + input[..at].iter().filter(|b| **b == b'\n').count();
    loop {
        let start = find(&input[at..], b"{{").map(|offset| at + offset);
        let mut text = &input[at..start.unwrap_or(input.len())];
        if trim_next {
            text = trim_start(text);
        }
        let Some(start) = start else {
            push_text(&mut pieces, text);
            return Ok(pieces);
        };
        let line = line_of(start);
        let mut inner = start + 2;
        if input.get(inner) == Some(&b'-') && input.get(inner + 1).copied().is_some_and(is_space) {
            text = trim_end(text);
            inner += 2;
        }
        push_text(&mut pieces, text);
        let body = &input[inner..];
        let (tokens, used) = match comment(body, line)? {
            Some(used) => (None, used),
            None => {
                let (tokens, used) = action(body, line)?;
                (Some(tokens), used)
            }
        };
        at = inner + used;
        trim_next = input[at..].starts_with(b"-}}");
        at += if trim_next { 3 } else { 2 };
        if let Some(tokens) = tokens {
            pieces.push(Piece::Action { tokens, line });
        }
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: &[u8]) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_vec()));
    }
}

fn trim_start(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|b| is_space(**b)).count();
    &text[spaces..]
}

fn trim_end(text: &[u8]) -> &[u8] {
    let spaces = text.iter().rev().take_while(|b| is_space(**b)).count();
    &text[..text.len() - spaces]
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// A comment fills its action: `{{/* … */}}`. Returns where the closing delimiter begins.
fn comment(body: &[u8], line: usize) -> Result<Option<usize>, TemplateError> {
    if !body.starts_with(b"/*") {
        return Ok(None);
    }
    let end = find(body, b"*/").ok_or_else(|| error(line, "unclosed comment"))? + 2;
    let rest = &body[end..];
    if rest.starts_with(b"}}") {
        return Ok(Some(end));
    }
    if rest.first().copied().is_some_and(is_space) && rest[1..].starts_with(b"-}}") {
        return Ok(Some(end + 1));
    }
    Err(error(line, "comment ends before closing delimiter"))
}

/// Tokens up to the closing delimiter, and where that begins.
fn action(body: &[u8], line: usize) -> Result<(Vec<Spaced>, usize), TemplateError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    let mut spaced = false;
    while at < body.len() {
        let rest = &body[at..];
        if rest.starts_with(b"}}") || (spaced && rest.starts_with(b"-}}")) {
            return Ok((tokens, at));
        }
        if is_space(rest[0]) {
            spaced = true;
            at += 1;
            continue;
        }
        let (token, used) = token(rest, line)?;
        tokens.push(Spaced { token, spaced });
        spaced = false;
        at += used;
    }
    Err(error(line, "unclosed action"))
}

fn token(rest: &[u8], line: usize) -> Result<(Token, usize), TemplateError> {
    let word = |from: usize| {
        let text = String::from_utf8_lossy(&rest[from..]).into_owned();
        text.chars()
            .take_while(|c| *c == '_' || c.is_alphanumeric())
            .collect::<String>()
    };
    let single = |token| Ok((token, 1));
    match rest[0] {
        b'|' => single(Token::Pipe),
        b'(' => single(Token::Open),
        b')' => single(Token::Close),
        b',' => single(Token::Comma),
        b'=' => single(Token::Assign),
        b':' if rest.get(1) == Some(&b'=') => Ok((Token::Declare, 2)),
        b'"' => quoted(rest, line),
        b'`' => {
            let end = rest[1..]
                .iter()
                .position(|b| *b == b'`')
                .ok_or_else(|| error(line, "unterminated raw quoted string"))?;
            Ok((Token::Text(rest[1..=end].to_vec()), end + 2))
        }
        b'\'' => {
            let (token, used) = quoted_by(rest, b'\'', line)?;
            let text = String::from_utf8_lossy(&token).into_owned();
            let mut chars = text.chars();
            match (chars.next(), chars.next()) {
                (Some(c), None) => Ok((Token::Int(i64::from(u32::from(c))), used)),
                _ => Err(error(line, "malformed character constant")),
            }
        }
        b'$' => {
            let name = word(1);
            let used = 1 + name.len();
            Ok((Token::Variable(format!("${name}")), used))
        }
        b'.' if !rest.get(1).is_some_and(u8::is_ascii_digit) => {
            let name = word(1);
            match name.is_empty() {
                true => single(Token::Dot),
                false => Ok((Token::Field(name.clone()), 1 + name.len())),
            }
        }
        b'0'..=b'9' | b'+' | b'-' | b'.' => number(rest, line),
        _ => {
            let name = word(0);
            match name.is_empty() {
                true => Err(error(
                    line,
                    format!("unexpected {:?} in command", char::from(rest[0])),
                )),
                false => {
                    let used = name.len();
                    Ok((Token::Word(name), used))
                }
            }
        }
    }
}

fn number(rest: &[u8], line: usize) -> Result<(Token, usize), TemplateError> {
    let used = rest
        .iter()
        .enumerate()
        .take_while(|(i, b)| {
            b.is_ascii_alphanumeric()
                || **b == b'.'
                || **b == b'_'
                || (matches!(b, b'+' | b'-')
                    && (*i == 0 || matches!(rest[i - 1], b'e' | b'E' | b'p')))
        })
        .count();
    let text = String::from_utf8_lossy(&rest[..used]).replace('_', "");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(&text)),
    };
    let lower = digits.to_ascii_lowercase();
    let integer = if let Some(hex) = lower.strip_prefix("0x") {
        i64::from_str_radix(hex, 16).ok()
    } else if let Some(octal) = lower.strip_prefix("0o") {
        i64::from_str_radix(octal, 8).ok()
    } else if let Some(binary) = lower.strip_prefix("0b") {
        i64::from_str_radix(binary, 2).ok()
    } else if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit())
    {
        i64::from_str_radix(&lower, 8).ok()
    } else {
        lower.parse().ok()
    };
    if let Some(value) = integer {
        return Ok((Token::Int(sign * value), used));
    }
    text.parse()
        .map(|value| (Token::Float(value), used))
        .map_err(|_| error(line, format!("bad number syntax: {text:?}")))
}

fn quoted(rest: &[u8], line: usize) -> Result<(Token, usize), TemplateError> {
    quoted_by(rest, b'"', line).map(|(text, used)| (Token::Text(text), used))
}

/// A quoted constant with Go's escapes; returns its bytes and its length with quotes.
fn quoted_by(rest: &[u8], quote: u8, line: usize) -> Result<(Vec<u8>, usize), TemplateError> {
    let unterminated = || error(line, "unterminated quoted string");
    let bad = || error(line, "invalid escape in quoted string");
    let mut out = Vec::new();
    let mut at = 1;
    loop {
        let byte = *rest.get(at).ok_or_else(unterminated)?;
        at += 1;
        match byte {
            b if b == quote => return Ok((out, at)),
            b'\n' => return Err(unterminated()),
            b'\\' => {
                let escape = *rest.get(at).ok_or_else(unterminated)?;
                at += 1;
                let mut digits = |count: usize, radix: u32| {
                    let text = rest.get(at..at + count).ok_or_else(bad)?;
                    at += count;
                    let text = std::str::from_utf8(text).map_err(|_| bad())?;
                    u32::from_str_radix(text, radix).map_err(|_| bad())
                };
                match escape {
                    b'a' => out.push(7),
                    b'b' => out.push(8),
                    b'f' => out.push(12),
                    b'n' => out.push(b'\n'),
                    b'r' => out.push(b'\r'),
                    b't' => out.push(b'\t'),
                    b'v' => out.push(11),
                    b'\\' => out.push(b'\\'),
                    b'\'' | b'"' if escape == quote => out.push(quote),
                    b'x' => out.push(digits(2, 16)? as u8),
                    b'u' | b'U' => {
                        let count = if escape == b'u' { 4 } else { 8 };
                        let c = char::from_u32(digits(count, 16)?).ok_or_else(bad)?;
                        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                    b'0'..=b'7' => {
                        at -= 1;
                        let text = rest.get(at..at + 3).ok_or_else(bad)?;
                        at += 3;
                        let text = std::str::from_utf8(text).map_err(|_| bad())?;
                        out.push(u8::from_str_radix(text, 8).map_err(|_| bad())?);
                    }
                    _ => return Err(bad()),
                }
            }
            other => out.push(other),
        }
    }
}
