//! process_vm_readv, process_vm_writev.

use alloc::sync::Arc;

use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, EPERM};
use crate::mm::AddressSpace;
use crate::process::credentials::By;
use crate::process::table;
use crate::user::{IoBuffer, zeroed};

/// process_vm_readv(2).
pub fn process_vm_readv(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    check_flags(arguments)?;
    let ours = context.mm();
    let mut to = IoBuffer::vector(&ours, arguments.u64(1), arguments.usize(2))?;
    if to.is_empty() {
        return Ok(0);
    }
    let theirs = other_space(context, arguments)?;
    let mut from = IoBuffer::vector_in(&ours, &theirs, arguments.u64(3), arguments.usize(4))?;
    transfer(&mut from, &mut to, take_text)
}

/// Takes of one range of memory, text as the program's file has it.
fn take_text(from: &mut IoBuffer<'_>, bytes: &mut [u8]) -> Result<usize> {
    let Some((mm, start, available)) = from.next_user_range() else {
        return Ok(0);
    };
    let len = available.min(bytes.len());
    let taken = from.take(&mut bytes[..len])?;
    mm.undo_rewriting(start, &mut bytes[..taken]);
    Ok(taken)
}

/// process_vm_writev(2).
pub fn process_vm_writev(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    check_flags(arguments)?;
    let ours = context.mm();
    let mut from = IoBuffer::vector(&ours, arguments.u64(1), arguments.usize(2))?;
    if from.is_empty() {
        return Ok(0);
    }
    let theirs = other_space(context, arguments)?;
    let mut to = IoBuffer::vector_in(&ours, &theirs, arguments.u64(3), arguments.usize(4))?;
    transfer(&mut from, &mut to, IoBuffer::take)
}

fn check_flags(arguments: Arguments) -> Result<()> {
    match arguments.u64(5) {
        0 => Ok(()),
        _ => Err(EINVAL.because("unknown flags")),
    }
}

/// The other process's space, for whom it may be (PTRACE_MODE_ATTACH_REALCREDS).
fn other_space(context: &Context<'_>, arguments: Arguments) -> Result<Arc<AddressSpace>> {
    let process = match table::thread(arguments.u32(0)) {
        Some(thread) => thread.process.clone(),
        None => table::process_or_esrch(arguments.u32(0))?,
    };
    match process.may_be_examined(&context.thread.process, By::RealIds) {
        true => Ok(process.mm()),
        false => Err(EPERM.because("a process with other rights")),
    }
}

/// Copies as much as both have room for; the bytes copied.
fn transfer<'a>(
    from: &mut IoBuffer<'a>,
    to: &mut IoBuffer<'_>,
    take: impl Fn(&mut IoBuffer<'a>, &mut [u8]) -> Result<usize>,
) -> Result<usize> {
    const CHUNK: usize = 64 << 10;
    let mut buffer = zeroed(CHUNK.min(from.remaining()));
    let mut total = 0;
    while !from.is_empty() && !to.is_empty() {
        let len = buffer.len().min(from.remaining()).min(to.remaining());
        let result = take(from, &mut buffer[..len]).and_then(|len| to.put(&buffer[..len]));
        match result {
            Ok(0) => break,
            Ok(moved) => total += moved,
            Err(errno) if total == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(total)
}
