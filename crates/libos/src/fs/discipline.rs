//! The line discipline of a terminal (termios(3)): editing, echo, signals, flow control, output
//! processing, and packet mode (ioctl_tty(2), TIOCPKT).
//!
//! A [`Line`] holds both directions of a pseudo-terminal: what the slave reads, and what the
//! master reads. It is plain state: whoever owns it locks it, wakes, and sends the signals that
//! [`Line::receive`] found.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::signal::{SIGINT, SIGQUIT, SIGTSTP};

/// Bytes that wait in one direction.
pub const QUEUE_MAX: usize = 64 << 10;
/// Longest line in canonical mode (MAX_CANON is 255; Linux keeps 4095).
const LINE_MAX: usize = 4095;
/// Columns between two tabs.
const TAB: usize = 8;

/// The kernel's `struct termios`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Termios {
    input: u32,
    output: u32,
    control: u32,
    local: u32,
    line: u8,
    characters: [u8; 19],
}

const _: () = assert!(size_of::<Termios>() == 36);

/// Bytes of `struct termio`.
pub const OLD_LEN: usize = 18;

impl Termios {
    /// Whether input is kept as lines; not where the master processes it (EXTPROC).
    fn keeps_lines(self) -> bool {
        self.local & (ICANON | EXTPROC) == ICANON
    }

    /// `struct termio` of System V: the low halves of the flags, the line discipline, eight
    /// characters.
    pub fn to_old(self) -> [u8; OLD_LEN] {
        let mut old = [0; OLD_LEN];
        let flags = [self.input, self.output, self.control, self.local];
        for (at, flag) in flags.iter().enumerate() {
            old[2 * at..2 * at + 2].copy_from_slice(&(*flag as u16).to_le_bytes());
        }
        old[8] = self.line;
        old[9..17].copy_from_slice(&self.characters[..8]);
        old
    }

    /// What `struct termio` says in place of what it covers.
    pub fn with_old(mut self, old: &[u8; OLD_LEN]) -> Termios {
        let flags = [
            &mut self.input,
            &mut self.output,
            &mut self.control,
            &mut self.local,
        ];
        for (at, flag) in flags.into_iter().enumerate() {
            let low = u16::from_le_bytes([old[2 * at], old[2 * at + 1]]);
            *flag = *flag & 0xffff_0000 | u32::from(low);
        }
        self.line = old[8];
        self.characters[..8].copy_from_slice(&old[9..17]);
        self
    }

    /// `struct termios2`: with the speeds in bauds.
    pub fn with_speeds(self) -> [u8; 44] {
        const BAUDS: [u32; 16] = [
            0, 50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19200, 38400,
        ];
        const FAST_BAUDS: [u32; 16] = [
            0, 57600, 115_200, 230_400, 460_800, 500_000, 576_000, 921_600, 1_000_000, 1_152_000,
            1_500_000, 2_000_000, 2_500_000, 3_000_000, 3_500_000, 4_000_000,
        ];
        let index = (self.control & 0o17) as usize;
        let speed = match self.control & 0o10000 == 0 {
            true => BAUDS[index],
            false => FAST_BAUDS[index],
        };
        let mut bytes = [0; 44];
        bytes[..36].copy_from_slice(self.as_bytes());
        bytes[36..40].copy_from_slice(&speed.to_le_bytes());
        bytes[40..].copy_from_slice(&speed.to_le_bytes());
        bytes
    }

    /// Whether Ctrl-S and Ctrl-Q stop and start the output: what packet mode reports.
    fn usual_flow_control(&self) -> bool {
        self.input & IXON != 0
            && self.characters[VSTOP] == b'S' & 0x1f
            && self.characters[VSTART] == b'Q' & 0x1f
    }
}

