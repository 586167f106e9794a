//! Host calls: what the enclave asks of the host, one function each.
//!
//! The hot path is one match and one system call: no allocation, no lock. Arguments come from the
//! enclave and are checked like anyone's: data lies in the slot's shared area, descriptors are
//! those that the enclave may use, numbers are in range.

mod files;
mod memory;
mod network;
mod passthrough;
mod volumes;
mod waits;

pub use passthrough::PassedDirectory;
pub use volumes::VolumeFiles;

use bulla_abi::hostcall::{HostCall, log_level};

use crate::backend::Registers;
use crate::descriptors::resolve;
use crate::launch::ExitStatus;
use crate::stats::{self, CALLS};
use crate::sys::area::Span;
use crate::sys::raw::{Answer, Errno};
use crate::sys::time;
use crate::threads::{Engine, Slot};

/// Makes quotes: speaks to the quoting enclave, or to the emulated one.
pub trait Quoter: Send + Sync {
    /// TARGETINFO of the quoting enclave.
    fn target(&self) -> std::io::Result<[u8; 512]>;
    /// A quote over a REPORT.
    fn quote(&self, report: &[u8]) -> std::io::Result<Vec<u8>>;
    /// What verifies its quotes, as JSON, where that is at hand.
    fn collateral(&self) -> std::io::Result<Vec<u8>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// Listens to what the enclave says for a debugger.
pub trait Debugger: Send + Sync {
    /// An object has been mapped; its first byte is at `address`.
    fn mapped(&self, address: u64, path: &str);
    /// The first process is about to run: returns when it may.
    fn attach(&self);
}

/// What becomes of the thread after a host call.
pub enum Reply {
    /// EENTER with this result.
    Return(u64),
    /// It has given its slot up.
    Leave,
}

/// A host call being served.
struct Call<'a> {
    engine: &'static Engine,
    slot: &'a Slot,
    arguments: [u64; 4],
}

impl Call<'_> {
    /// `len` bytes at the start of the data buffer.
    #[inline(always)]
    fn data(&self, len: u64) -> Result<Span<'_>, Errno> {
        self.slot.area.data(0, len)
    }

    /// The host's descriptor for the enclave's `fd`.
    #[inline(always)]
    fn descriptor(&self, fd: u64) -> Result<i32, Errno> {
        resolve(self.engine.made, &self.engine.standard, fd)
    }
}

/// Serves the host call in `registers`.
#[inline]
pub fn serve(engine: &'static Engine, slot: &Slot, registers: &Registers) -> Reply {
    let number = registers.rdi;
    if let Some(count) = slot.counters.calls.get(number as usize) {
        count.add(1);
    }
    let call = Call {
        engine,
        slot,
        arguments: [registers.rsi, registers.rdx, registers.r8, registers.r9],
    };
    let answer = match HostCall::from_number(number) {
        Some(HostCall::Exit) => {
            let [status, rewritten, trapped, _] = call.arguments;
            stats::note_sites(rewritten, trapped);
            let status = ExitStatus::from_wait(status);
            engine.finish(Ok(status))
        }
        Some(HostCall::Panic) => {
            call.panic_message();
            engine.finish(Ok(ExitStatus::Stopped))
        }
        Some(HostCall::ThreadExit) => return Reply::Leave,
        Some(kind) => dispatch(&call, kind),
        None => Err(Errno(libc::ENOSYS)),
    };
    Reply::Return(match answer {
        Ok(value) => value,
        Err(Errno(errno)) => -i64::from(errno) as u64,
    })
}

