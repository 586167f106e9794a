//! Printing structures, in strace's words.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use super::flags;
use super::signatures::Kind;
use super::values::{self, ELEMENTS_MAX, View, quoted};
use crate::signal::{self, SigInfo};

/// The name of a signal.
pub fn signal_name(number: u32) -> String {
    match signal::name(number) {
        Some(name) => String::from(name),
        None if number == signal::SIGRTMIN => String::from("SIGRTMIN"),
        None if number > signal::SIGRTMIN && number <= signal::SIGNAL_MAX => {
            format!("SIGRT_{}", number - signal::SIGRTMIN)
        }
        None => format!("{number}"),
    }
}

/// A set of signals.
fn write_set(out: &mut String, mask: u64) {
    // Nearly full sets are shown by what they lack.
    let (mask, open) = match mask.count_ones() {
        ..=42 => (mask, "["),
        _ => (!mask, "~["),
    };
    out.push_str(open);
    let mut separator = "";
    for number in 1..=signal::SIGNAL_MAX {
        if mask & signal::bit(number) != 0 {
            let name = signal_name(number);
            out.push_str(separator);
            out.push_str(name.strip_prefix("SIG").unwrap_or(&name));
            separator = " ";
        }
    }
    out.push(']');
}

/// Why a signal was sent.
pub fn write_code(out: &mut String, info: &SigInfo) {
    let number = info.number();
    let table = match number {
        signal::SIGCHLD => flags::CODE_CHILD,
        signal::SIGSEGV => flags::CODE_SEGV,
        signal::SIGBUS => flags::CODE_BUS,
        signal::SIGFPE => flags::CODE_FPE,
        signal::SIGILL => flags::CODE_ILL,
        signal::SIGTRAP => flags::CODE_TRAP,
        _ => &[],
    };
    let table = if is_of_the_signal(info) {
        table
    } else {
        flags::CODE
    };
    values::choice(out, table, u64::from(info.code as u32));
}

/// Whether its reason is one that only this signal has.
fn is_of_the_signal(info: &SigInfo) -> bool {
    info.code > 0 && info.code != signal::info::SI_KERNEL
}

/// A signal with what came with it.
pub fn write_signal(out: &mut String, info: &SigInfo) {
    let number = info.number();
    let name = signal_name(number);
    let _ = write!(out, "{name} {{si_signo={name}, si_code=");
    write_code(out, info);
    let of_the_signal = is_of_the_signal(info);
    let [first, second, ..] = info.fields;
    let _ = if of_the_signal && number == signal::SIGCHLD {
        let status = match info.code {
            signal::info::CLD_EXITED => format!("{second}"),
            _ => signal_name(second as u32),
        };
        write!(
            out,
            ", si_pid={}, si_uid={}, si_status={status}, si_utime={}, si_stime={}",
            info.pid(),
            info.uid(),
            info.fields[2],
            info.fields[3]
        )
    } else if of_the_signal {
        out.push_str(", si_addr=");
        values::address(out, first);
        Ok(())
    } else {
        match info.code {
            signal::info::SI_KERNEL if signal::SYNCHRONOUS & signal::bit(number) != 0 => {
                out.write_str(", si_addr=NULL")
            }
            signal::info::SI_KERNEL => Ok(()),
            signal::info::SI_TIMER => write!(
                out,
                ", si_timerid={:#x}, si_overrun={}, si_int={}, si_ptr={second:#x}",
                first as u32,
                first >> 32,
                second as i32
            ),
            signal::info::SI_QUEUE => write!(
                out,
                ", si_pid={}, si_uid={}, si_int={}, si_ptr={second:#x}",
                info.pid(),
                info.uid(),
                second as i32
            ),
            _ => write!(out, ", si_pid={}, si_uid={}", info.pid(), info.uid()),
        }
    };
    out.push('}');
}

/// Little-endian fields of a structure.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u64(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    fn u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
}

