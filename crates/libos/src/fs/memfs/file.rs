//! Open regular files and directories of the in-memory file system.

use alloc::sync::Arc;
use alloc::vec;
use core::any::Any;

use super::cache;
use super::data::{self, PAGE, Page, Piece};
use super::node::{Content, Node};
use super::shift::Shift;
use crate::errno::{EBADF, EFBIG, EISDIR, ENODEV, EOPNOTSUPP, EPERM};
use crate::fs::file::{FileOps, OpenFile, flags, seek};
use crate::fs::inode::Inode;
use crate::mm::shared;
use crate::user::IoBuffer;
use crate::{Result, Thread};

/// Most bytes read from the lower layer at once: little enough that they are still in the first
/// cache when they are copied out, and that a small container's heap need not grow for them.
const LOWER_CHUNK: usize = 32 << 10;
/// Largest file (the positive range of off_t).
const SIZE_MAX: u64 = i64::MAX as u64;

/// fallocate(2) modes.
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const COLLAPSE_RANGE: u32 = 8;
const ZERO_RANGE: u32 = 16;
const INSERT_RANGE: u32 = 32;
const UNSHARE_RANGE: u32 = 64;
pub const PUNCH_HOLE_KEEPING_SIZE: u32 = PUNCH_HOLE | KEEP_SIZE;

impl Node {
    /// Copies content to `to`, without any lock while user memory is touched.
    pub(super) fn read_content(&self, offset: u64, to: &mut IoBuffer<'_>) -> Result<usize> {
        let data = self.data()?;
        to.split_at_faults();
        let start = to.done();
        let mut at = offset;
        while !to.is_empty() {
            let piece = {
                let data = data.lock();
                if at >= data.size {
                    break;
                }
                let len = (to.remaining() as u64).min(data.size - at);
                (data.piece(at, len), len)
            };
            let wanted;
            let moved = match piece {
                (Piece::Page(page), len) => {
                    let from = (at % PAGE) as usize;
                    wanted = (PAGE as usize - from).min(len as usize);
                    to.put(&page.0[from..from + wanted])
                }
                (Piece::Hole(len), _) => {
                    wanted = len as usize;
                    to.put_zeros(wanted)
                }
                (Piece::Lower(len), _) => {
                    let before = to.done();
                    let moved = self.read_lower(at, len as usize, to);
                    // Fewer bytes than there are is no end, only the next page's turn.
                    wanted = to.done() - before;
                    if wanted == 0 && moved.is_ok() {
                        break;
                    }
                    moved
                }
            };
            match moved {
                Ok(moved) => {
                    at += moved as u64;
                    if moved < wanted {
                        break;
                    }
                }
                Err(error) if to.done() == start => return Err(error),
                Err(_) => break,
            }
        }
        Ok(to.done() - start)
    }

    /// Reads what shows through from the lower layer: pages kept in the cache, or a run of pages
    /// that are verified together.
    fn read_lower(&self, at: u64, len: usize, to: &mut IoBuffer<'_>) -> Result<usize> {
        let (index, from) = (at / PAGE, (at % PAGE) as usize);
        if let Some(page) = cache::get(self.id(), index) {
            let len = len.min(PAGE as usize - from);
            return to.put(&page.0[from..from + len]);
        }
        let lower = self.lower.as_ref().ok_or(ENODEV)?;
        // Up to the next page that is kept.
        let pages = ((from + len).div_ceil(PAGE as usize)).min(LOWER_CHUNK / PAGE as usize);
        let run = (1..pages as u64)
            .find(|next| cache::get(self.id(), index + next).is_some())
            .unwrap_or(pages as u64) as usize;
        let len = len.min(run * PAGE as usize - from);
        let start = index * PAGE;
        if run == 1 {
            let mut page = Page([0; PAGE as usize]);
            let read = lower.read_at(start, &mut page.0)?;
            let moved = to.put(&page.0[from..read.min(from + len).max(from)]);
            if cache::admits(self.id(), index) {
                cache::insert(self.id(), index, Arc::new(page));
            }
            return moved;
        }
        let mut bounce = vec![0u8; run * PAGE as usize];
        let read = lower.read_at(start, &mut bounce)?;
        if cache::is_worth_keeping(lower.metadata().size) {
            for (number, bytes) in bounce[..read].chunks(PAGE as usize).enumerate() {
                if !cache::admits(self.id(), index + number as u64) {
                    continue;
                }
                let mut page = Page([0; PAGE as usize]);
                page.0[..bytes.len()].copy_from_slice(bytes);
                cache::insert(self.id(), index + number as u64, Arc::new(page));
            }
        }
        to.put(&bounce[from..read.min(from + len).max(from)])
    }

    /// The page of the lower layer that a partial write starts from.
    fn lower_page(&self, index: u64, lower_size: u64) -> Result<Page> {
        let mut page = Page([0; PAGE as usize]);
        let start = index * PAGE;
        let len = lower_size.saturating_sub(start).min(PAGE) as usize;
        if let Some(lower) = &self.lower
            && len > 0
        {
            lower.read_at(start, &mut page.0[..len])?;
        }
        Ok(page)
    }

