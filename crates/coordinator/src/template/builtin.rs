//! The functions of templates: Go's own, and those that encode secrets.

use super::Functions;
use super::value::{Part, Value};
use crate::manifest::SecretType;
use crate::x509::pem;
use base64::{Engine, prelude::BASE64_STANDARD};
use std::cmp::Ordering;

pub fn exists(name: &str, functions: Functions) -> bool {
    match name {
        "pem" | "hex" | "base64" => true,
        "raw" => functions == Functions::Files,
        "string" => functions == Functions::Environment,
        "and" | "or" | "not" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "len" | "index"
        | "slice" | "print" | "printf" | "println" | "html" | "js" | "urlquery" => true,
        _ => false,
    }
}

/// Calls a function. `and` and `or` get all their arguments evaluated; none has side effects.
pub fn call<'a>(name: &str, args: &[Value<'a>]) -> Result<Value<'a>, String> {
    let text = |text: String| Ok(Value::Text(text.into_bytes()));
    match name {
        "pem" => encode_pem(one(args)?),
        "hex" => text(hex::encode(secret_bytes(one(args)?)?)),
        "base64" => text(BASE64_STANDARD.encode(secret_bytes(one(args)?)?)),
        "raw" => Ok(Value::Text(secret_bytes(one(args)?)?)),
        "string" => plain_string(one(args)?),
        "and" => Ok(first_by(args, |value| !value.truth())?),
        "or" => Ok(first_by(args, Value::truth)?),
        "not" => Ok(Value::Bool(!one(args)?.truth())),
        "eq" => {
            let (first, rest) = args
                .split_first()
                .ok_or("missing argument for comparison")?;
            if rest.is_empty() {
                return Err("missing argument for comparison".to_owned());
            }
            for other in rest {
                if compare(first, other)? == Some(Ordering::Equal) {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        "ne" => two(args, |a, b| Ok(compare(a, b)? != Some(Ordering::Equal))),
        "lt" => two(args, |a, b| Ok(ordered(a, b)? == Ordering::Less)),
        "le" => two(args, |a, b| Ok(ordered(a, b)? != Ordering::Greater)),
        "gt" => two(args, |a, b| Ok(ordered(a, b)? == Ordering::Greater)),
        "ge" => two(args, |a, b| Ok(ordered(a, b)? != Ordering::Less)),
        "len" => match one(args)? {
            Value::Text(text) => Ok(Value::Int(text.len() as i64)),
            Value::Part(_, bytes) => Ok(Value::Int(bytes.len() as i64)),
            Value::Secrets(map) => Ok(Value::Int(map.len() as i64)),
            _ => Err("len of this type".to_owned()),
        },
        "index" => index(args),
        "slice" => slice(args),
        "print" => Ok(Value::Text(print(args)?)),
        "println" => {
            let mut parts = Vec::new();
            for arg in args {
                parts.push(arg.print()?);
            }
            Ok(Value::Text([parts.join(&b' '), b"\n".to_vec()].concat()))
        }
        "printf" => printf(args),
        "html" => text(
            String::from_utf8_lossy(&print(args)?)
                .replace('\0', "\u{fffd}")
                .replace('&', "&amp;")
                .replace('"', "&#34;")
                .replace('\'', "&#39;")
                .replace('<', "&lt;")
                .replace('>', "&gt;"),
        ),
        "js" => text(escape_js(&String::from_utf8_lossy(&print(args)?))),
        "urlquery" => text(escape_query(&print(args)?)),
        other => Err(format!("function {other:?} not defined")),
    }
}

fn one<'v, 'a>(args: &'v [Value<'a>]) -> Result<&'v Value<'a>, String> {
    match args {
        [value] => Ok(value),
        _ => Err(format!("wrong number of args: want 1 got {}", args.len())),
    }
}

fn two<'a>(
    args: &[Value<'a>],
    test: impl FnOnce(&Value<'a>, &Value<'a>) -> Result<bool, String>,
) -> Result<Value<'a>, String> {
    match args {
        [a, b] => Ok(Value::Bool(test(a, b)?)),
        _ => Err(format!("wrong number of args: want 2 got {}", args.len())),
    }
}

