//! Character devices: the memory devices here, terminals in [`super::host`] and [`super::pty`].

use alloc::sync::Arc;
use core::any::Any;

use super::file::{FileOps, OpenFile};
use super::inode::FileType;
use super::lower::split_device;
use super::path::PathRef;
use super::permission::Caller;
use crate::errno::{EINVAL, ENOSPC, ENOTTY, ENXIO};
use crate::platform::platform;
use crate::syscall::Context;
use crate::user::IoBuffer;
use crate::{Result, Thread};

/// Opens the device of this number.
pub fn open(
    caller: &Caller<'_>,
    path: &PathRef,
    kind: FileType,
    rdev: u64,
    flags: u32,
) -> Result<Arc<dyn FileOps>> {
    if kind != FileType::Character {
        return Err(ENXIO.because("no block devices"));
    }
    Ok(match split_device(rdev) {
        (1, 3) => Arc::new(Null),
        (1, 5) => Arc::new(Zero),
        (1, 7) => Arc::new(Full),
        (1, 8 | 9) => Arc::new(Random),
        (5, 0) => super::tty::open_controlling(caller)?,
        (5, 1) => super::host::open_console(caller, flags)?,
        (5, 2) => super::pty::open_master(caller, path)?,
        (136, number) => super::pty::open_slave(caller, number, flags)?,
        _ => return Err(ENXIO.because("no such device")),
    })
}

/// /dev/null.
struct Null;
/// /dev/zero.
struct Zero;
/// /dev/full.
struct Full;
/// /dev/random and /dev/urandom.
struct Random;

/// Whether Linux has no way to wait for this device: epoll refuses it, as it refuses files.
pub fn is_always_ready(ops: &dyn FileOps) -> bool {
    let ops = ops.as_any();
    ops.is::<Null>() || ops.is::<Zero>() || ops.is::<Full>()
}

/// What /dev/random answers to RNDGETENTCNT: its pool is always full.
const ENTROPY_BITS: i32 = 256;

fn no_ioctl(_: &mut Context<'_>, _: u32, _: u64) -> Result<usize> {
    Err(ENOTTY)
}

fn random_ioctl(context: &mut Context<'_>, request: u32, argument: u64) -> Result<usize> {
    const RNDGETENTCNT: u32 = 0x8004_5200;
    match request {
        RNDGETENTCNT => {
            context.mm().write(argument, &ENTROPY_BITS.to_le_bytes())?;
            Ok(0)
        }
        _ => Err(ENOTTY),
    }
}

macro_rules! memory_device {
    ($name:ident, $read:expr, $write:expr, $ioctl:expr) => {
        impl FileOps for $name {
            fn as_any(&self) -> &dyn Any {
                self
            }

            fn read(
                &self,
                _thread: &Arc<Thread>,
                _file: &OpenFile,
                to: &mut IoBuffer<'_>,
            ) -> Result<usize> {
                let read: fn(&mut IoBuffer<'_>) -> Result<usize> = $read;
                read(to)
            }

            fn write(
                &self,
                _thread: &Arc<Thread>,
                _file: &OpenFile,
                from: &mut IoBuffer<'_>,
            ) -> Result<usize> {
                let write: fn(&mut IoBuffer<'_>) -> Result<usize> = $write;
                write(from)
            }

            fn read_at(
                &self,
                thread: &Arc<Thread>,
                file: &OpenFile,
                to: &mut IoBuffer<'_>,
                _offset: u64,
            ) -> Result<usize> {
                self.read(thread, file, to)
            }

            fn write_at(
                &self,
                thread: &Arc<Thread>,
                file: &OpenFile,
                from: &mut IoBuffer<'_>,
                _offset: u64,
            ) -> Result<usize> {
                self.write(thread, file, from)
            }

            fn seek(
                &self,
                _thread: &Arc<Thread>,
                _file: &OpenFile,
                _offset: i64,
                whence: u32,
            ) -> Result<u64> {
                if whence > 4 { Err(EINVAL) } else { Ok(0) }
            }

            fn is_seekable(&self) -> bool {
                true
            }

            fn ioctl(
                &self,
                context: &mut Context<'_>,
                _file: &OpenFile,
                request: u32,
                argument: u64,
            ) -> Result<usize> {
                $ioctl(context, request, argument)
            }
        }
    };
}

fn swallow(from: &mut IoBuffer<'_>) -> Result<usize> {
    let len = from.remaining();
    from.advance(len);
    Ok(len)
}

fn zeros(to: &mut IoBuffer<'_>) -> Result<usize> {
    to.put_zeros(to.remaining())
}

fn random(to: &mut IoBuffer<'_>) -> Result<usize> {
    let mut bytes = [0u8; 512];
    let start = to.done();
    while !to.is_empty() {
        let len = to.remaining().min(bytes.len());
        platform().random(&mut bytes[..len]);
        match to.put(&bytes[..len]) {
            Ok(put) if put == len => {}
            Ok(_) => break,
            Err(error) if to.done() == start => return Err(error),
            Err(_) => break,
        }
    }
    Ok(to.done() - start)
}

memory_device!(Null, |_| Ok(0), swallow, no_ioctl);
memory_device!(Zero, zeros, swallow, no_ioctl);
memory_device!(Full, zeros, |_| Err(ENOSPC), no_ioctl);
memory_device!(Random, random, swallow, random_ioctl);
