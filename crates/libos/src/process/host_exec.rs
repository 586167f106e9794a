//! Programs that the host starts in the running container (`bulla exec`), where the measured
//! configuration lets it.
//!
//! The request is taken when the host's signals are, by whatever thread looks; only a bare process
//! is made there. The new thread brings its program in itself, before it first runs user code,
//! where it may sleep. It is nobody's child, as with other container engines, and leads a session
//! of its own; the host is told when it ends.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use bulla_abi::config::Config;
use bulla_abi::hostcall::{DATA_SIZE, EXEC_REFUSED, HostCall};
use bulla_abi::input::ExecRequest;

use super::thread::{StartState, Work};
use super::{Process, boot, exec, exit, program, table};
use crate::errno::{ENOENT, ENOTDIR};
use crate::fs::file::{OpenFile, flags};
use crate::fs::path::{Follow, Walk};
use crate::fs::permission::Caller;
use crate::fs::table::FdTable;
use crate::fs::{host, tty};
use crate::kernel::{BootError, kernel};
use crate::mm::AddressSpace;
use crate::platform::platform;
use crate::signal::SigInfo;
use crate::signal::send::{Origin, to_group, to_process};
use crate::sync::SpinLock;
use crate::{Registers, Result, Thread};

/// Most requests that wait or run at once.
const MOST: usize = 1024;

/// A program that the host asked for.
struct Entry {
    token: u64,
    pid: u32,
    /// What it is to run.
    request: ExecRequest,
    /// The host knows already that it does not run.
    refused: bool,
    terminal: Option<Arc<tty::Terminal>>,
}

static ENTRIES: SpinLock<Vec<Entry>> = SpinLock::new(Vec::new());

/// Takes what the host asks for, if it may ask at all.
pub fn take_requests() {
    if !kernel().config.host.exec || table::process(1).is_none() {
        return;
    }
    while let Some(request) = take() {
        if request.signal != 0 {
            pass_signal(&request);
        } else if ENTRIES.lock().len() >= MOST {
            refuse(request.token, 125, "too many programs run already");
        } else {
            let token = request.token;
            if let Err(error) = start(request) {
                let text = format!("the container has no room for another program: {error:?}");
                refuse(token, 125, &text);
            }
        }
    }
}

fn take() -> Option<ExecRequest> {
    let len = platform().host_call(HostCall::ExecTake, [0; 4], None);
    let len = u64::try_from(len)
        .ok()
        .filter(|len| (1..=DATA_SIZE).contains(len))?;
    let mut bytes = vec![0; len as usize];
    platform().host_get(0, &mut bytes).ok()?;
    ExecRequest::from_bytes(&bytes)
}

/// Tells the host why a program does not run.
fn refuse(token: u64, code: u8, reason: &str) {
    let reason = &reason.as_bytes()[..reason.len().min(4096)];
    if platform().host_put(0, reason).is_ok() {
        let status = EXEC_REFUSED | u64::from(code);
        let arguments = [token, status, reason.len() as u64, 0];
        platform().host_call(HostCall::ExecDone, arguments, None);
    }
}

/// A signal of the host's terminal goes to the foreground group there, any other to the program.
fn pass_signal(request: &ExecRequest) {
    let found = {
        let entries = ENTRIES.lock();
        let found = entries.iter().find(|entry| entry.token == request.token);
        found.map(|entry| (entry.pid, entry.terminal.clone()))
    };
    let Some((pid, terminal)) = found else { return };
    if !(1..=64).contains(&request.signal) {
        return;
    }
    let info = SigInfo::kernel(request.signal);
    let foreground = terminal.map_or(0, |terminal| terminal.foreground());
    if foreground != 0 {
        let _ = to_group(foreground, info, Origin::Inside);
    } else if let Some(process) = table::process(pid) {
        let _ = to_process(&process, info, Origin::Inside);
    }
}