fn first_by<'a>(
    args: &[Value<'a>],
    stop: impl Fn(&Value<'a>) -> bool,
) -> Result<Value<'a>, String> {
    args.iter()
        .find(|value| stop(value))
        .or(args.last())
        .cloned()
        .ok_or_else(|| "wrong number of args: want at least 1 got 0".to_owned())
}

/// The bytes of a secret or of a part of it; a bare secret stands for its public bytes.
fn secret_bytes(value: &Value<'_>) -> Result<Vec<u8>, String> {
    let bytes: &[u8] = match value {
        Value::Secret(secret) => &secret.public,
        Value::Part(_, bytes) => bytes,
        Value::Nil | Value::Missing => return Err("secret does not exist".to_owned()),
        _ => return Err("invalid secret type".to_owned()),
    };
    match bytes.is_empty() {
        true => Err("tried to parse secret with empty value".to_owned()),
        false => Ok(bytes.to_vec()),
    }
}

fn encode_pem<'a>(value: &Value<'a>) -> Result<Value<'a>, String> {
    let (label, bytes) = match value {
        Value::Part(Part::Cert, bytes) => ("CERTIFICATE", bytes),
        Value::Part(Part::Private, bytes) => ("PRIVATE KEY", bytes),
        Value::Part(Part::Public, bytes) => ("PUBLIC KEY", bytes),
        Value::Nil | Value::Missing => return Err("secret does not exist".to_owned()),
        _ => return Err("invalid secret type for pem encoding".to_owned()),
    };
    match bytes.is_empty() {
        true => Err("tried to parse secret with empty value".to_owned()),
        false => Ok(Value::Text(pem(label, bytes).into_bytes())),
    }
}

fn plain_string<'a>(value: &Value<'a>) -> Result<Value<'a>, String> {
    let Value::Secret(secret) = value else {
        return Err(match value {
            Value::Nil | Value::Missing => "secret does not exist",
            _ => "invalid secret type",
        }
        .to_owned());
    };
    if secret.spec.secret_type() != SecretType::Plain {
        return Err("invalid secret type".to_owned());
    }
    if secret.public.contains(&0) {
        return Err("secret contains null bytes".to_owned());
    }
    secret_bytes(value).map(Value::Text)
}

/// Go's eq: equal kinds only; `None` for values that cannot be equal.
fn compare(a: &Value<'_>, b: &Value<'_>) -> Result<Option<Ordering>, String> {
    Ok(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Part(_, a), Value::Part(_, b)) => Some(a.cmp(b)),
        (Value::Nil | Value::Missing, Value::Nil | Value::Missing) => Some(Ordering::Equal),
        (Value::Nil | Value::Missing, _) | (_, Value::Nil | Value::Missing) => None,
        _ => return Err("incompatible types for comparison".to_owned()),
    })
}

fn ordered(a: &Value<'_>, b: &Value<'_>) -> Result<Ordering, String> {
    match (a, b) {
        (Value::Int(_), Value::Int(_))
        | (Value::Float(_), Value::Float(_))
        | (Value::Text(_), Value::Text(_)) => {
            compare(a, b)?.ok_or_else(|| "invalid type for comparison".to_owned())
        }
        _ => Err("invalid type for comparison".to_owned()),
    }
}

fn index<'a>(args: &[Value<'a>]) -> Result<Value<'a>, String> {
    let (first, rest) = args.split_first().ok_or("index of untyped nil")?;
    let mut value = first.clone();
    for key in rest {
        value = match (&value, key) {
            (Value::Secrets(_), Value::Text(key)) => value.field(&String::from_utf8_lossy(key))?,
            (Value::Text(text), Value::Int(at)) => byte_at(text, *at)?,
            (Value::Part(_, bytes), Value::Int(at)) => byte_at(bytes, *at)?,
            (Value::Nil | Value::Missing, _) => return Err("index of nil pointer".to_owned()),
            _ => return Err("can't index item of this type".to_owned()),
        };
    }
    Ok(value)
}

fn byte_at<'a>(bytes: &[u8], at: i64) -> Result<Value<'a>, String> {
    usize::try_from(at)
        .ok()
        .and_then(|at| bytes.get(at))
        .map(|byte| Value::Int(i64::from(*byte)))
        .ok_or_else(|| format!("index out of range: {at}"))
}

