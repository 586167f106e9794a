//! Pseudo-terminals: /dev/ptmx, /dev/pts, and the line discipline (termios(3)).
//!
//! A [`Pty`] has two queues: what the master wrote, after the line discipline, for the slave to
//! read; and what the slave wrote (and what is echoed), for the master. The slave's node in
//! /dev/pts appears when the master is opened and goes when it is closed.
//!
//! Lock order: registry → state.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::context::FsContext;
use super::file::{FileOps, OpenFile, anonymous_metadata, flags};
use super::hooks;
use super::inode::{Metadata, NewNode, SetAttributes};
use super::ioctl;
use super::lower::make_device;
use super::namei;
use super::path::{Follow, PathRef, Walk};
use super::permission::Caller;
use super::tty::Terminal;
use crate::errno::{EAGAIN, EIO, ENOSPC, ENXIO};
use crate::signal::{SIGINT, SIGQUIT, SIGTSTP, SIGWINCH};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, WaitQueue, block_on};
use crate::syscall::Context;
use crate::user::{IoBuffer, UserPtr};
use crate::{Result, Thread};

/// Most pseudo-terminals at once.
const PTYS_MAX: u32 = 256;
/// Bytes that wait in one direction.
const QUEUE_MAX: usize = 64 << 10;
/// Longest line in canonical mode (MAX_CANON is 255; Linux keeps 4095).
const LINE_MAX: usize = 4095;

const READABLE: Events = Events::IN.union(Events::RDNORM);
const WRITABLE: Events = Events::OUT.union(Events::WRNORM);

/// The kernel's `struct termios`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Termios {
    input: u32,
    output: u32,
    control: u32,
    local: u32,
    line: u8,
    characters: [u8; 19],
}

const _: () = assert!(size_of::<Termios>() == 36);

impl Termios {
    /// `struct termio` of System V: the low halves of the flags, the line discipline, eight
    /// characters.
    fn to_old(self) -> [u8; 18] {
        let mut old = [0; 18];
        let flags = [self.input, self.output, self.control, self.local];
        for (at, flag) in flags.iter().enumerate() {
            old[2 * at..2 * at + 2].copy_from_slice(&(*flag as u16).to_le_bytes());
        }
        old[8] = self.line;
        old[9..17].copy_from_slice(&self.characters[..8]);
        old
    }
}

/// c_iflag.
const INLCR: u32 = 0o100;
const IGNCR: u32 = 0o200;
const ICRNL: u32 = 0o400;
const ISTRIP: u32 = 0o40;
/// c_oflag.
const OPOST: u32 = 0o1;
const ONLCR: u32 = 0o4;
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
/// c_cc.
const VINTR: usize = 0;
const VQUIT: usize = 1;
const VERASE: usize = 2;
const VKILL: usize = 3;
const VEOF: usize = 4;
const VTIME: usize = 5;
const VMIN: usize = 6;
const VSUSP: usize = 10;
const VEOL: usize = 11;
const VWERASE: usize = 14;

/// What Linux gives a new terminal (INIT_C_CC and tty_std_termios).
const INITIAL: Termios = Termios {
    input: 0o2400 | ICRNL,
    output: OPOST | ONLCR,
    control: 0o277,
    local: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | 0o4000 | 0o100000,
    line: 0,
    characters: [
        3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0,
    ],
};

struct State {
    termios: Termios,
    window: [u16; 4],
    /// For the slave: complete lines in canonical mode, bytes otherwise.
    input: VecDeque<u8>,
    /// Lengths of the complete lines in `input` (0: an end of file).
    lines: VecDeque<usize>,
    /// The line that is being typed.
    typing: Vec<u8>,
    /// For the master.
    output: VecDeque<u8>,
    masters: usize,
    slaves: usize,
    slave_opened: bool,
    locked: bool,
}

/// A pair of terminals.
pub struct Pty {
    number: u32,
    terminal: Terminal,
    state: SpinLock<State>,
    queue: Arc<WaitQueue>,
    /// /dev/pts, as the one who opened the master sees it.
    node: PathRef,
}

static PTYS: SpinLock<BTreeMap<u32, Arc<Pty>>> = SpinLock::new(BTreeMap::new());

fn device(number: u32) -> u64 {
    make_device(136, number)
}

