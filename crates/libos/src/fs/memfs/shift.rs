//! fallocate(2) that moves what follows a range: FALLOC_FL_COLLAPSE_RANGE takes the range out of the
//! file, FALLOC_FL_INSERT_RANGE makes room for it. A tmpfs has neither, as on Linux; the container's
//! root and volumes do, as the disks below Linux's overlays.

use alloc::vec;

use super::TMPFS_MAGIC;
use super::data::PAGE;
use super::node::Node;
use crate::Result;
use crate::errno::{EFBIG, EINVAL, EIO, EOPNOTSUPP};
use crate::fs::inode::Inode;
use crate::mm::shared;
use crate::user::IoBuffer;

/// Bytes moved at once.
const CHUNK: u64 = 128 << 10;

/// Which way the rest of the file goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shift {
    Collapse,
    Insert,
}

impl Node {
    /// Takes `len` bytes at `offset` out, or makes room for them.
    pub(super) fn shift(&self, how: Shift, offset: u64, len: u64) -> Result<()> {
        if self.fs.magic == TMPFS_MAGIC {
            return Err(EOPNOTSUPP.because("a tmpfs moves no ranges"));
        }
        let size = self.data()?.lock().size;
        let end = offset.checked_add(len).ok_or(EFBIG)?;
        if !offset.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
            return Err(EINVAL.because("not whole blocks"));
        }
        let (beyond, new_size) = match how {
            Shift::Collapse => (end >= size, size.wrapping_sub(len)),
            Shift::Insert => (offset >= size, size.checked_add(len).ok_or(EFBIG)?),
        };
        if beyond {
            return Err(EINVAL.because("at or beyond the end of the file"));
        }
        if new_size > i64::MAX as u64 {
            return Err(EFBIG);
        }
        shared::flush(self.id(), offset, size - offset)?;
        // All memory is taken before anything moves, so that a full file system leaves the file whole.
        self.fill(offset, size)?;
        match how {
            Shift::Collapse => {
                let mut at = end;
                while at < size {
                    let step = CHUNK.min(size - at);
                    self.copy_within(at, at - len, step)?;
                    at += step;
                }
                self.truncate(new_size)?;
            }
            Shift::Insert => {
                self.allocate_content(0, size, len)?;
                let mut at = size;
                while at > offset {
                    let step = CHUNK.min(at - offset);
                    at -= step;
                    self.copy_within(at, at + len, step)?;
                }
                self.allocate_content(super::file::PUNCH_HOLE_KEEPING_SIZE, offset, len)?;
            }
        }
        shared::refresh(self.id(), offset, new_size - offset);
        Ok(())
    }

    /// Gives the file pages of its own from `offset` to `end`.
    fn fill(&self, offset: u64, end: u64) -> Result<()> {
        let mut at = offset;
        while at < end {
            let step = CHUNK.min(end - at);
            self.copy_within(at, at, step)?;
            at += step;
        }
        Ok(())
    }

    fn copy_within(&self, from: u64, to: u64, len: u64) -> Result<()> {
        let mut bytes = vec![0; len as usize];
        if self.read_content(from, &mut IoBuffer::output(&mut bytes))? != bytes.len() {
            return Err(EIO);
        }
        let (written, _) = self.write_content(Some(to), &mut IoBuffer::input(&bytes))?;
        if written == bytes.len() {
            Ok(())
        } else {
            Err(crate::errno::ENOSPC)
        }
    }
}
