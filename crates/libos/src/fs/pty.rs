//! Pseudo-terminals: /dev/ptmx and /dev/pts.
//!
//! A [`Pty`] has a [`Line`] between its two sides: the line discipline, with what the master
//! wrote for the slave to read, and what the slave wrote for the master. The slave's node in
//! /dev/pts appears when the master is opened and goes when it is closed.
//!
//! Lock order: registry → state.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::context::FsContext;
use super::discipline::{Line, OLD_LEN, Termios, Wait};
use super::file::{FileOps, OpenFile, anonymous_metadata, flags};
use super::hooks;
use super::inode::{Metadata, NewNode, SetAttributes};
use super::ioctl;
use super::lower::make_device;
use super::namei;
use super::path::{Follow, PathRef, Walk};
use super::permission::Caller;
use super::tty::Terminal;
use crate::errno::{EAGAIN, EINVAL, EIO, ENOSPC, ENXIO, EPERM, ETIMEDOUT};
use crate::platform::platform;
use crate::process::credentials::CAP_SYS_ADMIN;
use crate::signal::{SIGHUP, SIGWINCH};
use crate::sync::SpinLock;
use crate::sync::wait::{Events, PollTable, WaitQueue, block_on};
use crate::syscall::Context;
use crate::user::{IoBuffer, UserPtr};
use crate::{Result, Thread};

/// Most pseudo-terminals at once.
const PTYS_MAX: u32 = 256;
const READABLE: Events = Events::IN.union(Events::RDNORM);
const WRITABLE: Events = Events::OUT.union(Events::WRNORM);
const BOTH: Events = READABLE.union(WRITABLE).union(Events::PRI);