/// Writes the structure of this kind at `address`; `None` when it cannot be read.
pub fn write(
    out: &mut String,
    kind: Kind,
    index: usize,
    address: u64,
    view: &View<'_>,
) -> Option<()> {
    let done = || view.result.and_then(|result| result.ok()).unwrap_or(0);
    match kind {
        Kind::SignalSet | Kind::OutputSignalSet => {
            write_set(out, u64::from_le_bytes(view.bytes::<8>(address)?));
        }
        Kind::Action | Kind::OutputAction => write_action(out, &view.bytes::<32>(address)?),
        Kind::Stack | Kind::OutputStack => {
            let bytes = view.bytes::<24>(address)?;
            let fields = Fields(&bytes);
            out.push_str("{ss_sp=");
            values::address(out, fields.u64(0));
            out.push_str(", ss_flags=");
            values::flags(out, flags::SIGSTACK, u64::from(fields.u32(8)), "0");
            let _ = write!(out, ", ss_size={}}}", fields.u64(16));
        }
        Kind::Time | Kind::OutputTime | Kind::OutputRemaining => {
            write_time(out, &view.bytes::<16>(address)?, "nsec")
        }
        Kind::Microseconds | Kind::OutputMicroseconds => {
            write_time(out, &view.bytes::<16>(address)?, "usec");
        }
        Kind::TimePair => {
            let bytes = view.bytes::<32>(address)?;
            out.push('[');
            write_utime(out, &bytes[..16]);
            out.push_str(", ");
            write_utime(out, &bytes[16..]);
            out.push(']');
        }
        Kind::TimerSetting | Kind::OutputTimerSetting => {
            write_setting(out, &view.bytes::<32>(address)?, "nsec");
        }
        Kind::IntervalSetting | Kind::OutputIntervalSetting => {
            write_setting(out, &view.bytes::<32>(address)?, "usec");
        }
        Kind::OutputStat => write_stat(out, &view.bytes::<144>(address)?),
        Kind::OutputStatx => write_statx(out, &view.bytes::<256>(address)?),
        Kind::OutputPair => {
            let bytes = view.bytes::<8>(address)?;
            let fields = Fields(&bytes);
            let _ = write!(out, "[{}, {}]", fields.u32(0) as i32, fields.u32(4) as i32);
        }
        Kind::OutputInt | Kind::InputInt => {
            let value = u32::from_le_bytes(view.bytes::<4>(address)?);
            let _ = write!(out, "[{}]", value as i32);
        }
        Kind::OutputStatus => {
            if done() == 0 {
                return None;
            }
            write_status(out, u32::from_le_bytes(view.bytes::<4>(address)?));
        }
        Kind::Limit | Kind::OutputLimit => {
            let bytes = view.bytes::<16>(address)?;
            let fields = Fields(&bytes);
            // prlimit64 has its own word for infinity.
            let is_64 = index >= 2;
            out.push_str("{rlim_cur=");
            write_limit(out, fields.u64(0), is_64);
            out.push_str(", rlim_max=");
            write_limit(out, fields.u64(8), is_64);
            out.push('}');
        }
        Kind::PollSet => write_poll(out, address, view.arguments[index + 1], view, false)?,
        Kind::Event => {
            let bytes = view.bytes::<12>(address)?;
            write_event(out, &bytes);
        }
        Kind::OutputEvents => {
            let mut text = String::from("[");
            for at in 0..done().min(ELEMENTS_MAX) {
                if at > 0 {
                    text.push_str(", ");
                }
                write_event(&mut text, &view.bytes::<12>(address + at as u64 * 12)?);
            }
            text.push(']');
            out.push_str(&text);
        }
        Kind::SocketAddress => {
            let len = view.arguments[index + 1] as usize;
            write_socket_address(out, address, len, view)?;
        }
        Kind::OutputSocketAddress => {
            let len = view.bytes::<4>(view.arguments[index + 1])?;
            write_socket_address(out, address, u32::from_le_bytes(len) as usize, view)?;
        }
        Kind::OutputNames => {
            let bytes = view.bytes::<130>(address)?;
            out.push_str("{sysname=");
            quoted(out, until_null(&bytes[..65]), false);
            out.push_str(", nodename=");
            quoted(out, until_null(&bytes[65..]), false);
            out.push_str(", ...}");
        }
        Kind::OutputEntries => {
            let count = count_entries(address, done(), view)?;
            let plural = if count == 1 { "entry" } else { "entries" };
            let _ = write!(out, "{address:#x} /* {count} {plural} */");
        }
        Kind::OutputRequest => write_request(out, address, view)?,
        _ => return None,
    }
    Some(())
}