fn slice<'a>(args: &[Value<'a>]) -> Result<Value<'a>, String> {
    let (first, rest) = args.split_first().ok_or("slice of untyped nil")?;
    let bytes: &[u8] = match first {
        Value::Text(text) => text,
        Value::Part(_, bytes) => bytes,
        _ => return Err("can't slice item of this type".to_owned()),
    };
    let mut bounds = [0, bytes.len()];
    if rest.len() > 2 {
        return Err("too many slice indexes".to_owned());
    }
    for (bound, value) in bounds.iter_mut().zip(rest) {
        *bound = match value {
            Value::Int(at) => {
                usize::try_from(*at).map_err(|_| format!("index out of range: {at}"))?
            }
            _ => return Err("cannot index slice with this type".to_owned()),
        };
    }
    let part = bytes
        .get(bounds[0]..bounds[1])
        .ok_or_else(|| format!("invalid slice index: {} > {}", bounds[0], bounds[1]))?;
    Ok(Value::Text(part.to_vec()))
}

/// Go's Sprint: a space between operands when neither is a string.
fn print(args: &[Value<'_>]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut previous_text = true;
    for (number, arg) in args.iter().enumerate() {
        let is_text = matches!(arg, Value::Text(_));
        if number > 0 && !is_text && !previous_text {
            out.push(b' ');
        }
        out.extend(arg.print()?);
        previous_text = is_text;
    }
    Ok(out)
}

fn printf<'a>(args: &[Value<'a>]) -> Result<Value<'a>, String> {
    let Some((Value::Text(format), rest)) = args.split_first() else {
        return Err("printf needs a format".to_owned());
    };
    let mut rest = rest.iter();
    let mut out = Vec::new();
    let mut bytes = format.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let zero = bytes.next_if_eq(&b'0').is_some();
        let mut width = 0usize;
        while let Some(digit) = bytes.next_if(u8::is_ascii_digit) {
            width = (width * 10 + usize::from(digit - b'0')).min(4096);
        }
        let verb = bytes.next().ok_or("%!(NOVERB)")?;
        if verb == b'%' {
            out.push(b'%');
            continue;
        }
        let value = rest
            .next()
            .ok_or_else(|| format!("printf: missing argument for %{}", char::from(verb)))?;
        let text = match (verb, value) {
            (b'v', value) => value.print()?,
            (b's', Value::Text(text)) => text.clone(),
            (b's', Value::Part(_, bytes)) => bytes.to_vec(),
            (b'd', Value::Int(value)) => value.to_string().into_bytes(),
            (b'x', Value::Int(value)) => format!("{value:x}").into_bytes(),
            (b'X', Value::Int(value)) => format!("{value:X}").into_bytes(),
            (b'x', Value::Text(text)) => hex::encode(text).into_bytes(),
            (b'x', Value::Part(_, bytes)) => hex::encode(bytes).into_bytes(),
            (b'X', Value::Text(text)) => hex::encode_upper(text).into_bytes(),
            (b'q', Value::Text(text)) => {
                format!("{:?}", String::from_utf8_lossy(text)).into_bytes()
            }
            (b't', Value::Bool(value)) => value.to_string().into_bytes(),
            (b'f', Value::Float(value)) => format!("{value:.6}").into_bytes(),
            (b'g', Value::Float(value)) => value.to_string().into_bytes(),
            (b'c', Value::Int(value)) => u32::try_from(*value)
                .ok()
                .and_then(char::from_u32)
                .unwrap_or('\u{fffd}')
                .to_string()
                .into_bytes(),
            (verb, _) => return Err(format!("printf: %{} of this type", char::from(verb))),
        };
        let fill = if zero { b'0' } else { b' ' };
        out.extend(std::iter::repeat_n(fill, width.saturating_sub(text.len())));
        out.extend(text);
    }
    match rest.next() {
        Some(_) => Err("printf: too many arguments".to_owned()),
        None => Ok(Value::Text(out)),
    }
}

fn escape_js(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' => out.push_str("\\u003C"),
            '>' => out.push_str("\\u003E"),
            '&' => out.push_str("\\u0026"),
            '=' => out.push_str("\\u003D"),
            c if c < ' ' => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

fn escape_query(text: &[u8]) -> String {
    let mut out = String::new();
    for byte in text {
        match byte {
            b if b.is_ascii_alphanumeric() || b"-_.~".contains(b) => out.push(char::from(*b)),
            b' ' => out.push('+'),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}