#[inline(always)]
fn dispatch(call: &Call<'_>, kind: HostCall) -> Answer {
    match kind {
        HostCall::Recv => call.receive(),
        HostCall::Send => call.send(),
        HostCall::EpollWait => call.epoll_wait(),
        HostCall::Poll => call.poll(),
        HostCall::Wait => call.wait(),
        HostCall::Wake => call.engine.wake(call.slot, call.arguments[0]),
        HostCall::Read => call.read(),
        HostCall::Write => call.write(),
        HostCall::Clock => call.clock(),
        HostCall::MemCommit => call.commit(),
        HostCall::MemProtect => call.protect(),
        HostCall::MemRestrict => call.restrict(),
        HostCall::MemType => call.modify_type(),
        HostCall::MemRemove => call.remove(),
        HostCall::ThreadStart => call.engine.start(call.arguments[0]),
        HostCall::Kick => call.engine.kick(call.slot, call.arguments[0]),
        HostCall::Yield => {
            time::yield_now();
            Ok(0)
        }
        HostCall::TakeSignals => Ok(crate::sys::signal::take_pending()),
        HostCall::Cpuid => call.cpuid(),
        HostCall::Close => call.close(),
        HostCall::Ioctl => call.ioctl(),
        HostCall::FdInfo => call.info(),
        HostCall::FdStat => call.status(),
        HostCall::Socket => call.socket(),
        HostCall::Bind => call.bind(),
        HostCall::Listen => call.listen(),
        HostCall::Accept => call.accept(),
        HostCall::Connect => call.connect(),
        HostCall::Shutdown => call.shutdown(),
        HostCall::GetSockOpt => call.get_option(),
        HostCall::SetSockOpt => call.set_option(),
        HostCall::GetSockName => call.own_name(),
        HostCall::GetPeerName => call.peer_name(),
        HostCall::EpollCreate => call.epoll_create(),
        HostCall::EpollCtl => call.epoll_control(),
        HostCall::NetQuery => call.network(),
        HostCall::Quote => call.quote(),
        HostCall::QuoteTarget => call.quote_target(),
        HostCall::QuoteCollateral => call.quote_collateral(),
        HostCall::VolumeSize => call.volume_size(),
        HostCall::VolumeRead => call.volume_read(),
        HostCall::VolumeWrite => call.volume_write(),
        HostCall::VolumeResize => call.volume_resize(),
        HostCall::VolumeSync => call.volume_sync(),
        HostCall::PassRoot => call.pass_root(),
        HostCall::PassLookup => call.pass_lookup(),
        HostCall::PassOpen => call.pass_open(),
        HostCall::PassCreate => call.pass_create(),
        HostCall::PassRemove => call.pass_remove(),
        HostCall::PassRename => call.pass_rename(),
        HostCall::PassLink => call.pass_link(),
        HostCall::PassReadLink => call.pass_read_link(),
        HostCall::PassReadDir => call.pass_read_directory(),
        HostCall::PassChange => call.pass_change(),
        HostCall::PassSync => call.pass_sync(),
        HostCall::PassStatistics => call.pass_statistics(),
        HostCall::ExecTake => call.exec_take(),
        HostCall::ExecDone => call.exec_done(),
        HostCall::Log => call.log(),
        // Handled by the caller.
        HostCall::Resume | HostCall::Exit | HostCall::Panic | HostCall::ThreadExit => Ok(0),
        HostCall::Reserved => Err(Errno(libc::ENOSYS)),
    }
}

