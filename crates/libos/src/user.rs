//! Typed access to user memory.

use alloc::vec;
use alloc::vec::Vec;
use core::marker::PhantomData;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Result;
use crate::errno::{EFAULT, EINVAL, ENAMETOOLONG};
use crate::mm::AddressSpace;
use crate::platform::Protection;

/// Longest path, including the terminating null (PATH_MAX).
pub const PATH_MAX: usize = 4096;
/// Most elements of an I/O vector (IOV_MAX).
pub const IOV_MAX: usize = 1024;
/// Most bytes that one read or write moves (MAX_RW_COUNT).
pub const RW_MAX: usize = 0x7fff_f000;

/// A user address of a `T`.
pub struct UserPtr<T> {
    pub address: u64,
    marker: PhantomData<T>,
}

impl<T> Clone for UserPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for UserPtr<T> {}

impl<T> UserPtr<T> {
    pub const fn new(address: u64) -> UserPtr<T> {
        UserPtr {
            address,
            marker: PhantomData,
        }
    }

    pub const fn is_null(self) -> bool {
        self.address == 0
    }

    /// `None` for a null pointer.
    pub fn option(self) -> Option<UserPtr<T>> {
        (!self.is_null()).then_some(self)
    }

    /// The element `index` further.
    #[allow(clippy::should_implement_trait)] // as of a raw pointer
    pub fn add(self, index: usize) -> UserPtr<T> {
        UserPtr::new(self.address.wrapping_add((index * size_of::<T>()) as u64))
    }
}

impl<T: FromBytes + IntoBytes> UserPtr<T> {
    pub fn read(self, mm: &AddressSpace) -> Result<T> {
        let mut value = T::new_zeroed();
        mm.read(self.address, value.as_mut_bytes())?;
        Ok(value)
    }

    pub fn read_vec(self, mm: &AddressSpace, count: usize) -> Result<Vec<T>> {
        let mut values = Vec::with_capacity(count);
        for index in 0..count {
            values.push(self.add(index).read(mm)?);
        }
        Ok(values)
    }
}

impl<T: IntoBytes + Immutable> UserPtr<T> {
    pub fn write(self, mm: &AddressSpace, value: &T) -> Result<()> {
        mm.write(self.address, value.as_bytes())
    }
}

/// A null-terminated string of at most `max` bytes with its null; ENAMETOOLONG beyond.
pub fn read_string(mm: &AddressSpace, address: u64, max: usize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut at = address;
    let mut chunk = [0u8; 256];
    while out.len() < max {
        // Never read across a page that the string may not reach.
        let to_page_end = (4096 - (at & 4095)) as usize;
        let len = to_page_end.min(chunk.len()).min(max - out.len());
        mm.read(at, &mut chunk[..len])?;
        if let Some(end) = chunk[..len].iter().position(|&byte| byte == 0) {
            out.extend_from_slice(&chunk[..end]);
            return Ok(out);
        }
        out.extend_from_slice(&chunk[..len]);
        at = at.checked_add(len as u64).ok_or(EFAULT)?;
    }
    Err(ENAMETOOLONG)
}

/// A path argument.
pub fn read_path(mm: &AddressSpace, address: u64) -> Result<Vec<u8>> {
    read_string(mm, address, PATH_MAX)
}

/// `struct iovec`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IoVec {
    pub base: u64,
    pub len: u64,
}

/// User memory that data goes to (read) or comes from (write): an I/O vector with a position, or
/// kernel memory for calls the kernel makes itself (sendfile, exec).
pub struct IoBuffer<'a> {
    target: Target<'a>,
    done: usize,
    total: usize,
    /// Up to the byte that faults, as files do; else a range is moved whole or not at all.
    splits: bool,
}

/// Where user addresses end on Linux (TASK_SIZE): beyond, a range is refused before anything else
/// is looked at.
pub const ADDRESS_MAX: u64 = (1 << 47) - 4096;

/// EFAULT for a range that could never be user memory.
pub fn check_range(address: u64, len: usize) -> Result<()> {
    match address.checked_add(len as u64) {
        Some(end) if end <= ADDRESS_MAX => Ok(()),
        _ => Err(EFAULT.because("not user addresses")),
    }
}

