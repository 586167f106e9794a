//! Printing one argument, and what a call returned.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use super::flags::{self, Table};
use super::signatures::{self, Kind};
use super::structures;
use crate::mm::AddressSpace;
use crate::user::read_string;
use crate::{Result, syscall::table::ROWS};

/// Characters of a string that are shown, as strace's `-s 32`.
const STRING_MAX: usize = 32;
/// Elements of an array that are shown.
pub(super) const ELEMENTS_MAX: usize = 32;

/// A call to print.
pub struct View<'a> {
    pub mm: &'a AddressSpace,
    pub arguments: &'a [u64; 6],
    /// Once it has returned.
    pub result: Option<&'a Result<usize>>,
}

impl View<'_> {
    fn argument(&self, index: usize) -> u64 {
        self.arguments.get(index).copied().unwrap_or(0)
    }

    fn has_failed(&self) -> bool {
        matches!(self.result, Some(Err(_)))
    }

    /// Bytes of the program's memory.
    pub fn bytes<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.mm.read(address, &mut bytes).ok()?;
        Some(bytes)
    }

    fn some_bytes(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = alloc::vec![0; len];
        self.mm.read(address, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// Writes argument `index`.
pub fn write(out: &mut String, kind: &Kind, index: usize, view: &View<'_>) {
    let value = view.argument(index);
    let _ = match *kind {
        Kind::Int => match value {
            // An int, or a long.
            0xffff_ffff_8000_0000..=0xffff_ffff_ffff_ffff => write!(out, "{}", value as i64),
            0x8000_0000..=0xffff_ffff => write!(out, "{}", value as u32 as i32),
            _ => write!(out, "{}", value as i64),
        },
        Kind::Size => write!(out, "{value}"),
        Kind::Address => {
            address(out, value);
            Ok(())
        }
        Kind::Hex => hex(out, value),
        Kind::Descriptor => write!(out, "{}", value as i32),
        Kind::Directory => match value as i32 {
            -100 => out.write_str("AT_FDCWD"),
            fd => write!(out, "{fd}"),
        },
        Kind::Mode => match value & 0xffff_ffff {
            0 => out.write_str("000"),
            bits => write!(out, "{:03}", format!("0{bits:o}")),
        },
        Kind::User => match value as u32 {
            u32::MAX => out.write_str("-1"),
            id => write!(out, "{id}"),
        },
        Kind::Flags(table) => {
            self::flags(out, table, value & 0xffff_ffff, "0");
            Ok(())
        }
        Kind::Choice(table) => {
            choice(out, table, value);
            Ok(())
        }
        Kind::OpenFlags => {
            open_flags(out, value);
            Ok(())
        }
        Kind::Mapping => {
            choice(out, flags::MAP_TYPE, value & 0xf);
            more_flags(out, flags::MAP, value & 0xffff_fff0);
            Ok(())
        }
        Kind::Clone => {
            clone_arguments(out, view.arguments);
            Ok(())
        }
        Kind::Signal => out.write_str(&structures::signal_name(value as u32)),
        Kind::Futex => {
            futex_operation(out, value as u32);
            Ok(())
        }
        Kind::Fcntl => {
            choice(out, flags::FCNTL, value & 0xffff_ffff);
            Ok(())
        }
        Kind::FcntlArgument => {
            fcntl_argument(out, view.argument(index - 1) as u32, value, view);
            Ok(())
        }
        Kind::Ioctl => {
            choice(out, flags::IOCTL, value & 0xffff_ffff);
            Ok(())
        }
        Kind::SocketType => {
            choice(out, flags::SOCKET_TYPE, value & 0xf);
            more_flags(out, flags::SOCKET_FLAGS, value & 0xffff_fff0);
            Ok(())
        }
        Kind::Protocol => match view.argument(0) {
            2 | 10 => {
                choice(out, flags::PROTOCOL_IP, value & 0xffff_ffff);
                Ok(())
            }
            _ => write!(out, "{}", value as i32),
        },
        Kind::Level => {
            choice(out, flags::LEVEL, value & 0xffff_ffff);
            Ok(())
        }
        Kind::Option => {
            let table = match view.argument(index - 1) as u32 {
                0 => flags::OPTION_IP,
                1 => flags::OPTION_SOCKET,
                6 => flags::OPTION_TCP,
                41 => flags::OPTION_IPV6,
                _ => &[],
            };
            choice(out, table, value & 0xffff_ffff);
            Ok(())
        }
        Kind::Prctl => {
            choice(out, flags::PRCTL, value & 0xffff_ffff);
            Ok(())
        }
        Kind::Key => match value as u32 {
            number @ 0..0x8000_0000 => write!(out, "{number}"),
            _ => {
                choice(out, flags::KEY_SPECIAL, value & 0xffff_ffff);
                Ok(())
            }
        },
        Kind::KeyArgument => {
            let kinds = signatures::of_keyctl(view.argument(0));
            if let Some(kind) = kinds.get(index - 1) {
                write(out, kind, index, view);
            }
            Ok(())
        }
        // All others are behind a pointer.
        _ => {
            if value == 0 {
                out.push_str("NULL");
            } else if kind.is_output() && !is_filled_in(kind, view)
                || behind(out, *kind, index, value, view).is_none()
            {
                address(out, value);
            }
            Ok(())
        }
    };
}

/// Whether the call wrote what the pointer leads to.
fn is_filled_in(kind: &Kind, view: &View<'_>) -> bool {
    match kind {
        Kind::OutputRemaining => view.has_failed(),
        _ => !view.has_failed(),
    }
}

/// Writes what `value` points to; `None` (and nothing written) when it cannot be read.
fn behind(out: &mut String, kind: Kind, index: usize, value: u64, view: &View<'_>) -> Option<()> {
    let done = || view.result.and_then(|result| result.ok()).unwrap_or(0);
    match kind {
        Kind::Text => string(out, view.mm, value),
        Kind::Input => {
            let len = view.argument(index + 1) as usize;
            let shown = view.some_bytes(value, len.min(STRING_MAX))?;
            quoted(out, &shown, len > STRING_MAX);
            Some(())
        }
        Kind::Output => {
            let shown = view.some_bytes(value, done().min(STRING_MAX))?;
            quoted(out, &shown, done() > STRING_MAX);
            Some(())
        }
        Kind::OutputText => string(out, view.mm, value),
        Kind::InputVector => {
            structures::write_vector(out, value, view.argument(index + 1), usize::MAX, view)
        }
        Kind::OutputVector => {
            structures::write_vector(out, value, view.argument(index + 1), done(), view)
        }
        Kind::Words => words(out, value, view),
        Kind::Environment => {
            let count = (0..4096)
                .take_while(|at| {
                    let word = view.bytes::<8>(value.wrapping_add(at * 8));
                    word.is_some_and(|word| u64::from_le_bytes(word) != 0)
                })
                .count();
            let plural = if count == 1 { "" } else { "s" };
            let _ = write!(out, "{value:#x} /* {count} var{plural} */");
            Some(())
        }
        _ => structures::write(out, kind, index, value, view),
    }
}

/// An address, or NULL.
pub fn address(out: &mut String, value: u64) {
    let _ = match value {
        0 => out.write_str("NULL"),
        _ => write!(out, "{value:#x}"),
    };
}

fn hex(out: &mut String, value: u64) -> core::fmt::Result {
    match value {
        0 => out.write_str("0"),
        _ => write!(out, "{value:#x}"),
    }
}

/// The name of a value.
pub fn choice(out: &mut String, table: Table, value: u64) {
    // ints are sign-extended by some callers and not by others.
    let low = value & 0xffff_ffff;
    let found = table
        .iter()
        .find(|(known, _)| *known == value || *known & 0xffff_ffff == low);
    let _ = match found {
        Some((_, name)) => out.write_str(name),
        None => write!(out, "{low:#x} /* ??? */"),
    };
}

/// Names of bits; where none is set, the name of 0 in the table, or `zero`.
pub fn flags(out: &mut String, table: Table, value: u64, zero: &str) {
    if value == 0 {
        let named = table.iter().find(|(bits, _)| *bits == 0);
        out.push_str(named.map_or(zero, |(_, name)| name));
        return;
    }
    let start = out.len();
    more_flags(out, table, value);
    // The bar in front of the first.
    out.remove(start);
}

/// Names of bits, each with a bar in front.
pub fn more_flags(out: &mut String, table: Table, value: u64) {
    let mut left = value;
    for (bits, name) in table {
        if *bits != 0 && left & bits == *bits {
            left &= !bits;
            out.push('|');
            out.push_str(name);
        }
    }
    if left != 0 {
        let _ = write!(out, "|{left:#x}");
    }
}

/// open's flags.
pub fn open_flags(out: &mut String, value: u64) {
    choice(out, flags::ACCESS_MODE, value & 3);
    more_flags(out, flags::OPEN, value & 0xffff_fffc);
}

/// Arguments of clone, with strace's names for them.
fn clone_arguments(out: &mut String, arguments: &[u64; 6]) {
    const SETTLS: u64 = 0x8_0000;
    const PARENT_SETTID: u64 = 0x10_0000;
    const CHILD_TID: u64 = 0x120_0000;
    let [flags, stack, parent, child, tls, _] = *arguments;
    out.push_str("child_stack=");
    address(out, stack);
    out.push_str(", flags=");
    clone_flags(out, flags);
    for (bits, name, value) in [
        (PARENT_SETTID, "parent_tid", parent),
        (SETTLS, "tls", tls),
        (CHILD_TID, "child_tidptr", child),
    ] {
        if flags & bits != 0 {
            let _ = write!(out, ", {name}={value:#x}");
        }
    }
}

fn clone_flags(out: &mut String, value: u64) {
    let signal = value & 0xff;
    flags(out, flags::CLONE, value & !0xff, "");
    if signal != 0 {
        if value & !0xff != 0 {
            out.push('|');
        }
        out.push_str(&structures::signal_name(signal as u32));
    } else if value == 0 {
        out.push('0');
    }
}

fn futex_operation(out: &mut String, value: u32) {
    const PRIVATE: u32 = 128;
    const CLOCK_REALTIME: u32 = 256;
    let operation = u64::from(value & !(PRIVATE | CLOCK_REALTIME));
    choice(out, flags::FUTEX_OPERATION, operation);
    if value & PRIVATE != 0 {
        out.push_str("_PRIVATE");
    }
    if value & CLOCK_REALTIME != 0 {
        out.push_str("|FUTEX_CLOCK_REALTIME");
    }
}

fn fcntl_argument(out: &mut String, command: u32, value: u64, view: &View<'_>) {
    match command {
        2 => flags(out, flags::FD, value & 0xffff_ffff, "0"),
        4 => open_flags(out, value),
        5..=7 | 36..=38 if structures::write_lock(out, value, view).is_some() => {}
        5..=7 | 15 | 16 | 36..=38 => address(out, value),
        _ => {
            let _ = write!(out, "{}", value as i32);
        }
    }
}

/// A null-terminated string.
fn string(out: &mut String, mm: &AddressSpace, address: u64) -> Option<()> {
    let text = read_string(mm, address, crate::user::PATH_MAX + 1).ok()?;
    let shown = text.len().min(crate::user::PATH_MAX);
    quoted(out, &text[..shown], shown < text.len());
    Some(())
}

fn words(out: &mut String, address: u64, view: &View<'_>) -> Option<()> {
    let mut text = String::from("[");
    for index in 0u64.. {
        let word = view.bytes::<8>(address.wrapping_add(index * 8))?;
        let word = u64::from_le_bytes(word);
        if word == 0 {
            break;
        }
        if index > 0 {
            text.push_str(", ");
        }
        if index as usize >= ELEMENTS_MAX {
            text.push_str("...");
            break;
        }
        let bytes = read_string(view.mm, word, 128 << 10).ok()?;
        quoted(
            &mut text,
            &bytes[..bytes.len().min(STRING_MAX)],
            bytes.len() > STRING_MAX,
        );
    }
    text.push(']');
    out.push_str(&text);
    Some(())
}

/// A string in quotes, escaped as in C.
pub fn quoted(out: &mut String, bytes: &[u8], is_cut: bool) {
    out.push('"');
    for (at, &byte) in bytes.iter().enumerate() {
        let next_is_digit = bytes.get(at + 1).is_some_and(u8::is_ascii_digit);
        let _ = match byte {
            b'\n' => out.write_str("\\n"),
            b'\t' => out.write_str("\\t"),
            b'\r' => out.write_str("\\r"),
            11 => out.write_str("\\v"),
            12 => out.write_str("\\f"),
            b'"' => out.write_str("\\\""),
            b'\\' => out.write_str("\\\\"),
            0x20..0x7f => out.write_char(char::from(byte)),
            _ if next_is_digit => write!(out, "\\{byte:03o}"),
            _ => write!(out, "\\{byte:o}"),
        };
    }
    out.push('"');
    if is_cut {
        out.push_str("...");
    }
}

/// What a successful call returned.
pub fn write_return(out: &mut String, number: u64, value: u64, view: &View<'_>) {
    let row = ROWS.iter().find(|row| row.number as u64 == number);
    let _ = match row.map_or("", |row| row.name) {
        "mmap" | "mremap" | "brk" | "shmat" => write!(out, "{value:#x}"),
        "umask" => write!(out, "{value:03o}"),
        "rseq" => write!(out, "{value}"),
        "fcntl" => match view.arguments[1] as u32 {
            1 if value != 0 => {
                let _ = write!(out, "{value:#x} (flags ");
                flags(out, flags::FD, value, "0");
                out.write_char(')')
            }
            3 => {
                let _ = write!(out, "{value:#x} (flags ");
                open_flags(out, value);
                out.write_char(')')
            }
            _ => write!(out, "{value}"),
        },
        "poll" | "ppoll" if value == 0 => out.write_str("0 (Timeout)"),
        "select" | "pselect6" if value == 0 => out.write_str("0 (Timeout)"),
        "poll" | "ppoll" => {
            let _ = write!(out, "{value} (");
            structures::write_ready(out, view);
            out.write_char(')')
        }
        _ => write!(out, "{}", value as i64),
    };
}

/// How many arguments of the signature matter for these values.
pub fn arity(number: u64, arguments: &[u64; 6]) -> usize {
    let all = signatures::of(number).len();
    let row = ROWS.iter().find(|row| row.number as u64 == number);
    // O_CREAT, or O_TMPFILE's own bit.
    let creates = |flags: u64| flags & 0o20000100 != 0;
    match row.map_or("", |row| row.name) {
        "open" if !creates(arguments[1]) => 2,
        "openat" if !creates(arguments[2]) => 3,
        "mremap" if arguments[3] & 2 == 0 => 4,
        "fcntl" if matches!(arguments[1] as u32, 1 | 3 | 9 | 11 | 1025 | 1032 | 1034) => 2,
        "futex" => match arguments[1] as u32 & 0x7f {
            1 => 3,
            7 | 8 => 2,
            0 | 6 | 13 => 4,
            _ => 6,
        },
        "keyctl" => 1 + signatures::of_keyctl(arguments[0]).len(),
        "prctl" => match arguments[0] {
            3 | 7 | 21 | 27 | 30 => 1,
            1 | 2 | 4 | 8 | 15 | 16 | 23 | 24 | 28 | 29 | 36 | 37 => 2,
            _ => 5,
        },
        _ => all,
    }
}