/// c_iflag.
const ISTRIP: u32 = 0o40;
const INLCR: u32 = 0o100;
const IGNCR: u32 = 0o200;
const ICRNL: u32 = 0o400;
const IUCLC: u32 = 0o1000;
const IXON: u32 = 0o2000;
const IXANY: u32 = 0o4000;
const IUTF8: u32 = 0o40000;
/// c_oflag.
const OPOST: u32 = 0o1;
const OLCUC: u32 = 0o2;
const ONLCR: u32 = 0o4;
const OCRNL: u32 = 0o10;
const ONOCR: u32 = 0o20;
const ONLRET: u32 = 0o40;
const XTABS: u32 = 0o14000;
/// c_lflag.
const ISIG: u32 = 0o1;
const ICANON: u32 = 0o2;
const ECHO: u32 = 0o10;
const ECHOE: u32 = 0o20;
const ECHOK: u32 = 0o40;
const ECHONL: u32 = 0o100;
const NOFLSH: u32 = 0o200;
const TOSTOP: u32 = 0o400;
const ECHOCTL: u32 = 0o1000;
const ECHOPRT: u32 = 0o2000;
const ECHOKE: u32 = 0o4000;
const IEXTEN: u32 = 0o100000;
const EXTPROC: u32 = 0o200000;
/// c_cc.
const VINTR: usize = 0;
const VQUIT: usize = 1;
const VERASE: usize = 2;
const VKILL: usize = 3;
const VEOF: usize = 4;
const VTIME: usize = 5;
const VMIN: usize = 6;
const VSTART: usize = 8;
const VSTOP: usize = 9;
const VSUSP: usize = 10;
const VEOL: usize = 11;
const VREPRINT: usize = 12;
const VWERASE: usize = 14;
const VLNEXT: usize = 15;
const VEOL2: usize = 16;

/// What Linux gives a new terminal (INIT_C_CC and tty_std_termios).
const INITIAL: Termios = Termios {
    input: IXON | ICRNL,
    output: OPOST | ONLCR,
    control: 0o277,
    local: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
    line: 0,
    characters: [
        3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0,
    ],
};

/// What packet mode tells the master (TIOCPKT_*).
mod status {
    pub const FLUSHREAD: u8 = 1;
    pub const FLUSHWRITE: u8 = 2;
    pub const STOP: u8 = 4;
    pub const START: u8 = 8;
    pub const NOSTOP: u8 = 16;
    pub const DOSTOP: u8 = 32;
    pub const IOCTL: u8 = 64;
}

/// How much VERASE, VWERASE and VKILL take away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Erase {
    Character,
    Word,
    Line,
}

/// How long a read of the slave waits where no lines are kept (VMIN, VTIME).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Bytes to wait for; 0 where a read may return with none.
    pub bytes: usize,
    /// Tenths of a second: after each byte, or from the start where `bytes` is 0.
    pub tenths: u8,
}

/// Both directions of a pseudo-terminal.
pub struct Line {
    termios: Termios,
    /// For the slave: complete lines in canonical mode, bytes otherwise.
    input: VecDeque<u8>,
    /// Lengths of the complete lines in `input` (0: an end of file).
    lines: VecDeque<usize>,
    /// The line that is being typed.
    typing: Vec<u8>,
    /// For the master.
    output: VecDeque<u8>,
    /// What was echoed while the output was stopped.
    held: VecDeque<u8>,
    /// The column of the output, and where the line that is being typed began.
    column: usize,
    typed_at: usize,
    /// The next character is taken as it is (VLNEXT).
    literal: bool,
    /// Erased characters are being shown (ECHOPRT).
    erasing: bool,
    /// Output is stopped, by VSTOP or by tcflow(3).
    stopped: bool,
    stopped_by_call: bool,
    /// TIOCPKT, and what the master has not been told yet.
    packets: bool,
    status: u8,
}

impl Default for Line {
    fn default() -> Line {
        Line {
            termios: INITIAL,
            input: VecDeque::new(),
            lines: VecDeque::new(),
            typing: Vec::new(),
            output: VecDeque::new(),
            held: VecDeque::new(),
            column: 0,
            typed_at: 0,
            literal: false,
            erasing: false,
            stopped: false,
            stopped_by_call: false,
            packets: false,
            status: 0,
        }
    }
}

impl Line {
    pub fn termios(&self) -> Termios {
        self.termios
    }

    /// tcsetattr(3); `flush` for TCSAFLUSH.
    pub fn set_termios(&mut self, termios: Termios, flush: bool) {
        let before = core::mem::replace(&mut self.termios, termios);
        if flush {
            self.flush_input();
        }
        let (was, is) = (before.keeps_lines(), termios.keeps_lines());
        if was && !is {
            // What was typed is there to be read at once.
            let typing = core::mem::take(&mut self.typing);
            self.input.extend(typing);
            self.lines.clear();
        } else if !was && is && !self.input.is_empty() {
            self.lines.push_back(self.input.len());
        }
        if before.input & !termios.input & IXON != 0 && !self.stopped_by_call {
            self.start();
        }
        let flow = termios.usual_flow_control();
        let external = (before.local | termios.local) & EXTPROC != 0;
        if flow != before.usual_flow_control() || external {
            let changed = match flow {
                _ if flow == before.usual_flow_control() => 0,
                true => status::DOSTOP,
                false => status::NOSTOP,
            };
            let external = if external { status::IOCTL } else { 0 };
            self.tell(changed | external, status::DOSTOP | status::NOSTOP);
        }
    }