/// Opens a new master.
pub fn open_master(caller: &Caller<'_>, path: &PathRef) -> Result<Arc<dyn FileOps>> {
    // /dev/pts is where Linux looks for it too: beside the ptmx that was opened.
    let context = FsContext::new(path.clone());
    let directory = path.parent(&PathRef {
        mount: path.mount.clone(),
        dentry: path.mount.root.clone(),
    });
    let directory = Walk::at(Caller::KERNEL, &context, directory).find(b"pts", Follow::Yes)?;
    let pty = {
        let mut ptys = PTYS.lock();
        let number = (0..PTYS_MAX).find(|number| !ptys.contains_key(number));
        let number = number.ok_or(ENOSPC.because("no free pseudo-terminal"))?;
        let pty = Arc::new(Pty {
            number,
            terminal: Terminal::default(),
            state: SpinLock::new(State {
                termios: INITIAL,
                window: [0; 4],
                input: VecDeque::new(),
                lines: VecDeque::new(),
                typing: Vec::new(),
                output: VecDeque::new(),
                masters: 1,
                slaves: 0,
                slave_opened: false,
                locked: true,
            }),
            queue: WaitQueue::new(),
            node: directory.clone(),
        });
        ptys.insert(number, pty.clone());
        pty
    };
    let name = pty.number.to_string();
    let node = NewNode::Character(device(pty.number));
    let made = namei::create_at(&Caller::KERNEL, &directory, name.as_bytes(), node, 0o620);
    match made {
        Ok(made) => {
            let (uid, _) = caller.ids();
            let change = SetAttributes {
                uid: Some(uid),
                gid: Some(5),
                ..SetAttributes::default()
            };
            made.inode().set_attributes(&change)?;
            Ok(Arc::new(Master { pty }))
        }
        Err(error) => {
            PTYS.lock().remove(&pty.number);
            Err(error)
        }
    }
}

/// Opens the slave of this number. Without O_NOCTTY it becomes the controlling terminal of a
/// session leader that has none.
pub fn open_slave(caller: &Caller<'_>, number: u32, open_flags: u32) -> Result<Arc<dyn FileOps>> {
    let pty = PTYS.lock().get(&number).cloned().ok_or(ENXIO)?;
    {
        let mut state = pty.state.lock();
        if state.locked || state.masters == 0 {
            return Err(EIO.because("the pseudo-terminal is locked"));
        }
        state.slaves += 1;
        state.slave_opened = true;
    }
    if let Some(thread) = caller.thread {
        let session = hooks::session(thread);
        let free = pty.terminal.session() == 0 && super::tty::of_session(session).is_none();
        if open_flags & flags::NOCTTY == 0 && free && hooks::is_session_leader(thread) {
            pty.terminal.set_session(session, hooks::group(thread));
        }
    }
    Ok(Arc::new(Slave { pty }))
}

fn by_session(session: u32) -> Option<Arc<Pty>> {
    let ptys = PTYS.lock();
    ptys.values()
        .find(|pty| session != 0 && pty.terminal.session() == session)
        .cloned()
}

/// The slave that is the controlling terminal of a session.
pub fn controlled_by(session: u32) -> Option<Arc<dyn FileOps>> {
    let pty = by_session(session)?;
    pty.state.lock().slaves += 1;
    Some(Arc::new(Slave { pty }))
}

/// Device number and foreground group of a session's terminal.
pub fn of_session(session: u32) -> Option<(u64, u32)> {
    let pty = by_session(session)?;
    Some((device(pty.number), pty.terminal.foreground()))
}

/// A signal that the line discipline found in the input, to send once the lock is released.
#[derive(Default)]
struct Found {
    signals: Vec<u32>,
}

impl State {
    fn echo(&mut self, byte: u8) {
        let local = self.termios.local;
        if byte == b'\n' {
            if local & (ECHO | ECHONL) != 0 {
                self.put_output(b"\n");
            }
        } else if local & ECHO != 0 {
            if local & ECHOCTL != 0 && (byte < 32 && byte != b'\t' || byte == 127) {
                self.put_output(&[b'^', byte ^ 64]);
            } else {
                self.put_output(&[byte]);
            }
        }
    }