/// What an ioctl leads to, for the common ones.
fn write_request(out: &mut String, address: u64, view: &View<'_>) -> Option<()> {
    let request = view.arguments[1] as u32;
    let _ = match request {
        // TIOCGWINSZ, TIOCSWINSZ
        0x5413 | 0x5414 => {
            let bytes = view.bytes::<8>(address)?;
            let fields = Fields(&bytes);
            write!(
                out,
                "{{ws_row={}, ws_col={}, ws_xpixel={}, ws_ypixel={}}}",
                fields.u16(0),
                fields.u16(2),
                fields.u16(4),
                fields.u16(6)
            )
        }
        // TIOCGPGRP, TIOCSPGRP, FIONREAD, FIONBIO, TIOCGSID, TIOCGPTN, TIOCSPTLCK
        0x540f | 0x5410 | 0x541b | 0x5421 | 0x5429 | 0x8004_5430 | 0x4004_5431 => {
            let value = u32::from_le_bytes(view.bytes::<4>(address)?);
            write!(out, "[{}]", value as i32)
        }
        _ => return None,
    };
    Some(())
}

fn until_null(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| byte == 0);
    &bytes[..end.unwrap_or(bytes.len())]
}

fn write_action(out: &mut String, bytes: &[u8; 32]) {
    let fields = Fields(bytes);
    out.push_str("{sa_handler=");
    let _ = match fields.u64(0) {
        0 => out.write_str("SIG_DFL"),
        1 => out.write_str("SIG_IGN"),
        handler => write!(out, "{handler:#x}"),
    };
    out.push_str(", sa_mask=");
    write_set(out, fields.u64(24));
    out.push_str(", sa_flags=");
    values::flags(out, flags::SIGACTION, fields.u64(8), "0");
    if fields.u64(8) & 0x0400_0000 != 0 {
        let _ = write!(out, ", sa_restorer={:#x}", fields.u64(16));
    }
    out.push('}');
}

fn write_time(out: &mut String, bytes: &[u8], unit: &str) {
    let fields = Fields(bytes);
    let _ = write!(
        out,
        "{{tv_sec={}, tv_{unit}={}}}",
        fields.u64(0) as i64,
        fields.u64(8) as i64
    );
}

fn write_utime(out: &mut String, bytes: &[u8]) {
    match Fields(bytes).u64(8) {
        0x3fff_ffff => out.push_str("UTIME_NOW"),
        0x3fff_fffe => out.push_str("UTIME_OMIT"),
        _ => write_time(out, bytes, "nsec"),
    }
}

fn write_setting(out: &mut String, bytes: &[u8; 32], unit: &str) {
    out.push_str("{it_interval=");
    write_time(out, &bytes[..16], unit);
    out.push_str(", it_value=");
    write_time(out, &bytes[16..], unit);
    out.push('}');
}

fn write_mode(out: &mut String, mode: u32) {
    values::choice(out, flags::FILE_TYPE, u64::from(mode & 0o170000));
    for (bit, name) in [
        (0o4000, "|S_ISUID"),
        (0o2000, "|S_ISGID"),
        (0o1000, "|S_ISVTX"),
    ] {
        if mode & bit != 0 {
            out.push_str(name);
        }
    }
    let _ = write!(out, "|{:04o}", mode & 0o777);
}

