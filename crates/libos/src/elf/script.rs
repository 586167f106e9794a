//! `#!` scripts.

use alloc::vec::Vec;

use crate::Result;
use crate::errno::ENOEXEC;

/// A script's first line.
#[derive(Debug, PartialEq, Eq)]
pub struct Script {
    pub interpreter: Vec<u8>,
    /// Everything after the interpreter, as one argument.
    pub argument: Option<Vec<u8>>,
}

/// Reads the `#!` line at the beginning of a file; `None` when there is none. ENOEXEC when the
/// interpreter's name does not fit into the bytes that execve reads.
pub fn parse(head: &[u8]) -> Result<Option<Script>> {
    let Some(line) = head.strip_prefix(b"#!") else {
        return Ok(None);
    };
    let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let newline = line.iter().position(|&byte| byte == b'\n');
    let whole = newline.is_some() || head.len() < super::parse::HEAD;
    let mut line = &line[..newline.unwrap_or(line.len())];
    if newline.is_none() {
        let end = line
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(line.len());
        line = &line[..end];
    }
    while let [rest @ .., last] = line
        && blank(last)
    {
        line = rest;
    }
    let start = line.iter().position(|byte| !blank(byte)).ok_or(ENOEXEC)?;
    let line = &line[start..];
    let end = line.iter().position(blank);
    if end.is_none() && !whole {
        return Err(ENOEXEC.because("the interpreter's name is cut off"));
    }
    let (name, rest) = line.split_at(end.unwrap_or(line.len()));
    let argument = rest
        .iter()
        .position(|byte| !blank(byte))
        .map(|at| rest[at..].to_vec());
    Ok(Some(Script {
        interpreter: name.to_vec(),
        argument,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        parse(bytes)
            .unwrap()
            .map(|script| (script.interpreter, script.argument))
    }

    #[test]
    fn lines() {
        assert_eq!(line(b"\x7fELF"), None);
        assert_eq!(line(b"#!/bin/sh\necho"), Some((b"/bin/sh".to_vec(), None)));
        assert_eq!(
            line(b"#! /bin/sh  -e x \n"),
            Some((b"/bin/sh".to_vec(), Some(b"-e x".to_vec())))
        );
        assert_eq!(line(b"#!/bin/sh"), Some((b"/bin/sh".to_vec(), None)));
        assert_eq!(parse(b"#! \n"), Err(ENOEXEC));
        let mut long = b"#!/".to_vec();
        long.resize(256, b'a');
        assert_eq!(parse(&long), Err(ENOEXEC));
        long[250] = b' ';
        assert_eq!(line(&long).unwrap().0.len(), 248);
        assert_eq!(line(&[b'#'; 1]), None);
    }
}