enum Target<'a> {
    User {
        mm: &'a AddressSpace,
        vectors: Vec<IoVec>,
        index: usize,
        offset: u64,
    },
    /// One user range: the common case, without an allocation.
    Range {
        mm: &'a AddressSpace,
        address: u64,
    },
    Output(&'a mut [u8]),
    Input(&'a [u8]),
}

impl<'a> IoBuffer<'a> {
    /// One user buffer.
    pub fn user(mm: &'a AddressSpace, address: u64, len: usize) -> IoBuffer<'a> {
        IoBuffer {
            target: Target::Range { mm, address },
            done: 0,
            total: len.min(RW_MAX),
            splits: false,
        }
    }

    /// A user I/O vector: EINVAL for a bad count or length.
    pub fn vector(mm: &'a AddressSpace, address: u64, count: usize) -> Result<IoBuffer<'a>> {
        let buffer = Self::vector_in(mm, mm, address, count)?;
        if let Target::User { vectors, .. } = &buffer.target {
            for vector in vectors {
                check_range(vector.base, vector.len as usize)?;
            }
        }
        Ok(buffer)
    }

    /// An I/O vector that stands in one address space and describes memory of another.
    pub fn vector_in(
        holder: &AddressSpace,
        mm: &'a AddressSpace,
        address: u64,
        count: usize,
    ) -> Result<IoBuffer<'a>> {
        if count > IOV_MAX {
            return Err(EINVAL.because("too many I/O vectors"));
        }
        let vectors = UserPtr::<IoVec>::new(address).read_vec(holder, count)?;
        let mut total = 0u64;
        for vector in &vectors {
            total = total
                .checked_add(vector.len)
                .filter(|&total| total <= i64::MAX as u64)
                .ok_or(EINVAL.because("I/O vector too long"))?;
        }
        let total = (total as usize).min(RW_MAX);
        Ok(IoBuffer {
            target: Target::User {
                mm,
                vectors,
                index: 0,
                offset: 0,
            },
            done: 0,
            total,
            splits: false,
        })
    }

    /// Kernel memory to fill.
    pub fn output(bytes: &'a mut [u8]) -> IoBuffer<'a> {
        let total = bytes.len();
        IoBuffer {
            target: Target::Output(bytes),
            done: 0,
            total,
            splits: false,
        }
    }

    /// Kernel memory to take from.
    pub fn input(bytes: &'a [u8]) -> IoBuffer<'a> {
        IoBuffer {
            target: Target::Input(bytes),
            done: 0,
            total: bytes.len(),
            splits: false,
        }
    }

    /// From now on a fault in the middle of a range ends the transfer there.
    pub fn split_at_faults(&mut self) {
        self.splits = true;
    }

    /// Bytes still to move.
    pub fn remaining(&self) -> usize {
        self.total - self.done
    }

    /// Bytes moved so far.
    pub fn done(&self) -> usize {
        self.done
    }

    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    /// Limits what remains to `len`.
    pub fn truncate(&mut self, len: usize) {
        self.total = self.done + self.remaining().min(len);
    }

    /// The next contiguous user range, for copies straight between user and host memory.
    pub fn next_user_range(&mut self) -> Option<(&'a AddressSpace, u64, usize)> {
        let remaining = self.total - self.done;
        match &mut self.target {
            Target::Range { mm, address } => Some((*mm, *address + self.done as u64, remaining)),
            Target::User {
                mm,
                vectors,
                index,
                offset,
            } => {
                while vectors
                    .get(*index)
                    .is_some_and(|vector| vector.len == *offset)
                {
                    *index += 1;
                    *offset = 0;
                }
                let vector = vectors.get(*index)?;
                let len = ((vector.len - *offset) as usize).min(remaining);
                Some((*mm, vector.base.wrapping_add(*offset), len))
            }
            Target::Output(_) | Target::Input(_) => None,
        }
    }

    /// The next `len` bytes (at most) of kernel memory to fill; `None` for user memory.
    pub fn next_kernel_range(&mut self, len: usize) -> Option<&mut [u8]> {
        let (done, end) = (self.done, self.total.min(self.done + len));
        match &mut self.target {
            Target::Output(out) => Some(&mut out[done..end]),
            _ => None,
        }
    }

    /// Records that `len` bytes of the range from `next_user_range` were moved.
    pub fn advance(&mut self, len: usize) {
        self.done += len;
        if let Target::User { offset, .. } = &mut self.target {
            *offset += len as u64;
        }
    }

    /// Copies out of the kernel; the number of bytes copied (less than `bytes.len()` only when the
    /// buffer is full). EFAULT only when nothing could be copied.
    pub fn put(&mut self, bytes: &[u8]) -> Result<usize> {
        self.transfer(
            bytes.len(),
            Protection::WRITE,
            |range, at, len| match range {
                Range::User(mm, address) => mm.write(address, &bytes[at..at + len]),
                Range::Output(out) => {
                    out.copy_from_slice(&bytes[at..at + len]);
                    Ok(())
                }
                Range::Input(_) => Err(EFAULT),
            },
        )
    }

    /// Copies into the kernel, likewise.
    pub fn take(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let len = bytes.len();
        self.transfer(len, Protection::READ, |range, at, len| match range {
            Range::User(mm, address) => mm.read(address, &mut bytes[at..at + len]),
            Range::Input(input) => {
                bytes[at..at + len].copy_from_slice(input);
                Ok(())
            }
            Range::Output(_) => Err(EFAULT),
        })
    }

    /// Copies into the kernel without moving the position; as many bytes as there are.
    pub fn peek(&self, bytes: &mut [u8]) -> Result<usize> {
        let wanted = bytes.len().min(self.remaining());
        match &self.target {
            Target::Range { mm, address } => {
                mm.read(*address + self.done as u64, &mut bytes[..wanted])?;
            }
            Target::User {
                mm,
                vectors,
                index,
                offset,
            } => {
                let (mut moved, mut skip) = (0, *offset);
                for vector in &vectors[*index..] {
                    let len = ((vector.len - skip) as usize).min(wanted - moved);
                    mm.read(
                        vector.base.wrapping_add(skip),
                        &mut bytes[moved..moved + len],
                    )?;
                    moved += len;
                    skip = 0;
                    if moved == wanted {
                        break;
                    }
                }
            }
            Target::Input(input) => {
                bytes[..wanted].copy_from_slice(&input[self.done..self.done + wanted]);
            }
            Target::Output(_) => return Err(EFAULT),
        }
        Ok(wanted)
    }

    /// Moves the position over bytes that were peeked at.
    pub fn skip(&mut self, len: usize) {
        let mut left = len.min(self.remaining());
        while left > 0 {
            let step = match self.next_user_range() {
                Some((_, _, available)) => available.min(left),
                None => left,
            };
            self.advance(step);
            left -= step;
        }
    }

    /// Clears up to `len` bytes of the target.
    pub fn put_zeros(&mut self, len: usize) -> Result<usize> {
        self.transfer(len, Protection::WRITE, |range, _, len| match range {
            Range::User(mm, address) => mm.clear(address, len),
            Range::Output(out) => {
                out.fill(0);
                Ok(())
            }
            Range::Input(_) => Err(EFAULT),
        })
    }

    fn transfer(
        &mut self,
        len: usize,
        access: Protection,
        mut copy: impl FnMut(Range<'_>, usize, usize) -> Result<()>,
    ) -> Result<usize> {
        let wanted = len.min(self.remaining());
        let mut moved = 0;
        while moved < wanted {
            let (result, step) = match self.next_user_range() {
                Some((mm, address, available)) => {
                    let step = available.min(wanted - moved);
                    let mut result = (copy(Range::User(mm, address), moved, step), step);
                    if result.0.is_err() && self.splits {
                        let reachable = mm.accessible(address, step as u64, access) as usize;
                        if (1..step).contains(&reachable) {
                            result = (copy(Range::User(mm, address), moved, reachable), reachable);
                        }
                    }
                    result
                }
                None => {
                    let (done, step) = (self.done, wanted - moved);
                    let range = match &mut self.target {
                        Target::Output(out) => Range::Output(&mut out[done..done + step]),
                        Target::Input(input) => Range::Input(&input[done..done + step]),
                        _ => return Err(EFAULT),
                    };
                    (copy(range, moved, step), step)
                }
            };
            match result {
                Ok(()) => {
                    self.advance(step);
                    moved += step;
                }
                Err(error) if moved == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(moved)
    }
}

enum Range<'b> {
    User(&'b AddressSpace, u64),
    Output(&'b mut [u8]),
    Input(&'b [u8]),
}

/// Zeroed bytes; used for bounce buffers.
pub fn zeroed(len: usize) -> Vec<u8> {
    vec![0; len]
}