fn write_device(out: &mut String, device: u64) {
    let major = device >> 8 & 0xfff | device >> 32 & 0xffff_f000;
    let minor = device & 0xff | device >> 12 & 0xffff_ff00;
    let hex = |value: u64| match value {
        0 => String::from("0"),
        _ => format!("{value:#x}"),
    };
    let _ = write!(out, "makedev({}, {})", hex(major), hex(minor));
}

fn write_stat(out: &mut String, bytes: &[u8; 144]) {
    let fields = Fields(bytes);
    let mode = fields.u32(24);
    out.push_str("{st_mode=");
    write_mode(out, mode);
    if matches!(mode & 0o170000, 0o020000 | 0o060000) {
        out.push_str(", st_rdev=");
        write_device(out, fields.u64(40));
    } else {
        let _ = write!(out, ", st_size={}", fields.u64(48) as i64);
    }
    out.push_str(", ...}");
}

fn write_statx(out: &mut String, bytes: &[u8; 256]) {
    let fields = Fields(bytes);
    out.push_str("{stx_mask=");
    values::flags(out, flags::STATX_MASK, u64::from(fields.u32(0)), "0");
    out.push_str(", stx_attributes=");
    values::flags(out, &[], fields.u64(8), "0");
    out.push_str(", stx_mode=");
    write_mode(out, u32::from(fields.u16(28)));
    let _ = write!(out, ", stx_size={}, ...}}", fields.u64(40));
}

fn write_status(out: &mut String, status: u32) {
    let signal = signal_name(status & 0x7f);
    let _ = match status & 0x7f {
        0 => write!(
            out,
            "[{{WIFEXITED(s) && WEXITSTATUS(s) == {}}}]",
            status >> 8 & 0xff
        ),
        _ if status == 0xffff => out.write_str("[{WIFCONTINUED(s)}]"),
        0x7f => write!(
            out,
            "[{{WIFSTOPPED(s) && WSTOPSIG(s) == {}}}]",
            signal_name(status >> 8 & 0xff)
        ),
        _ if status & 0x80 != 0 => write!(
            out,
            "[{{WIFSIGNALED(s) && WTERMSIG(s) == {signal} && WCOREDUMP(s)}}]"
        ),
        _ => write!(out, "[{{WIFSIGNALED(s) && WTERMSIG(s) == {signal}}}]"),
    };
}

fn write_limit(out: &mut String, value: u64, is_64: bool) {
    let _ = match value {
        u64::MAX if is_64 => out.write_str("RLIM64_INFINITY"),
        u64::MAX => out.write_str("RLIM_INFINITY"),
        1025.. if value.is_multiple_of(1024) => write!(out, "{}*1024", value / 1024),
        _ => write!(out, "{value}"),
    };
}

fn write_poll(
    out: &mut String,
    address: u64,
    count: u64,
    view: &View<'_>,
    only_ready: bool,
) -> Option<()> {
    let mut text = String::from("[");
    let mut separator = "";
    for at in 0..count.min(ELEMENTS_MAX as u64) {
        let bytes = view.bytes::<8>(address + at * 8)?;
        let fields = Fields(&bytes);
        let (name, events) = if only_ready {
            ("revents", fields.u16(6))
        } else {
            ("events", fields.u16(4))
        };
        if only_ready && events == 0 {
            continue;
        }
        let _ = write!(text, "{separator}{{fd={}, {name}=", fields.u32(0) as i32);
        values::flags(&mut text, flags::POLL_EVENT, u64::from(events), "0");
        text.push('}');
        separator = ", ";
    }
    text.push(']');
    out.push_str(&text);
    Some(())
}

/// The descriptors that poll found ready.
pub fn write_ready(out: &mut String, view: &View<'_>) {
    let [address, count, ..] = *view.arguments;
    let _ = write_poll(out, address, count, view, true);
}

fn write_event(out: &mut String, bytes: &[u8; 12]) {
    let fields = Fields(bytes);
    out.push_str("{events=");
    values::flags(out, flags::EPOLL_EVENT, u64::from(fields.u32(0)), "0");
    let _ = write!(
        out,
        ", data={{u32={}, u64={}}}}}",
        fields.u32(4),
        fields.u64(4)
    );
}

