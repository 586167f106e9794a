//! The first process.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use bulla_abi::config::{AGENT, Config};

use super::credentials::Credentials;
use super::thread::{StartState, Work};
use super::{Process, program, table, users};
use crate::elf::{self, Program};
use crate::errno::{EACCES, ENOENT, ENOEXEC, ENOMEM};
use crate::fs::context::FsContext;
use crate::fs::path::{Follow, Walk};
use crate::fs::permission::Caller;
use crate::kernel::BootError;
use crate::platform::platform;
use crate::{Errno, Registers, Thread, fs};

/// Exit codes of container engines.
const OURS: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Largest /etc/passwd or /etc/group that is read.
const USERS_MAX: usize = 1 << 20;

pub fn ours(message: String) -> BootError {
    BootError {
        code: OURS,
        message,
    }
}

/// Builds process 1 from the configuration.
pub fn first_thread(config: &Config) -> Result<Arc<Thread>, BootError> {
    crate::trace::configure(config).map_err(|error| ours(format!("{error}")))?;
    crate::mm::accounting::set_limit(config.memory);
    let context = fs::init(config).map_err(|error| ours(error.message))?;
    // While the image waits for its key, its users are not known: the agent becomes the right one.
    let is_waiting = fs::sealed::is_waiting();
    let name = if is_waiting { "" } else { &config.user };
    let user = user(&context, name)?;
    let credentials = user.credentials;
    crate::attestation::file::set_owner(credentials.ruid, credentials.rgid);
    let mut environment = environment(config, user.home.as_deref());
    if is_waiting && lookup(&config.env, b"HOME").is_none() {
        // For the agent to add, once it can.
        environment.retain(|entry| !entry.starts_with(b"HOME="));
    }
    let (loaded, found_at) = load_program(config, &context, &credentials, environment)?;

    let files = fs::standard_files(config, &context)
        .map_err(|error| ours(format!("the standard streams cannot be opened: {error:?}")))?;
    let pid = table::lock()
        .allocate()
        .map_err(|error| ours(format!("no process id for the first process: {error:?}")))?;
    let process = Process::new(pid, loaded.mm.clone());
    *process.credentials.lock() = credentials;
    process.signals.group.lock().unkillable = true;
    process
        .times
        .started
        .store(platform().monotonic(), Ordering::Relaxed);
    process.has_executed.store(true, Ordering::Relaxed);
    process
        .agent
        .store(found_at == AGENT.as_bytes(), Ordering::Relaxed);
    let start = StartState {
        registers: initial_registers(loaded.entry, loaded.stack_pointer),
        fs_base: 0,
        fpu: None,
    };
    let thread = Arc::new(Thread::new(
        pid,
        process.clone(),
        files,
        context.clone(),
        start,
    ));
    super::exec::set_name(&thread, program::base_name(&found_at));
    thread.add_own_work(Work::RESIDENCY);
    process.threads.lock().push(Arc::downgrade(&thread));
    loaded.mm.attach(&thread);
    if config.terminal {
        // As a container engine does: the first process leads the terminal's session.
        fs::tty::host_terminal().set_session(pid, pid);
    }
    let mut table = table::lock();
    table.insert_process(&process, 0);
    table.insert_thread(&thread);
    drop(table);
    Ok(thread)
}

/// A user with what a program of theirs needs.
pub struct User {
    pub credentials: Credentials,
    pub home: Option<Vec<u8>>,
}

/// Resolves a user from the container's own files.
pub fn user(context: &FsContext, name: &str) -> Result<User, BootError> {
    let passwd = read_file(context, b"/etc/passwd");
    let group = read_file(context, b"/etc/group");
    let user = users::resolve(name, &passwd, &group).map_err(ours)?;
    Ok(User {
        credentials: Credentials::new(user.uid, user.gid, user.groups.clone()),
        home: user.home,
    })
}