    /// Before a file of a volume is cut: of the page at the new end, which the volume keeps whole,
    /// only the first part may ever be seen again.
    pub(super) fn before_cut(&self, size: u64) -> Result<()> {
        if self.fs.backing.is_none() {
            return Ok(());
        }
        let index = size / PAGE;
        let lower_size = {
            let data = self.data()?.lock();
            if size >= data.size {
                return Ok(());
            }
            (!size.is_multiple_of(PAGE) && data.is_lower(index)).then_some(data.lower_size)
        };
        if let Some(lower_size) = lower_size {
            let page = self.lower_page(index, lower_size)?;
            self.data()?
                .lock()
                .page_for_write(&self.fs, index, Some(&page))?;
        }
        cache::forget(self.id(), index);
        Ok(())
    }

    /// After a write: to disk, where the file was opened so, or where too much waits for it.
    fn after_write(&self, thread: &Arc<Thread>, file: &OpenFile) -> Result<()> {
        let Some(backing) = &self.fs.backing else {
            return Ok(());
        };
        if file.flags() & (flags::DSYNC | flags::SYNC) != 0 {
            return backing.commit(&self.fs, thread);
        }
        // Whether that worked is what fsync tells.
        if backing.is_full(&self.fs) {
            let _ = backing.commit(&self.fs, thread);
        }
        Ok(())
    }

    /// Writes at `offset`, or at the end. Bytes written, and the offset after them.
    pub(super) fn write_content(
        &self,
        offset: Option<u64>,
        from: &mut IoBuffer<'_>,
    ) -> Result<(usize, u64)> {
        let data = self.data()?;
        let (size, seals) = {
            let data = data.lock();
            (data.size, data.seals)
        };
        let mut at = offset.unwrap_or(size);
        if from.is_empty() {
            return Ok((0, at));
        }
        if seals & (data::SEAL_WRITE | data::SEAL_FUTURE_WRITE) != 0 {
            return Err(EPERM.because("sealed"));
        }
        if at >= SIZE_MAX {
            return Err(EFBIG);
        }
        let mut room = SIZE_MAX - at;
        if seals & data::SEAL_GROW != 0 {
            room = room.min(size.saturating_sub(at));
            if room == 0 {
                return Err(EPERM.because("sealed"));
            }
        }
        from.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        let start = at;
        let result = if from.remaining() <= 256 {
            self.write_pages::<256>(&mut at, from)
        } else {
            self.write_pages::<{ PAGE as usize }>(&mut at, from)
        };
        // Not what was taken from the user: the last page may have found no space.
        let written = (at - start) as usize;
        if written > 0 {
            self.touch_modified();
            return Ok((written, at));
        }
        result.map(|()| (0, at))
    }