    pub fn is_canonical(&self) -> bool {
        self.termios.keeps_lines()
    }

    /// Whether processes in the background may not write.
    pub fn stops_background(&self) -> bool {
        self.termios.local & TOSTOP != 0
    }

    /// Notes an event for a master in packet mode.
    fn tell(&mut self, event: u8, withdraws: u8) {
        if self.packets {
            self.status = self.status & !withdraws | event;
        }
    }

    pub fn is_in_packet_mode(&self) -> bool {
        self.packets
    }

    pub fn set_packet_mode(&mut self, on: bool) {
        if on && !self.packets {
            self.status = 0;
        }
        self.packets = on;
    }

    /// Whether packet mode has something to tell.
    pub fn has_status(&self) -> bool {
        self.packets && self.status != 0
    }

    fn stop(&mut self) {
        if !self.stopped {
            self.stopped = true;
            self.tell(status::STOP, status::START);
        }
    }

    fn start(&mut self) {
        if self.stopped && !self.stopped_by_call {
            self.stopped = false;
            self.output.append(&mut self.held);
            self.tell(status::START, status::STOP);
        }
    }

    /// tcflow(3) with TCOOFF or TCOON.
    pub fn set_stopped_by_call(&mut self, stopped: bool) {
        self.stopped_by_call = stopped;
        match stopped {
            true => self.stop(),
            false => self.start(),
        }
    }

    /// tcflow(3) with TCIOFF or TCION: asks the other side to stop or to go on.
    pub fn send_flow(&mut self, stop: bool) {
        let character = self.termios.characters[if stop { VSTOP } else { VSTART }];
        if character != 0 {
            self.output.push_back(character);
        }
    }

    /// Whether the slave may write.
    pub fn is_writable(&self) -> bool {
        !self.stopped && self.output.len() < QUEUE_MAX
    }

    /// tcflush(3) of what the slave would read.
    pub fn flush_input(&mut self) {
        self.input.clear();
        self.lines.clear();
        self.typing.clear();
        self.literal = false;
        self.erasing = false;
        self.tell(status::FLUSHREAD, 0);
    }

    /// tcflush(3) of what the master would read.
    pub fn flush_output(&mut self) {
        self.output.clear();
        self.held.clear();
        self.tell(status::FLUSHWRITE, 0);
    }

    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// What a read of the master gives; `None` where it would wait.
    pub fn master_take(&mut self, most: usize) -> Option<Vec<u8>> {
        if self.has_status() && most > 0 {
            return Some(alloc::vec![core::mem::take(&mut self.status)]);
        }
        if self.output.is_empty() {
            return None;
        }
        let mark = usize::from(self.packets && most > 0);
        let len = (most - mark).min(self.output.len());
        let mut bytes = Vec::with_capacity(mark + len);
        bytes.resize(mark, 0);
        bytes.extend(self.output.drain(..len));
        Some(bytes)
    }

    fn emit(&mut self, bytes: &[u8]) {
        match self.stopped {
            true => self.held.extend(bytes),
            false => self.output.extend(bytes),
        }
    }