/// Finds and loads the program of `config`; also the path where it was found.
pub fn load_program(
    config: &Config,
    context: &FsContext,
    credentials: &Credentials,
    environment: Vec<Vec<u8>>,
) -> Result<(elf::Loaded, Vec<u8>), BootError> {
    let name = config
        .argv
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| {
            ours("the image names no program to start; set `argv` in the manifest".into())
        })?;
    let caller = Caller {
        thread: None,
        credentials: Some(credentials),
    };
    let path = lookup(&environment, b"PATH")
        .unwrap_or(program::DEFAULT_PATH)
        .to_vec();
    let path = &path[..];
    let (file, found_at) = program::search(caller, context, name, path)
        .map_err(|error| not_startable(name, path, error))?;
    let ids = [
        credentials.ruid,
        credentials.euid,
        credentials.rgid,
        credentials.egid,
    ];
    let program = Program {
        file,
        name: found_at.clone(),
        name_is_gone: false,
        arguments: config.argv.clone(),
        environment,
        ids,
        secure: false,
        stack_limit: super::limits::Limits::default().stack(),
    };
    let mut open = |path: &[u8]| program::find(caller, context, path);
    let loaded = elf::load(program, &mut open).map_err(|error| not_startable(name, path, error))?;
    Ok((loaded, found_at))
}

/// Registers at a program's first instruction.
pub fn initial_registers(entry: u64, stack_pointer: u64) -> Registers {
    Registers {
        rip: entry,
        rsp: stack_pointer,
        // Interrupts enabled, and the bit that is always set.
        rflags: 0x202,
        orig_rax: u64::MAX,
        ..Registers::default()
    }
}

fn read_file(context: &FsContext, path: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    let Ok(found) = Walk::new(Caller::KERNEL, context).find(path, Follow::Yes) else {
        return content;
    };
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = found.inode().read_bytes(content.len() as u64, &mut chunk) {
        content.extend_from_slice(&chunk[..read]);
        if content.len() >= USERS_MAX {
            break;
        }
    }
    content
}

fn lookup<'a>(environment: &'a [Vec<u8>], name: &[u8]) -> Option<&'a [u8]> {
    environment.iter().find_map(|entry| {
        let value = entry.strip_prefix(name)?;
        value.strip_prefix(b"=")
    })
}

/// What a container engine adds to the image's environment.
pub fn environment(config: &Config, home: Option<&[u8]>) -> Vec<Vec<u8>> {
    let mut environment = config.env.clone();
    let mut add = |name: &[u8], value: &[u8]| {
        if lookup(&environment, name).is_none() {
            environment.push([name, b"=", value].concat());
        }
    };
    add(b"PATH", program::DEFAULT_PATH);
    add(b"HOSTNAME", &crate::kernel().names().0);
    if config.terminal {
        add(b"TERM", b"xterm");
    }
    add(
        b"HOME",
        home.filter(|home| !home.is_empty()).unwrap_or(b"/"),
    );
    environment
}

fn not_startable(name: &[u8], path: &[u8], error: Errno) -> BootError {
    let name = String::from_utf8_lossy(name);
    let path = String::from_utf8_lossy(path);
    let (code, reason) = if error == ENOENT && name.contains('/') {
        (
            NOT_FOUND,
            "no such file, or no such interpreter, in the image; check the entry point".into(),
        )
    } else if error == ENOENT {
        (
            NOT_FOUND,
            format!("not found in PATH ({path}); check the entry point or set PATH"),
        )
    } else if error == EACCES {
        (
            NOT_EXECUTABLE,
            "permission denied; it must be a regular file that the user may execute".into(),
        )
    } else if error == ENOEXEC {
        (
            NOT_EXECUTABLE,
            "not an x86-64 ELF program and not a script that begins with #!".into(),
        )
    } else if error == ENOMEM {
        (
            OURS,
            "not enough memory; raise `memory` in the manifest".into(),
        )
    } else {
        (NOT_EXECUTABLE, format!("{error:?}"))
    };
    BootError {
        code,
        message: format!("cannot start {name:?}: {reason}"),
    }
}
