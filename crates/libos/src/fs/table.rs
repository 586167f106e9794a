//! File descriptors.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::file::OpenFile;
use crate::Result;
use crate::errno::{EBADF, EMFILE, ENOMEM};
use crate::process::limits::FILES_MAX;
use crate::sync::SpinLock;

/// A table of file descriptors; shared under CLONE_FILES.
#[derive(Default)]
pub struct FdTable {
    entries: SpinLock<Entries>,
}

#[derive(Clone, Default)]
struct Entries {
    slots: Vec<Option<Entry>>,
    /// No free slot lies below.
    first_free: usize,
}

#[derive(Clone)]
struct Entry {
    file: Arc<OpenFile>,
    close_on_exec: bool,
}

impl Entries {
    fn free_from(&self, from: usize) -> usize {
        let from = from.max(self.first_free);
        let found = self.slots.iter().skip(from).position(Option::is_none);
        found.map_or(self.slots.len().max(from), |at| at + from)
    }

    /// Makes room for a descriptor. The table is one block, and the largest that a program can make.
    fn reserve(&mut self, at: usize) -> Result<()> {
        let more = (at + 1).saturating_sub(self.slots.len());
        let room = self.slots.try_reserve(more);
        room.map_err(|_| ENOMEM.because("no kernel memory for so many descriptors"))
    }

    /// There is room for `at`.
    fn set(&mut self, at: usize, entry: Entry) -> Option<Entry> {
        if at >= self.slots.len() {
            self.slots.resize(at + 1, None);
        }
        if at == self.first_free {
            self.first_free += 1;
        }
        self.slots[at].replace(entry)
    }

    fn take(&mut self, at: usize) -> Option<Entry> {
        let entry = self.slots.get_mut(at)?.take()?;
        self.first_free = self.first_free.min(at);
        Some(entry)
    }
}

/// The last user of a table ends: its files are closed, and record locks given up.
impl Drop for FdTable {
    fn drop(&mut self) {
        drop(self.take_all());
    }
}

impl FdTable {
    /// The open file behind `fd`; EBADF.
    pub fn get(&self, fd: i32) -> Result<Arc<OpenFile>> {
        let entries = self.entries.lock();
        let entry = entries
            .slots
            .get(fd as u32 as usize)
            .and_then(Option::as_ref);
        entry.map(|entry| entry.file.clone()).ok_or(EBADF)
    }

    /// The lowest free descriptor. The limit (RLIMIT_NOFILE) is the caller's to pass: EMFILE.
    pub fn add(&self, file: Arc<OpenFile>, close_on_exec: bool, limit: usize) -> Result<i32> {
        self.add_from(0, file, close_on_exec, limit)
    }

    /// The lowest free descriptor not below `from`.
    pub fn add_from(
        &self,
        from: usize,
        file: Arc<OpenFile>,
        close_on_exec: bool,
        limit: usize,
    ) -> Result<i32> {
        let mut entries = self.entries.lock();
        let fd = entries.free_from(from);
        if fd >= limit {
            drop(entries);
            return Err(EMFILE);
        }
        entries.reserve(fd)?;
        entries.set(
            fd,
            Entry {
                file,
                close_on_exec,
            },
        );
        Ok(fd as i32)
    }

    /// Two descriptors or none (pipe, socketpair).
    pub fn add_pair(
        &self,
        files: [Arc<OpenFile>; 2],
        close_on_exec: bool,
        limit: usize,
    ) -> Result<[i32; 2]> {
        let [first, second] = files;
        let one = self.add(first, close_on_exec, limit)?;
        match self.add(second, close_on_exec, limit) {
            Ok(two) => Ok([one, two]),
            Err(error) => {
                drop(self.remove(one));
                Err(error)
            }
        }
    }

    /// dup2: puts `file` at `fd`; what was there before (to be closed by the caller's drop).
    pub fn set(
        &self,
        fd: i32,
        file: Arc<OpenFile>,
        close_on_exec: bool,
        limit: usize,
    ) -> Result<Option<Arc<OpenFile>>> {
        let at = usize::try_from(fd)
            .ok()
            .filter(|&at| at < limit)
            .ok_or(EBADF)?;
        let mut entries = self.entries.lock();
        entries.reserve(at)?;
        let old = entries.set(
            at,
            Entry {
                file,
                close_on_exec,
            },
        );
        drop(entries);
        Ok(old.map(|entry| self.closing(entry.file)))
    }