impl Call<'_> {
    /// Log(len, level): a line on stderr.
    fn log(&self) -> Answer {
        let [len, level, ..] = self.arguments;
        if level == u64::from(log_level::TRACE) {
            eprintln!("{}", self.text(len)?);
            return Ok(0);
        }
        if level == u64::from(log_level::OBJECT) || level == u64::from(log_level::ATTACH) {
            let debugger = self.engine.debugger.as_ref().ok_or(Errno(libc::ENODEV))?;
            match self.text(len)?.split_once(' ') {
                Some((address, path)) => {
                    let address = u64::from_str_radix(address, 16);
                    debugger.mapped(address.map_err(|_| Errno(libc::EINVAL))?, path);
                }
                None => debugger.attach(),
            }
            return Ok(0);
        }
        if level <= self.engine.log_level {
            let label = match level {
                0 => "error: ",
                1 => "warning: ",
                2 => "",
                _ => "debug: ",
            };
            eprintln!("bulla: {label}{}", self.text(len)?);
        }
        Ok(0)
    }

    /// ExecTake: the length of the next request, or 0.
    fn exec_take(&self) -> Answer {
        let made = |fd| self.made(fd).is_ok();
        let Some(bytes) = self
            .engine
            .execs
            .as_ref()
            .and_then(|execs| execs.take(made))
        else {
            return Ok(0);
        };
        self.data(bytes.len() as u64)?.put(0, &bytes);
        Ok(bytes.len() as u64)
    }

    /// ExecDone(token, status, length of a reason).
    fn exec_done(&self) -> Answer {
        let [token, status, len, _] = self.arguments;
        if let Some(execs) = &self.engine.execs {
            execs.done(token, status, || self.text(len).unwrap_or_default());
        }
        Ok(0)
    }

    fn panic_message(&self) {
        let text = self.text(self.arguments[0]);
        let text = match text.as_deref() {
            Ok("") => "a fault before it was ready, or while it looked at one",
            Ok(text) => text,
            Err(_) => "it gave no reason",
        };
        eprintln!("bulla: the enclave's runtime stopped: {text}");
    }

    /// Text from the enclave, fit for a terminal.
    fn text(&self, len: u64) -> Result<String, Errno> {
        let bytes = self.data(len)?.to_vec();
        let text = String::from_utf8_lossy(&bytes);
        let printable = |c: char| {
            if c.is_control() && c != '\n' && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        };
        Ok(text.trim_end().chars().map(printable).collect())
    }

    /// Clock(id): time in ns.
    fn clock(&self) -> Answer {
        match self.arguments[0] {
            // Where RDTSC traps, the vDSO's would too, on this thread.
            id @ (0 | 1 | 7) if !self.engine.rdtsc => time::clock_by_system_call(id as i32),
            id @ (0 | 1 | 7) => time::clock(id as i32),
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    /// Cpuid(leaf, subleaf): eax, ebx, ecx, edx into the buffer.
    fn cpuid(&self) -> Answer {
        let [leaf, subleaf, ..] = self.arguments;
        let registers = self.data(16)?;
        for (index, word) in time::cpuid(leaf as u32, subleaf as u32).iter().enumerate() {
            registers.put(index * 4, &word.to_le_bytes());
        }
        Ok(0)
    }

    /// Quote(len of the REPORT): the quote's length.
    fn quote(&self) -> Answer {
        let quoter = self.engine.quoter.as_ref().ok_or(Errno(libc::ENODEV))?;
        let report = self.data(self.arguments[0])?.to_vec();
        let quote = quoter
            .quote(&report)
            .map_err(|error| self.quoting_failed(error))?;
        self.data(quote.len() as u64)?.put(0, &quote);
        Ok(quote.len() as u64)
    }

    fn quote_target(&self) -> Answer {
        let quoter = self.engine.quoter.as_ref().ok_or(Errno(libc::ENODEV))?;
        let target = quoter
            .target()
            .map_err(|error| self.quoting_failed(error))?;
        self.data(target.len() as u64)?.put(0, &target);
        Ok(target.len() as u64)
    }

    /// QuoteCollateral: its length. To have none is no error worth a message.
    fn quote_collateral(&self) -> Answer {
        let quoter = self.engine.quoter.as_ref().ok_or(Errno(libc::ENODEV))?;
        let collateral = quoter.collateral().map_err(|_| Errno(libc::ENODATA))?;
        self.data(collateral.len() as u64)?.put(0, &collateral);
        Ok(collateral.len() as u64)
    }

    fn quoting_failed(&self, error: std::io::Error) -> Errno {
        eprintln!("bulla: error: no quote can be had: {error}");
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

const _: () = assert!(CALLS > HostCall::ExecDone as usize);
