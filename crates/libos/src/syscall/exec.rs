//! execve, execveat.

use alloc::format;
use alloc::vec::Vec;

use super::{Arguments, Context};
use crate::elf::{self, Executable, Program};
use crate::errno::{E2BIG, EINVAL, ELOOP, ENAMETOOLONG};
use crate::fs::inode::FileType;
use crate::fs::path::Follow;
use crate::fs::permission::Caller;
use crate::mm::AddressSpace;
use crate::platform::{FPU_STATE_MAX, platform};
use crate::process::{boot, exec, program};
use crate::ptrace;
use crate::user::{self, UserPtr};
use crate::{Registers, Result};

/// Longest single argument (MAX_ARG_STRLEN).
const ARGUMENT_MAX: usize = 128 << 10;
/// Most arguments and variables together: more cannot fit a stack.
const ARGUMENTS_MAX: usize = 1 << 20;
/// Most bytes of arguments and variables: three quarters of Linux's _STK_LIM.
const ARGUMENTS_SIZE_MAX: usize = 6 << 20;

const AT_EMPTY_PATH: u32 = 0x1000;
const AT_SYMLINK_NOFOLLOW: u32 = 0x100;

pub fn execve(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let path = user::read_path(&context.mm(), arguments.u64(0))?;
    let file = program::find(Caller::new(context.thread), &context.thread.fs(), &path)?;
    let name = Name {
        short: program::base_name(&path).to_vec(),
        full: path,
        is_gone: false,
    };
    run(context, file, name, arguments.u64(1), arguments.u64(2))
}

pub fn execveat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (fd, flags) = (arguments.i32(0), arguments.u32(4));
    if flags & !(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(EINVAL.because("unknown execveat flags"));
    }
    let path = user::read_path(&context.mm(), arguments.u64(1))?;
    let found = context.find_at(fd, &path, flags, Follow::Yes)?;
    if found.inode().kind() == FileType::Link {
        return Err(ELOOP.because("a symbolic link, and AT_SYMLINK_NOFOLLOW"));
    }
    let file = program::check(&Caller::new(context.thread), found)?;
    let absolute = path.first() == Some(&b'/') || fd == -100;
    // Of a descriptor alone, the process is named after its file.
    let short = match (&file.path, path.is_empty()) {
        (Some(place), true) => place.dentry.name().to_vec(),
        _ => program::base_name(&path).to_vec(),
    };
    let full = match (absolute, path.is_empty()) {
        (true, _) => path,
        (false, true) => format!("/dev/fd/{fd}").into_bytes(),
        (false, false) => [format!("/dev/fd/{fd}/").as_bytes(), &path].concat(),
    };
    let is_gone = !absolute && context.thread.files().close_on_exec(fd).unwrap_or(false);
    let name = Name {
        full,
        short,
        is_gone,
    };
    run(context, file, name, arguments.u64(2), arguments.u64(3))
}

/// How a program was called.
struct Name {
    full: Vec<u8>,
    /// The thread's name from now on.
    short: Vec<u8>,
    /// The full one is a descriptor that execve closes.
    is_gone: bool,
}

/// An array of strings that ends with a null pointer. `room`: bytes that may still be read.
fn strings(mm: &AddressSpace, address: u64, room: &mut usize) -> Result<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    let Some(array) = UserPtr::<u64>::new(address).option() else {
        return Ok(out);
    };
    loop {
        let pointer = array.add(out.len()).read(mm)?;
        if pointer == 0 {
            return Ok(out);
        }
        let text = user::read_string(mm, pointer, ARGUMENT_MAX).map_err(|error| {
            if error == ENAMETOOLONG {
                E2BIG.because("one argument is too long")
            } else {
                error
            }
        })?;
        *room = room
            .checked_sub(text.len() + 9)
            .filter(|_| out.len() < ARGUMENTS_MAX)
            .ok_or(E2BIG.because("too many arguments"))?;
        out.push(text);
    }
}

fn run(
    context: &mut Context<'_>,
    file: Executable,
    name: Name,
    argv: u64,
    envp: u64,
) -> Result<usize> {
    let thread = context.thread;
    let process = &thread.process;
    let mm = context.mm();
    let mut room = ARGUMENTS_SIZE_MAX;
    let arguments = strings(&mm, argv, &mut room)?;
    let environment = strings(&mm, envp, &mut room)?;
    drop(mm);
    let no_new_privileges = process
        .no_new_privileges
        .load(core::sync::atomic::Ordering::Relaxed);
    let (set_uid, set_gid) = if no_new_privileges || ptrace::keeps_rights(thread) {
        (None, None)
    } else {
        program::set_ids(&file)
    };
    let mut after = process.credentials.lock().clone();
    after.exec(set_uid, set_gid);
    let ids = [after.ruid, after.euid, after.rgid, after.egid];
    let program = Program {
        file,
        name: name.full,
        name_is_gone: name.is_gone,
        arguments,
        environment,
        ids,
        secure: after.ruid != after.euid || after.rgid != after.egid,
        stack_limit: process.limits.stack(),
    };
    let fs = thread.fs();
    let mut open = |path: &[u8]| program::find(Caller::new(thread), &fs, path);
    let loaded = elf::load(program, &mut open)?;
    let old_tid = thread.tid();
    exec::prepare(thread)?;
    exec::commit(thread, loaded.mm, &name.short, set_uid, set_gid);
    // Tracers see of which call this is the end.
    *context.registers = Registers {
        orig_rax: context.registers.orig_rax,
        ..boot::initial_registers(loaded.entry, loaded.stack_pointer)
    };
    platform().set_fs_base(0);
    restore_initial_fpu();
    ptrace::stop::executed(thread, context.registers, old_tid);
    Ok(0)
}

/// The extended state that a program starts with.
fn restore_initial_fpu() {
    let mut area = [0u8; FPU_STATE_MAX];
    let area = &mut area[..platform().fpu_size()];
    crate::signal::frame::initial_fpu(area);
    platform().fpu_restore(area);
}