struct State {
    line: Line,
    window: [u16; 4],
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
                line: Line::default(),
                window: [0; 4],
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

/// The leader of a session ends: its terminal controls nobody any more, and the foreground group
/// hears of it (disassociate_ctty of Linux: SIGHUP only, the terminal itself goes on).
pub fn leader_ends(session: u32) {
    if let Some(pty) = by_session(session) {
        let foreground = pty.terminal.foreground();
        pty.terminal.set_session(0, 0);
        hooks::signal_group(foreground, SIGHUP);
    }
}

/// Device number and foreground group of a session's terminal.
pub fn of_session(session: u32) -> Option<(u64, u32)> {
    let pty = by_session(session)?;
    Some((device(pty.number), pty.terminal.foreground()))
}

impl Pty {
    /// Input, as if it were typed.
    fn type_in(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        let receive = |&byte| state.line.receive(byte);
        let signals: Vec<u32> = bytes.iter().filter_map(receive).collect();
        drop(state);
        for signal in signals {
            hooks::signal_group(self.terminal.foreground(), signal);
        }
        // Writers too: the output may be stopped or go on.
        self.queue.wake(BOTH);
    }

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
                let termios = self.state.lock().line.termios();
                UserPtr::<Termios>::new(argument).write(&mm, &termios)?;
            }
            ioctl::TCGETS2 => {
                let termios = self.state.lock().line.termios();
                mm.write(argument, &termios.with_speeds())?;
            }
            ioctl::TIOCSTI => {
                // Only into one's own terminal, unless one may do anything (tty_ioctl(4)).
                let is_own = self.terminal.session() == hooks::session(context.thread);
                if is_master || !is_own && !context.caller().has(CAP_SYS_ADMIN) {
                    return Err(EPERM);
                }
                let mut byte = [0];
                mm.read(argument, &mut byte)?;
                self.type_in(&byte);
            }
            ioctl::TIOCGETD => UserPtr::<i32>::new(argument).write(&mm, &0)?,
            ioctl::TIOCSETD => {
                // N_TTY is the only one there is.
                if UserPtr::<i32>::new(argument).read(&mm)? != 0 {
                    return Err(EINVAL.because("no such line discipline"));
                }
            }
            ioctl::TCGETA => {
                let old = self.state.lock().line.termios().to_old();
                mm.write(argument, &old)?;
            }
            ioctl::TCSETS
            | ioctl::TCSETSW
            | ioctl::TCSETSF
            | ioctl::TCSETS2
            | ioctl::TCSETSW2
            | ioctl::TCSETSF2 => {
                let termios = UserPtr::<Termios>::new(argument).read(&mm)?;
                if !is_master {
                    self.terminal.check_change(context.thread)?;
                }
                let mut state = self.state.lock();
                let flush = matches!(request, ioctl::TCSETSF | ioctl::TCSETSF2);
                state.line.set_termios(termios, flush);
                drop(state);
                self.queue.wake(BOTH);
            }
            ioctl::TCSETA | ioctl::TCSETAW | ioctl::TCSETAF => {
                let mut old = [0; OLD_LEN];
                mm.read(argument, &mut old)?;
                if !is_master {
                    self.terminal.check_change(context.thread)?;
                }
                let mut state = self.state.lock();
                let termios = state.line.termios().with_old(&old);
                state.line.set_termios(termios, request == ioctl::TCSETAF);
                drop(state);
                self.queue.wake(BOTH);
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
                let state = self.state.lock();
                let len = match is_master {
                    true => 0,
                    false => state.line.output_len() as i32,
                };
                drop(state);
                UserPtr::<i32>::new(argument).write(&mm, &len)?;
            }
            ioctl::TCFLSH => {
                const TCIFLUSH: u64 = 0;
                const TCIOFLUSH: u64 = 2;
                if argument > TCIOFLUSH {
                    return Err(EINVAL.because("no such queue"));
                }
                // What one side reads the other wrote.
                let (mine, other) = (argument != 1, argument != TCIFLUSH);
                let (input, output) = match is_master {
                    true => (other, mine),
                    false => (mine, other),
                };
                let mut state = self.state.lock();
                if input {
                    state.line.flush_input();
                }
                if output {
                    state.line.flush_output();
                }
                drop(state);
                self.queue.wake(BOTH);
            }
            // A pseudoterminal has no line to break.
            ioctl::TCSBRK | ioctl::TCSBRKP | ioctl::TIOCSBRK | ioctl::TIOCCBRK => {}
            ioctl::TCXONC if is_master => {}
            ioctl::TCXONC => {
                self.terminal.check_change(context.thread)?;
                let mut state = self.state.lock();
                match argument {
                    0 | 1 => state.line.set_stopped_by_call(argument == 0),
                    2 | 3 => state.line.send_flow(argument == 2),
                    _ => return Err(EINVAL.because("no such action of tcflow")),
                }
                drop(state);
                self.queue.wake(BOTH);
            }
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
            match state.line.master_take(most) {
                Some(bytes) => Some(Ok(bytes)),
                None => (state.slave_opened && state.slaves == 0).then_some(Err(EIO)),
            }
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
            self.pty.type_in(&chunk[..taken]);
        }
        Ok(from.done() - start)
    }

    fn poll(&self, table: Option<&mut PollTable>, interest: Events) -> Events {
        if let Some(table) = table {
            table.register(&self.pty.queue, interest);
        }
        let state = self.pty.state.lock();
        let mut events = WRITABLE;
        if state.line.output_len() > 0 {
            events |= READABLE;
        }
        if state.line.has_status() {
            events |= READABLE | Events::PRI;
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
            ioctl::TIOCSIG => {
                let signal = argument as u32;
                if !(1..=64).contains(&signal) {
                    return Err(EINVAL.because("no such signal"));
                }
                hooks::signal_group(self.pty.terminal.foreground(), signal);
            }
            ioctl::TIOCPKT => {
                let on = user.read(&mm)? != 0;
                self.pty.state.lock().line.set_packet_mode(on);
            }
            ioctl::TIOCGPKT => {
                let on = self.pty.state.lock().line.is_in_packet_mode();
                user.write(&mm, &i32::from(on))?;
            }
            ioctl::FIONREAD => {
                let len = self.pty.state.lock().line.output_len() as i32;
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

impl Slave {
    /// A blocking read where no lines are kept: for so many bytes, for so long.
    fn read_raw(&self, thread: &Arc<Thread>, wait: Wait, most: usize) -> Result<Vec<u8>> {
        const TENTH_NS: u64 = 100_000_000;
        let mut seen = 0;
        loop {
            // The time runs from the start where no byte is asked for, else from each byte.
            let runs = wait.tenths > 0 && (wait.bytes == 0 || seen > 0);
            let deadline = runs.then(|| platform().monotonic() + u64::from(wait.tenths) * TENTH_NS);
            let more = block_on(thread, &self.pty.queue, READABLE, deadline, || {
                let state = self.pty.state.lock();
                let len = state.line.slave_len();
                let ends = state.masters == 0 || state.line.is_canonical();
                (ends || len > seen || len >= wait.bytes.max(1)).then_some((len, ends))
            });
            match more {
                Ok((len, ends)) if ends || len >= wait.bytes.max(1) => break,
                Ok((len, _)) => seen = len,
                Err(error) if error == ETIMEDOUT => break,
                Err(_) if seen > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.pty.state.lock().line.slave_take(most))
    }
}

/// A read that returns with what is there.
const NO_WAIT: Wait = Wait {
    bytes: 0,
    tenths: 0,
};

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
        let wait = self.pty.state.lock().line.wait(most);
        let bytes = match wait {
            // Nothing to wait for: not even to say that there is nothing.
            Some(NO_WAIT) => self.pty.state.lock().line.slave_take(most),
            Some(wait) if !file.is_nonblocking() => self.read_raw(thread, wait, most)?,
            _ => {
                let attempt = || {
                    let mut state = self.pty.state.lock();
                    if state.line.has_input() {
                        return Some(state.line.slave_take(most));
                    }
                    (state.masters == 0).then(Vec::new)
                };
                match attempt() {
                    Some(bytes) => bytes,
                    None if file.is_nonblocking() => return Err(EAGAIN),
                    None => block_on(thread, &self.pty.queue, READABLE, None, attempt)?,
                }
            }
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
        if self.pty.state.lock().line.stops_background() {
            self.pty.terminal.check_change(thread)?;
        }
        let start = from.done();
        let mut chunk = [0u8; 512];
        while !from.is_empty() {
            let ready = || {
                let state = self.pty.state.lock();
                (state.masters == 0 || state.line.is_writable()).then_some(())
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
            state.line.put_output(&chunk[..taken]);
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
        if state.line.slave_readable() {
            events |= READABLE;
        }
        if state.line.is_writable() {
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
            let len = self.pty.state.lock().line.slave_len();
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