    /// Takes a descriptor out of the table; EBADF. Drop the file without holding a spin lock.
    pub fn remove(&self, fd: i32) -> Result<Arc<OpenFile>> {
        let at = usize::try_from(fd).map_err(|_| EBADF)?;
        let entry = self.entries.lock().take(at).ok_or(EBADF)?;
        Ok(self.closing(entry.file))
    }

    /// Closing any descriptor of a file gives up the process's record locks on it (POSIX).
    fn closing(&self, file: Arc<OpenFile>) -> Arc<OpenFile> {
        super::lock::release_table(&file, self.id());
        file
    }

    /// Identity of the table: the owner of record locks.
    pub fn id(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }

    /// FD_CLOEXEC.
    pub fn close_on_exec(&self, fd: i32) -> Result<bool> {
        let entries = self.entries.lock();
        let entry = entries
            .slots
            .get(fd as u32 as usize)
            .and_then(Option::as_ref);
        entry.map(|entry| entry.close_on_exec).ok_or(EBADF)
    }

    pub fn set_close_on_exec(&self, fd: i32, value: bool) -> Result<()> {
        let mut entries = self.entries.lock();
        let entry = entries
            .slots
            .get_mut(fd as u32 as usize)
            .and_then(Option::as_mut);
        entry.ok_or(EBADF)?.close_on_exec = value;
        Ok(())
    }

    /// A copy for fork without CLONE_FILES; EMFILE when fs.nr_open has been lowered below its end.
    pub fn copy_for_fork(&self) -> Result<Arc<FdTable>> {
        // Linux's tables grow by 64.
        let most = FILES_MAX.value().next_multiple_of(64);
        if self.len() as u64 > most {
            return Err(EMFILE);
        }
        Ok(self.copy())
    }

    /// A copy.
    pub fn copy(&self) -> Arc<FdTable> {
        Arc::new(FdTable {
            entries: SpinLock::new(self.entries.lock().clone()),
        })
    }

    /// execve: takes out what is marked close-on-exec. Dropping the result closes the files.
    #[must_use = "dropping the files closes them, outside the table's lock"]
    pub fn take_close_on_exec(&self) -> Vec<Arc<OpenFile>> {
        self.take_if(0..usize::MAX, |entry| entry.close_on_exec)
    }

    /// The end of a process: takes out everything.
    #[must_use = "dropping the files closes them, outside the table's lock"]
    pub fn take_all(&self) -> Vec<Arc<OpenFile>> {
        self.take_if(0..usize::MAX, |_| true)
    }

    /// close_range(2).
    #[must_use = "dropping the files closes them, outside the table's lock"]
    pub fn take_range(&self, range: core::ops::Range<usize>) -> Vec<Arc<OpenFile>> {
        self.take_if(range, |_| true)
    }

    fn take_if(
        &self,
        range: core::ops::Range<usize>,
        condition: impl Fn(&Entry) -> bool,
    ) -> Vec<Arc<OpenFile>> {
        let mut entries = self.entries.lock();
        let mut taken = Vec::new();
        for at in range.start..range.end.min(entries.slots.len()) {
            if entries.slots[at].as_ref().is_some_and(&condition) {
                taken.extend(entries.take(at).map(|entry| entry.file));
            }
        }
        drop(entries);
        taken.into_iter().map(|file| self.closing(file)).collect()
    }

    /// close_range(2) with CLOSE_RANGE_CLOEXEC.
    pub fn mark_range(&self, range: core::ops::Range<usize>) {
        let mut entries = self.entries.lock();
        let end = range.end.min(entries.slots.len());
        for entry in entries
            .slots
            .iter_mut()
            .take(end)
            .skip(range.start)
            .flatten()
        {
            entry.close_on_exec = true;
        }
    }

    /// The descriptors in use, with their files (for /proc).
    pub fn list(&self) -> Vec<(i32, Arc<OpenFile>)> {
        let entries = self.entries.lock();
        let used = entries.slots.iter().enumerate();
        used.filter_map(|(fd, entry)| Some((fd as i32, entry.as_ref()?.file.clone())))
            .collect()
    }

    /// One past the highest descriptor in use.
    pub fn len(&self) -> usize {
        let entries = self.entries.lock();
        entries
            .slots
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |at| at + 1)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