fn write_socket_address(out: &mut String, address: u64, len: usize, view: &View<'_>) -> Option<()> {
    if len < 2 {
        return None;
    }
    let mut bytes = [0u8; 128];
    let len = len.min(bytes.len());
    view.mm.read(address, &mut bytes[..len]).ok()?;
    let fields = Fields(&bytes);
    let port = || u16::from_be_bytes([bytes[2], bytes[3]]);
    out.push_str("{sa_family=");
    values::choice(out, flags::DOMAIN, u64::from(fields.u16(0)));
    match fields.u16(0) {
        1 if len > 2 && bytes[2] == 0 => {
            out.push_str(", sun_path=@");
            quoted(out, &bytes[3..len], false);
        }
        1 if len > 2 => {
            out.push_str(", sun_path=");
            quoted(out, until_null(&bytes[2..len]), false);
        }
        2 => {
            let [a, b, c, d] = [bytes[4], bytes[5], bytes[6], bytes[7]];
            let _ = write!(
                out,
                ", sin_port=htons({}), sin_addr=inet_addr(\"{a}.{b}.{c}.{d}\")",
                port()
            );
        }
        10 => {
            let mut words = [0u8; 16];
            words.copy_from_slice(&bytes[8..24]);
            let _ = write!(
                out,
                ", sin6_port=htons({}), sin6_flowinfo=htonl({}), inet_pton(AF_INET6, \"{}\", \
                 &sin6_addr), sin6_scope_id={}",
                port(),
                u32::from_be(fields.u32(4)),
                core::net::Ipv6Addr::from(words),
                fields.u32(24)
            );
        }
        16 => {
            let _ = write!(
                out,
                ", nl_pid={}, nl_groups={:08x}",
                fields.u32(4),
                fields.u32(8)
            );
        }
        _ => {}
    }
    out.push('}');
    Some(())
}

/// struct flock.
pub fn write_lock(out: &mut String, address: u64, view: &View<'_>) -> Option<()> {
    let bytes = view.bytes::<32>(address)?;
    let fields = Fields(&bytes);
    let kind = match fields.u16(0) {
        0 => "F_RDLCK",
        1 => "F_WRLCK",
        2 => "F_UNLCK",
        _ => "F_???",
    };
    let _ = write!(out, "{{l_type={kind}, l_whence=");
    values::choice(out, flags::WHENCE, u64::from(fields.u16(2)));
    let _ = write!(
        out,
        ", l_start={}, l_len={}}}",
        fields.u64(8) as i64,
        fields.u64(16) as i64
    );
    Some(())
}

/// An I/O vector, with at most `len` bytes of what it leads to.
pub fn write_vector(
    out: &mut String,
    address: u64,
    count: u64,
    len: usize,
    view: &View<'_>,
) -> Option<()> {
    let mut text = String::from("[");
    let mut left = len;
    for at in 0..count.min(ELEMENTS_MAX as u64) {
        let bytes = view.bytes::<16>(address + at * 16)?;
        let fields = Fields(&bytes);
        let size = fields.u64(8) as usize;
        let shown = size.min(left);
        left -= shown;
        let mut content = [0u8; 32];
        let few = shown.min(content.len());
        view.mm.read(fields.u64(0), &mut content[..few]).ok()?;
        text.push_str(if at > 0 { ", {iov_base=" } else { "{iov_base=" });
        quoted(&mut text, &content[..few], shown > few);
        let _ = write!(text, ", iov_len={size}}}");
    }
    text.push(']');
    out.push_str(&text);
    Some(())
}

fn count_entries(address: u64, len: usize, view: &View<'_>) -> Option<usize> {
    let (mut at, mut count) = (0u64, 0);
    while at < len as u64 {
        // d_reclen is at the same place in both forms of the structure.
        let size = u16::from_le_bytes(view.bytes::<2>(address + at + 16)?);
        if size == 0 {
            return None;
        }
        at += u64::from(size);
        count += 1;
    }
    Some(count)
}