/// Makes the process and lets its thread run.
fn start(request: ExecRequest) -> Result<()> {
    let Some(init) = table::process(1).and_then(|init| init.main_thread()) else {
        return Err(crate::errno::ESRCH);
    };
    let files = FdTable::default();
    let mut streams = Vec::new();
    let root = init.fs().copy();
    root.set_root(crate::fs::root().cloned().unwrap_or(root.root()));
    let console = Walk::new(Caller::KERNEL, &root).find(b"/dev/console", Follow::Yes);
    let console = console.ok();
    let terminal = request.terminal.then(|| Arc::new(tty::Terminal::default()));
    for (at, fd) in request.standard.iter().enumerate() {
        let access = match (request.terminal, at) {
            (true, _) => flags::RDWR,
            (false, 0) => flags::RDONLY,
            (false, _) => flags::WRONLY,
        };
        let fd = i32::try_from(*fd).map_err(|_| crate::errno::EBADF)?;
        let stream = host::open_passed(fd, terminal.clone()).ok_or(crate::errno::EBADF)?;
        streams.push(stream.clone());
        // By a name, so that ttyname(3) finds it.
        let path = console.clone().filter(|_| stream.is_terminal());
        files.add(OpenFile::with_path(stream, access, path), false, usize::MAX)?;
    }
    let pid = table::lock().allocate()?;
    let mm = AddressSpace::new();
    let process = Process::new(pid, mm.clone());
    process
        .times
        .started
        .store(platform().monotonic(), Ordering::Relaxed);
    process.exit_signal.store(0, Ordering::Relaxed);
    let state = StartState {
        registers: Registers::default(),
        fs_base: 0,
        fpu: None,
    };
    let thread = Thread::new(pid, process.clone(), Arc::new(files), root, state);
    let thread = Arc::new(thread);
    thread.add_own_work(Work::HOST_EXEC);
    process.threads.lock().push(Arc::downgrade(&thread));
    mm.attach(&thread);
    if let Some(terminal) = &terminal {
        terminal.set_session(pid, pid);
        if let Some(stream) = streams.first() {
            tty::add_passed(terminal, stream.clone());
        }
    }
    ENTRIES.lock().push(Entry {
        token: request.token,
        pid,
        request,
        refused: false,
        terminal,
    });
    {
        let mut table = table::lock();
        table.insert_process(&process, 0);
        table.insert_thread(&thread);
    }
    let started = platform().spawn(thread.clone());
    if started.is_err() {
        forget(pid);
        mm.detach(&thread);
        let mut table = table::lock();
        table.remove_thread(pid);
        drop(table.reap(pid));
    }
    started
}

fn forget(pid: u32) -> Option<Entry> {
    let entry = {
        let mut entries = ENTRIES.lock();
        let at = entries.iter().position(|entry| entry.pid == pid)?;
        entries.swap_remove(at)
    };
    if let Some(terminal) = &entry.terminal {
        tty::remove_passed(terminal);
    }
    Some(entry)
}

/// A process has ended; whether it was one of these, which nobody waits for inside.
pub fn ended(pid: u32, status: u32) -> bool {
    let Some(entry) = forget(pid) else {
        return false;
    };
    if !entry.refused {
        let arguments = [entry.token, u64::from(status), 0, 0];
        platform().host_call(HostCall::ExecDone, arguments, None);
    }
    true
}

/// The first thing that the thread does: brings its program in.
pub fn begin(thread: &Arc<Thread>, registers: &mut Registers) {
    let pid = thread.process.pid;
    let request = {
        let entries = ENTRIES.lock();
        let entry = entries.iter().find(|entry| entry.pid == pid);
        entry.map(|entry| (entry.token, entry.request.clone()))
    };
    let Some((token, request)) = request else {
        return exit::group_exit(&thread.process, 125 << 8);
    };
    match load(thread, &request, &kernel().config) {
        Ok(at_start) => *registers = at_start,
        Err(error) => {
            let mut entries = ENTRIES.lock();
            if let Some(entry) = entries.iter_mut().find(|entry| entry.pid == pid) {
                entry.refused = true;
            }
            drop(entries);
            refuse(token, error.code, &error.message);
            exit::group_exit(&thread.process, u32::from(error.code) << 8);
        }
    }
}

fn load(
    thread: &Arc<Thread>,
    request: &ExecRequest,
    config: &Config,
) -> core::result::Result<Registers, BootError> {
    let context = thread.fs();
    let user = request.user.as_ref().unwrap_or(&config.user);
    let user = boot::user(&context, user)?;
    let wanted = request.workdir.as_ref().unwrap_or(&config.cwd);
    let wanted: &[u8] = if wanted.is_empty() { b"/" } else { wanted };
    context.set_cwd(context.root());
    let found = Walk::new(Caller::KERNEL, &context).find(wanted, Follow::Yes);
    let found = found.and_then(|found| match found.inode().is_directory() {
        true => Ok(found),
        false => Err(ENOTDIR),
    });
    let cwd = found.map_err(|error| {
        let path = String::from_utf8_lossy(wanted);
        let reason = match error == ENOENT {
            true => String::from("the container has no such directory"),
            false => format!("{error:?}"),
        };
        boot::ours(format!("the working directory {path}: {reason}"))
    })?;
    context.set_cwd(cwd);
    context.set_umask(0o022);
    let mut config = Config {
        argv: request.arguments.clone(),
        terminal: request.terminal,
        env: config.env.clone(),
        ..Config::default()
    };
    for variable in &request.environment {
        let name = variable.split(|&byte| byte == b'=').next().unwrap_or(&[]);
        config.env.retain(|known| {
            known
                .strip_prefix(name)
                .is_none_or(|rest| !rest.starts_with(b"="))
        });
        config.env.push(variable.clone());
    }
    let environment = boot::environment(&config, user.home.as_deref());
    let (loaded, found_at) = boot::load_program(&config, &context, &user.credentials, environment)?;
    *thread.process.credentials.lock() = user.credentials;
    exec::commit(thread, loaded.mm, program::base_name(&found_at), None, None);
    Ok(boot::initial_registers(loaded.entry, loaded.stack_pointer))
}