    /// Output processing.
    fn put_output(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' && self.termios.output & (OPOST | ONLCR) == OPOST | ONLCR {
                self.output.push_back(b'\r');
            }
            self.output.push_back(byte);
        }
    }

    fn erase_one(&mut self) -> bool {
        // A character of UTF-8 goes as a whole.
        let Some(mut last) = self.typing.pop() else {
            return false;
        };
        while last & 0xc0 == 0x80 {
            match self.typing.pop() {
                Some(byte) => last = byte,
                None => break,
            }
        }
        if self.termios.local & (ECHO | ECHOE) == ECHO | ECHOE {
            self.output.extend(b"\x08 \x08");
            if last < 32 && self.termios.local & ECHOCTL != 0 {
                self.output.extend(b"\x08 \x08");
            }
        }
        true
    }

    fn finish_line(&mut self) {
        let line = core::mem::take(&mut self.typing);
        self.lines.push_back(line.len());
        self.input.extend(line);
    }

    /// Input processing of one byte that the master wrote.
    fn receive(&mut self, mut byte: u8, found: &mut Found) {
        let Termios {
            input,
            local,
            characters,
            ..
        } = self.termios;
        if input & ISTRIP != 0 {
            byte &= 0x7f;
        }
        match byte {
            b'\r' if input & IGNCR != 0 => return,
            b'\r' if input & ICRNL != 0 => byte = b'\n',
            b'\n' if input & INLCR != 0 => byte = b'\r',
            _ => {}
        }
        let is = |index: usize| byte != 0 && characters[index] == byte;
        if local & ISIG != 0 {
            let signal = if is(VINTR) {
                Some(SIGINT)
            } else if is(VQUIT) {
                Some(SIGQUIT)
            } else if is(VSUSP) {
                Some(SIGTSTP)
            } else {
                None
            };
            if let Some(signal) = signal {
                if local & NOFLSH == 0 {
                    self.input.clear();
                    self.lines.clear();
                    self.typing.clear();
                }
                self.echo(byte);
                found.signals.push(signal);
                return;
            }
        }
        if local & ICANON == 0 {
            if self.input.len() < QUEUE_MAX {
                self.input.push_back(byte);
                self.echo(byte);
            }
            return;
        }
        if is(VERASE) {
            self.erase_one();
        } else if is(VWERASE) {
            while self.typing.last() == Some(&b' ') && self.erase_one() {}
            while self.typing.last().is_some_and(|&byte| byte != b' ') && self.erase_one() {}
        } else if is(VKILL) {
            while self.erase_one() {}
            if local & ECHOK != 0 && local & ECHOE == 0 {
                self.put_output(b"\n");
            }
        } else if is(VEOF) {
            self.finish_line();
        } else if byte == b'\n' || is(VEOL) {
            self.typing.push(byte);
            self.echo(byte);
            self.finish_line();
        } else if self.typing.len() < LINE_MAX {
            self.typing.push(byte);
            self.echo(byte);
        }
    }

    /// Whether a read of the slave would return.
    fn slave_readable(&self) -> bool {
        if self.termios.local & ICANON != 0 {
            return !self.lines.is_empty();
        }
        let min = usize::from(self.termios.characters[VMIN]);
        // A time-out without a minimum is taken as "at once": no timer runs in the kernel.
        self.input.len() >= min.max(usize::from(self.termios.characters[VTIME] == 0 && min > 0))
    }

    fn slave_take(&mut self, most: usize) -> Vec<u8> {
        let len = if self.termios.local & ICANON != 0 {
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

impl Pty {
    /// ioctls of both sides.
    fn ioctl(
        &self,
        context: &mut Context<'_>,
        file: &OpenFile,
        request: u32,
        argument: u64,
        is_master: bool,
    ) -> Result<usize> {
        let mm = context.mm();
        match request {
            ioctl::TCGETS => {
                let termios = self.state.lock().termios;
                UserPtr::<Termios>::new(argument).write(&mm, &termios)?;
            }
            ioctl::TCGETA => {
                let old = self.state.lock().termios.to_old();
                mm.write(argument, &old)?;
            }
            ioctl::TCSETS | ioctl::TCSETSW | ioctl::TCSETSF => {
                let termios = UserPtr::<Termios>::new(argument).read(&mm)?;
                if !is_master {
                    self.terminal.check_change(context.thread)?;
                }
                let mut state = self.state.lock();
                let was_canonical = state.termios.local & ICANON != 0;
                state.termios = termios;
                if request == ioctl::TCSETSF {
                    state.input.clear();
                    state.lines.clear();
                    state.typing.clear();
                }
                if was_canonical && termios.local & ICANON == 0 {
                    // What was typed is there to be read at once.
                    let typing = core::mem::take(&mut state.typing);
                    state.input.extend(typing);
                    state.lines.clear();
                } else if !was_canonical && termios.local & ICANON != 0 && !state.input.is_empty() {
                    let len = state.input.len();
                    state.lines.push_back(len);
                }
                drop(state);
                self.queue.wake(READABLE);
            }
            ioctl::TIOCGWINSZ => {
                let window = self.state.lock().window;
                UserPtr::<[u16; 4]>::new(argument).write(&mm, &window)?;
            }
            ioctl::TIOCSWINSZ => {
                let window = UserPtr::<[u16; 4]>::new(argument).read(&mm)?;
                let mut state = self.state.lock();
                let changed = state.window != window;
                state.window = window;
                drop(state);
                if changed {
                    hooks::signal_group(self.terminal.foreground(), SIGWINCH);
                }
            }
            ioctl::TIOCOUTQ => {
                let len = self.state.lock().output.len() as i32;
                UserPtr::<i32>::new(argument).write(&mm, &len)?;
            }
            ioctl::TCFLSH => {
                let mut state = self.state.lock();
                if argument != 1 {
                    state.input.clear();
                    state.lines.clear();
                    state.typing.clear();
                }
                if argument != 0 {
                    state.output.clear();
                }
            }
            ioctl::TCSBRK | ioctl::TCXONC => {}
            ioctl::TIOCGPGRP if is_master => {
                let foreground = self.terminal.foreground() as i32;
                UserPtr::<i32>::new(argument).write(&mm, &foreground)?;
            }
            _ => return self.terminal.ioctl(context, file, request, argument),
        }
        Ok(0)
    }
}

/// The master's side.
struct Master {
    pty: Arc<Pty>,
}

/// The slave's side.
struct Slave {
    pty: Arc<Pty>,
}

impl FileOps for Master {
    fn is_async(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        let most = to.remaining();
        let attempt = || {
            let mut state = self.pty.state.lock();
            if state.output.is_empty() {
                return (state.slave_opened && state.slaves == 0).then_some(Err(EIO));
            }
            let len = most.min(state.output.len());
            Some(Ok(state.output.drain(..len).collect::<Vec<u8>>()))
        };
        let bytes = match attempt() {
            Some(bytes) => bytes?,
            None if file.is_nonblocking() => return Err(EAGAIN),
            None => block_on(thread, &self.pty.queue, READABLE, None, attempt)??,
        };
        self.pty.queue.wake(WRITABLE);
        to.put(&bytes)
    }

    fn write(
        &self,
        _thread: &Arc<Thread>,
        _file: &OpenFile,
        from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        let mut chunk = [0u8; 512];
        let start = from.done();
        while !from.is_empty() {
            let len = from.remaining().min(chunk.len());
            let taken = from.take(&mut chunk[..len])?;
            let mut found = Found::default();
            let mut state = self.pty.state.lock();
            for &byte in &chunk[..taken] {
                state.receive(byte, &mut found);
            }
            drop(state);
            for signal in found.signals {
                hooks::signal_group(self.pty.terminal.foreground(), signal);
            }
            self.pty.queue.wake(READABLE);
        }
        Ok(from.done() - start)
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.pty.queue, interest);
        }
        let state = self.pty.state.lock();
        let mut events = WRITABLE;
        if !state.output.is_empty() {
            events |= READABLE;
        }
        if state.slave_opened && state.slaves == 0 {
            events |= Events::HUP;
        }
        events
    }

    fn ioctl(
        &self,
        context: &mut Context<'_>,
        file: &OpenFile,
        request: u32,
        argument: u64,
    ) -> Result<usize> {
        let mm = context.mm();
        let user = UserPtr::<i32>::new(argument);
        match request {
            ioctl::TIOCGPTN => user.write(&mm, &(self.pty.number as i32))?,
            ioctl::TIOCSPTLCK => {
                let locked = user.read(&mm)? != 0;
                self.pty.state.lock().locked = locked;
            }
            ioctl::TIOCGPTLCK => {
                let locked = self.pty.state.lock().locked;
                user.write(&mm, &i32::from(locked))?;
            }
            ioctl::TIOCGPTPEER => {
                let ops = open_slave(&context.caller(), self.pty.number, argument as u32)?;
                let name = format!("{}", self.pty.number);
                let mut walk =
                    Walk::at(Caller::KERNEL, &context.thread.fs(), self.pty.node.clone());
                let path = walk.find(name.as_bytes(), Follow::Yes).ok();
                let opened = OpenFile::with_path(ops, argument as u32 & !flags::CLOEXEC, path);
                let close_on_exec = argument as u32 & flags::CLOEXEC != 0;
                let limit = hooks::file_limit(context.thread);
                let fd = context.thread.files().add(opened, close_on_exec, limit)?;
                return Ok(fd as usize);
            }
            ioctl::FIONREAD => {
                let len = self.pty.state.lock().output.len() as i32;
                user.write(&mm, &len)?;
            }
            _ => return self.pty.ioctl(context, file, request, argument, true),
        }
        Ok(0)
    }

    fn release(&self, _flags: u32) {
        self.pty.state.lock().masters = 0;
        PTYS.lock().remove(&self.pty.number);
        let name = self.pty.number.to_string();
        let context = FsContext::new(self.pty.node.clone());
        let _ = namei::unlink(&mut Walk::new(Caller::KERNEL, &context), name.as_bytes());
        hooks::hang_up(self.pty.terminal.foreground());
        self.pty.terminal.set_session(0, 0);
        self.pty.queue.wake(Events::HUP);
    }

    fn metadata(&self) -> Metadata {
        Metadata {
            mode: 0o020666,
            rdev: make_device(5, 2),
            ..anonymous_metadata()
        }
    }

    fn describe(&self) -> String {
        String::from("/dev/ptmx")
    }
}