    fn write_pages<const N: usize>(&self, at: &mut u64, from: &mut IoBuffer<'_>) -> Result<()> {
        let data = self.data()?;
        from.split_at_faults();
        let mut bounce = [0u8; N];
        while !from.is_empty() {
            let (index, start) = (*at / PAGE, (*at % PAGE) as usize);
            let wanted = (PAGE as usize - start).min(from.remaining()).min(N);
            // A page that shows through is read before anything is taken from the user.
            let lower_size = {
                let data = data.lock();
                (data.is_lower(index) && wanted < PAGE as usize).then_some(data.lower_size)
            };
            let below = lower_size
                .map(|size| self.lower_page(index, size))
                .transpose()?;
            let taken = from.take(&mut bounce[..wanted])?;
            let mut data = data.lock();
            // A short copy (a fault) or a truncation in between: take the page as it is now.
            if taken < PAGE as usize && below.is_none() && data.is_lower(index) {
                let lower_size = data.lower_size;
                drop(data);
                let page = self.lower_page(index, lower_size)?;
                data = self.data()?.lock();
                data.page_for_write(&self.fs, index, Some(&page))?;
            }
            let below = below.filter(|_| data.is_lower(index));
            let page = data.page_for_write(&self.fs, index, below.as_ref())?;
            page.0[start..start + taken].copy_from_slice(&bounce[..taken]);
            *at += taken as u64;
            data.size = data.size.max(*at);
            drop(data);
            if taken < wanted {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn allocate_content(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        let Content::File { data, .. } = &self.content else {
            return Err(ENODEV);
        };
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= SIZE_MAX)
            .ok_or(EFBIG)?;
        match mode {
            COLLAPSE_RANGE => return self.shift(Shift::Collapse, offset, len),
            INSERT_RANGE => return self.shift(Shift::Insert, offset, len),
            _ if mode & (COLLAPSE_RANGE | INSERT_RANGE | UNSHARE_RANGE) != 0 => {
                return Err(EOPNOTSUPP);
            }
            _ => {}
        }
        let seals = data.lock().seals;
        match mode & !KEEP_SIZE {
            0 => {
                let mut data = data.lock();
                if mode & KEEP_SIZE == 0 && end > data.size && seals & data::SEAL_GROW != 0 {
                    return Err(EPERM.because("sealed"));
                }
                let allocated = if mode & KEEP_SIZE == 0 {
                    end
                } else {
                    end.min(data.size)
                };
                for index in offset / PAGE..allocated.div_ceil(PAGE) {
                    if !data.has_page(index) && !data.is_lower(index) {
                        data.page_for_write(&self.fs, index, None)?;
                    }
                }
                if mode & KEEP_SIZE == 0 && end > data.size {
                    data.size = end;
                }
            }
            PUNCH_HOLE | ZERO_RANGE => {
                if mode & PUNCH_HOLE != 0 && mode & KEEP_SIZE == 0 {
                    return Err(EOPNOTSUPP);
                }
                if seals & (data::SEAL_WRITE | data::SEAL_FUTURE_WRITE) != 0 {
                    return Err(EPERM.because("sealed"));
                }
                let size = data.lock().size;
                self.zero_range(offset, end.min(size))?;
                if mode & KEEP_SIZE == 0 && end > size {
                    data.lock().resize(&self.fs, end);
                }
            }
            _ => return Err(EOPNOTSUPP),
        }
        self.touch_modified();
        Ok(())
    }

    fn zero_range(&self, offset: u64, end: u64) -> Result<()> {
        if offset >= end {
            return Ok(());
        }
        let data = self.data()?;
        // Whole pages become holes, or pages of zeros where the lower layer would show through.
        let (first, last) = (offset.div_ceil(PAGE), end / PAGE);
        if first < last {
            let mut data = data.lock();
            data.remove_pages(&self.fs, first, last);
            // What a volume is about to keep must not show through later: no holes there.
            let shown = match self.fs.backing {
                Some(_) => last,
                None => data.lower_size.div_ceil(PAGE).min(last),
            };
            for index in first..shown {
                data.page_for_write(&self.fs, index, None)?;
            }
        }
        for (from, to) in [
            (offset, end.min(first * PAGE)),
            (offset.max(last * PAGE), end),
        ] {
            if from >= to || to - from >= PAGE {
                continue;
            }
            let index = from / PAGE;
            let lower_size = {
                let data = data.lock();
                data.is_lower(index).then_some(data.lower_size)
            };
            if let Some(lower_size) = lower_size {
                let page = self.lower_page(index, lower_size)?;
                data.lock().page_for_write(&self.fs, index, Some(&page))?;
            }
            data.lock().clear_in_page(from, to);
        }
        Ok(())
    }
}

impl FileOps for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        let mut position = file.position.lock(thread);
        shared::flush(self.id(), *position, to.remaining() as u64)?;
        let read = self.read_content(*position, to)?;
        *position += read as u64;
        if file.updates_access_time() {
            self.touch_accessed();
        }
        Ok(read)
    }

    fn write(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        let Content::File { writing, .. } = &self.content else {
            return Err(EBADF);
        };
        let mut position = file.position.lock(thread);
        let held = writing.lock(thread);
        let offset = (file.flags() & flags::APPEND == 0).then_some(*position);
        let (written, end) = self.write_content(offset, from)?;
        shared::refresh(self.id(), end - written as u64, written as u64);
        *position = end;
        drop(held);
        self.after_write(thread, file)?;
        Ok(written)
    }

    fn read_at(
        &self,
        _thread: &Arc<Thread>,
        file: &OpenFile,
        to: &mut IoBuffer<'_>,
        offset: u64,
    ) -> Result<usize> {
        shared::flush(self.id(), offset, to.remaining() as u64)?;
        let read = self.read_content(offset, to)?;
        if file.updates_access_time() {
            self.touch_accessed();
        }
        Ok(read)
    }

    fn write_at(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
        offset: u64,
    ) -> Result<usize> {
        let Content::File { writing, .. } = &self.content else {
            return Err(EISDIR);
        };
        let held = writing.lock(thread);
        // As Linux does against POSIX: O_APPEND wins over the offset.
        let offset = (file.flags() & flags::APPEND == 0).then_some(offset);
        let (written, end) = self.write_content(offset, from)?;
        shared::refresh(self.id(), end - written as u64, written as u64);
        drop(held);
        self.after_write(thread, file)?;
        Ok(written)
    }

    fn seek(&self, thread: &Arc<Thread>, file: &OpenFile, offset: i64, whence: u32) -> Result<u64> {
        let is_directory = matches!(self.content, Content::Directory(_));
        seek(self, is_directory, thread, file, offset, whence)
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn release(&self, flags: u32) {
        let writable = flags & flags::ACCESS_MODE != flags::RDONLY;
        if writable && matches!(self.content, Content::File { .. }) {
            Inode::state(self).expect("every node has one").end_write();
        }
    }
}