    /// Output processing.
    pub fn put_output(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.put_byte(byte);
        }
    }

    fn put_byte(&mut self, mut byte: u8) {
        let flags = self.termios.output;
        if flags & OPOST == 0 {
            return self.emit(&[byte]);
        }
        let on = |flag: u32| flags & (OPOST | flag) == OPOST | flag;
        match byte {
            b'\n' if on(ONLCR) => {
                self.column = 0;
                self.typed_at = 0;
                self.emit(b"\r");
            }
            b'\n' => {
                if on(ONLRET) {
                    self.column = 0;
                }
                self.typed_at = self.column;
            }
            b'\r' if on(ONOCR) && self.column == 0 => return,
            b'\r' => {
                if on(OCRNL) {
                    byte = b'\n';
                }
                if !on(OCRNL) || on(ONLRET) {
                    self.column = 0;
                    self.typed_at = 0;
                }
            }
            b'\t' => {
                let width = TAB - self.column % TAB;
                self.column += width;
                if on(XTABS) {
                    return self.emit(&b"        "[..width]);
                }
            }
            8 => self.column = self.column.saturating_sub(1),
            0..32 | 127 => {}
            _ => {
                if on(OLCUC) {
                    byte = byte.to_ascii_uppercase();
                }
                self.column += usize::from(!self.is_continuation(byte));
            }
        }
        self.emit(&[byte]);
    }

    /// Whether a byte belongs to the character before it: of UTF-8, where it is in use.
    fn is_continuation(&self, byte: u8) -> bool {
        self.termios.input & IUTF8 != 0 && byte & 0xc0 == 0x80
    }

    /// Whether a byte is shown as `^X`.
    fn is_shown_as_control(&self, byte: u8) -> bool {
        self.termios.local & ECHOCTL != 0 && byte.is_ascii_control() && byte != b'\t'
    }

    fn echo(&mut self, byte: u8) {
        if self.is_shown_as_control(byte) {
            self.put_output(&[b'^', byte ^ 64]);
        } else {
            self.put_byte(byte);
        }
    }

    fn echoes(&self) -> bool {
        self.termios.local & ECHO != 0
    }

    /// Ends what ECHOPRT shows of erased characters.
    fn finish_erasing(&mut self) {
        if core::mem::take(&mut self.erasing) {
            self.put_byte(b'/');
        }
    }

    fn newline_echo(&mut self) {
        if self.termios.local & (ECHO | ECHONL) != 0 {
            self.put_byte(b'\n');
        }
    }

    /// Takes the last character of the line.
    fn pop(&mut self) -> Option<Vec<u8>> {
        let mut from = self.typing.len().checked_sub(1)?;
        while from > 0 && self.is_continuation(self.typing[from]) {
            from -= 1;
        }
        Some(self.typing.split_off(from))
    }

    fn erase(&mut self, what: Erase) {
        let local = self.termios.local;
        if self.typing.is_empty() {
            return;
        }
        if what == Erase::Line {
            let all = ECHO | ECHOE | ECHOK | ECHOKE;
            if local & all != all {
                self.typing.clear();
                if self.echoes() {
                    self.finish_erasing();
                    self.echo(self.termios.characters[VKILL]);
                    if local & ECHOK != 0 {
                        self.put_byte(b'\n');
                    }
                }
                return;
            }
        }
        let mut in_word = false;
        while let Some(character) = self.pop() {
            let first = character[0];
            if what == Erase::Word {
                // Up to the beginning of the last word.
                let of_word = first.is_ascii_alphanumeric() || first == b'_' || first >= 0x80;
                if in_word && !of_word {
                    self.typing.extend(character);
                    break;
                }
                in_word |= of_word;
            }
            if self.echoes() {
                self.show_erased(&character, what);
            }
            if what == Erase::Character {
                break;
            }
        }
        if self.typing.is_empty() && self.echoes() {
            self.finish_erasing();
        }
    }

    fn show_erased(&mut self, character: &[u8], what: Erase) {
        let local = self.termios.local;
        let first = character[0];
        if local & ECHOPRT != 0 {
            if !core::mem::replace(&mut self.erasing, true) {
                self.put_byte(b'\\');
            }
            self.echo(first);
            self.emit(&character[1..]);
        } else if what == Erase::Character && local & ECHOE == 0 {
            self.echo(self.termios.characters[VERASE]);
        } else if first == b'\t' {
            // Back to where the tab began, which what is before it on the line tells.
            let mut column = self.typed_at;
            let shown = self.typing.clone();
            for byte in shown {
                column += match byte {
                    b'\t' => TAB - column % TAB,
                    _ if byte.is_ascii_control() => 2 * usize::from(local & ECHOCTL != 0),
                    _ => usize::from(!self.is_continuation(byte)),
                };
            }
            for _ in 0..TAB - column % TAB {
                self.put_byte(8);
            }
        } else {
            let control = first.is_ascii_control();
            let places = match local & ECHOCTL != 0 {
                true => 1 + usize::from(control),
                false => usize::from(!control),
            };
            for _ in 0..places {
                self.put_output(b"\x08 \x08");
            }
        }
    }

    fn finish_line(&mut self) {
        let line = core::mem::take(&mut self.typing);
        self.lines.push_back(line.len());
        self.input.extend(line);
    }

    /// A character that means itself.
    fn take_plain(&mut self, byte: u8) {
        let canonical = self.is_canonical();
        let room = match canonical {
            true => self.typing.len() < LINE_MAX,
            false => self.input.len() < QUEUE_MAX,
        };
        if !room {
            return;
        }
        if self.echoes() {
            self.finish_erasing();
            if self.typing.is_empty() {
                self.typed_at = self.column;
            }
            match byte {
                b'\n' => self.put_byte(b'\n'),
                _ => self.echo(byte),
            }
        }
        match canonical {
            true => self.typing.push(byte),
            false => self.input.push_back(byte),
        }
    }

    /// Input processing of one byte that the master wrote; a signal for the foreground.
    pub fn receive(&mut self, mut byte: u8) -> Option<u32> {
        let Termios {
            input,
            local,
            characters,
            ..
        } = self.termios;
        if input & ISTRIP != 0 {
            byte &= 0x7f;
        }
        if input & IUCLC != 0 && local & IEXTEN != 0 {
            byte = byte.to_ascii_lowercase();
        }
        if local & EXTPROC != 0 {
            // The master has processed it, and echoed it.
            if self.input.len() < QUEUE_MAX {
                self.input.push_back(byte);
            }
            return None;
        }
        if core::mem::take(&mut self.literal) {
            self.take_plain(byte);
            return None;
        }
        let is = |index: usize| byte != 0 && characters[index] == byte;
        if input & IXON != 0 {
            if is(VSTART) {
                self.start();
                return None;
            }
            if is(VSTOP) {
                self.stop();
                return None;
            }
        }
        if local & ISIG != 0 {
            let signals = [(VINTR, SIGINT), (VQUIT, SIGQUIT), (VSUSP, SIGTSTP)];
            if let Some((_, signal)) = signals.into_iter().find(|(index, _)| is(*index)) {
                if local & NOFLSH == 0 {
                    self.flush_input();
                    self.flush_output();
                }
                if input & IXON != 0 {
                    self.start();
                }
                if self.echoes() {
                    self.echo(byte);
                }
                return Some(signal);
            }
        }
        if input & (IXON | IXANY) == IXON | IXANY {
            self.start();
        }
        match byte {
            b'\r' if input & IGNCR != 0 => return None,
            b'\r' if input & ICRNL != 0 => byte = b'\n',
            b'\n' if input & INLCR != 0 => byte = b'\r',
            _ => {}
        }
        match self.is_canonical() {
            true => self.edit(byte),
            false => self.take_plain(byte),
        }
        None
    }

    /// One byte where lines are kept.
    fn edit(&mut self, byte: u8) {
        let Termios {
            local, characters, ..
        } = self.termios;
        let is = |index: usize| byte != 0 && characters[index] == byte;
        let extended = local & IEXTEN != 0;
        if is(VERASE) {
            self.erase(Erase::Character);
        } else if is(VKILL) {
            self.erase(Erase::Line);
        } else if extended && is(VWERASE) {
            self.erase(Erase::Word);
        } else if extended && is(VLNEXT) {
            self.literal = true;
            if self.echoes() {
                self.finish_erasing();
                if local & ECHOCTL != 0 {
                    self.put_output(b"^\x08");
                }
            }
        } else if extended && self.echoes() && is(VREPRINT) {
            self.finish_erasing();
            self.echo(byte);
            self.put_byte(b'\n');
            for byte in self.typing.clone() {
                self.echo(byte);
            }
        } else if is(VEOF) {
            self.finish_line();
        } else if byte == b'\n' {
            self.newline_echo();
            self.typing.push(byte);
            self.finish_line();
        } else if is(VEOL) || extended && is(VEOL2) {
            if self.echoes() {
                self.echo(byte);
            }
            self.typing.push(byte);
            self.finish_line();
        } else {
            self.take_plain(byte);
        }
    }

    /// How a read of `most` bytes waits; `None` where lines are kept.
    pub fn wait(&self, most: usize) -> Option<Wait> {
        (!self.is_canonical()).then(|| Wait {
            bytes: usize::from(self.termios.characters[VMIN]).min(most),
            tenths: self.termios.characters[VTIME],
        })
    }

    /// Bytes that the slave can read (FIONREAD): all complete lines where lines are kept.
    pub fn slave_len(&self) -> usize {
        self.input.len()
    }

    /// Whether poll(2) reports the slave as readable.
    pub fn slave_readable(&self) -> bool {
        if self.is_canonical() {
            return !self.lines.is_empty();
        }
        let [min, time] = [VMIN, VTIME].map(|index| self.termios.characters[index]);
        self.input.len() >= if time == 0 { min.max(1).into() } else { 1 }
    }

    /// Whether a complete line, or any byte where no lines are kept, is there.
    pub fn has_input(&self) -> bool {
        match self.is_canonical() {
            true => !self.lines.is_empty(),
            false => !self.input.is_empty(),
        }
    }

    pub fn slave_take(&mut self, most: usize) -> Vec<u8> {
        let len = if self.is_canonical() {
            let Some(line) = self.lines.pop_front() else {
                return Vec::new();
            };
            let len = line.min(most);
            if len < line {
                self.lines.push_front(line - len);
            }
            len
        } else {
            most.min(self.input.len())
        };
        self.input.drain(..len).collect()
    }
}