impl FileOps for Slave {
    fn is_async(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        self.pty.terminal.check_read(thread)?;
        let most = to.remaining();
        if most == 0 {
            return Ok(0);
        }
        let attempt = || {
            let mut state = self.pty.state.lock();
            if state.slave_readable() {
                return Some(state.slave_take(most));
            }
            (state.masters == 0).then(Vec::new)
        };
        let bytes = match attempt() {
            Some(bytes) => bytes,
            None if file.is_nonblocking() => return Err(EAGAIN),
            None => block_on(thread, &self.pty.queue, READABLE, None, attempt)?,
        };
        if bytes.is_empty() {
            return Ok(0);
        }
        to.put(&bytes)
    }

    fn write(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        if self.pty.state.lock().termios.local & TOSTOP != 0 {
            self.pty.terminal.check_change(thread)?;
        }
        let start = from.done();
        let mut chunk = [0u8; 512];
        while !from.is_empty() {
            let ready = || {
                let state = self.pty.state.lock();
                (state.masters == 0 || state.output.len() < QUEUE_MAX).then_some(())
            };
            if ready().is_none() {
                let done = from.done() - start;
                if file.is_nonblocking() {
                    return if done > 0 { Ok(done) } else { Err(EAGAIN) };
                }
                match block_on(thread, &self.pty.queue, WRITABLE, None, ready) {
                    Ok(()) => {}
                    Err(error) if done == 0 => return Err(error),
                    Err(_) => return Ok(done),
                }
            }
            let len = from.remaining().min(chunk.len());
            let taken = from.take(&mut chunk[..len])?;
            let mut state = self.pty.state.lock();
            if state.masters == 0 {
                return Err(EIO);
            }
            state.put_output(&chunk[..taken]);
            drop(state);
            self.pty.queue.wake(READABLE);
        }
        Ok(from.done() - start)
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.pty.queue, interest);
        }
        let state = self.pty.state.lock();
        let mut events = Events::empty();
        if state.slave_readable() {
            events |= READABLE;
        }
        if state.output.len() < QUEUE_MAX {
            events |= WRITABLE;
        }
        if state.masters == 0 {
            events |= READABLE | Events::HUP | Events::ERR;
        }
        events
    }

    fn ioctl(
        &self,
        context: &mut Context<'_>,
        file: &OpenFile,
        request: u32,
        argument: u64,
    ) -> Result<usize> {
        if request == ioctl::FIONREAD {
            let state = self.pty.state.lock();
            let len = match state.termios.local & ICANON != 0 {
                true => state.lines.front().copied().unwrap_or(0),
                false => state.input.len(),
            };
            drop(state);
            UserPtr::<i32>::new(argument).write(&context.mm(), &(len as i32))?;
            return Ok(0);
        }
        if self.pty.state.lock().masters == 0 {
            return Err(EIO);
        }
        self.pty.ioctl(context, file, request, argument, false)
    }

    fn release(&self, _flags: u32) {
        let mut state = self.pty.state.lock();
        state.slaves = state.slaves.saturating_sub(1);
        drop(state);
        self.pty.queue.wake(Events::HUP);
    }

    fn metadata(&self) -> Metadata {
        Metadata {
            mode: 0o020620,
            rdev: device(self.pty.number),
            ..anonymous_metadata()
        }
    }

    fn describe(&self) -> String {
        format!("/dev/pts/{}", self.pty.number)
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use crate::errno::*;
    use crate::fs::tests::Machine;
    use crate::syscall::{descriptor, open};

    fn pair(m: &Machine) -> (u64, u64) {
        let master = m.open("/dev/ptmx", 0o4002, 0).expect("master");
        let at = m.scratch + 400;
        m.call(descriptor::ioctl, &[master, 0x8004_5430, at])
            .expect("TIOCGPTN");
        let number = m.get(400, 1)[0];
        let path = std::format!("/dev/pts/{number}");
        assert_eq!(m.open(&path, 0o402, 0), Err(EIO));
        m.put(400, &[0; 4]);
        m.call(descriptor::ioctl, &[master, 0x4004_5431, at])
            .expect("TIOCSPTLCK");
        let slave = m.open(&path, 0o4402, 0).expect("slave");
        (master, slave)
    }

    #[test]
    fn lines_are_edited_and_echoed() {
        let m = Machine::full();
        let (master, slave) = pair(&m);
        assert_eq!(m.write(master, b"helo\x7flo\rx"), Ok(9));
        assert_eq!(m.read(slave, 100).as_deref(), Ok(&b"hello\n"[..]));
        assert_eq!(m.read(slave, 100), Err(EAGAIN));
        assert_eq!(
            m.read(master, 100).as_deref(),
            Ok(&b"helo\x08 \x08lo\r\nx"[..])
        );
        assert_eq!(m.write(slave, b"a\nb"), Ok(3));
        assert_eq!(m.read(master, 100).as_deref(), Ok(&b"a\r\nb"[..]));
        // End of file after what was typed, then on its own.
        assert_eq!(m.write(master, b"\x04\x04"), Ok(2));
        assert_eq!(m.read(slave, 100).as_deref(), Ok(&b"x"[..]));
        assert_eq!(m.read(slave, 100).as_deref(), Ok(&b""[..]));
    }

    #[test]
    fn raw_mode_passes_bytes_and_hang_up_ends() {
        let m = Machine::full();
        let (master, slave) = pair(&m);
        let at = m.scratch + 400;
        m.call(descriptor::ioctl, &[slave, 0x5401, at])
            .expect("TCGETS");
        let mut termios = m.get(400, 36);
        termios[0..16].copy_from_slice(&[0; 16]);
        m.put(400, &termios);
        m.call(descriptor::ioctl, &[slave, 0x5402, at])
            .expect("TCSETS");
        let all: vec::Vec<u8> = (0..=255).collect();
        assert_eq!(m.write(master, &all), Ok(256));
        assert_eq!(m.read(slave, 1000).as_deref(), Ok(&all[..]));
        assert_eq!(m.read(master, 10), Err(EAGAIN));
        m.call(open::close, &[slave]).expect("close");
        assert_eq!(m.read(master, 10), Err(EIO));
        m.call(open::close, &[master]).expect("close");
        assert_eq!(m.open("/dev/pts/0", 2, 0).err(), Some(ENOENT));
    }
}
