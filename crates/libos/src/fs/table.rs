//! File descriptors.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::file::OpenFile;
use crate::Result;
use crate::errno::EBADF;
use crate::sync::SpinLock;

/// A table of file descriptors; shared under CLONE_FILES.
#[derive(Default)]
pub struct FdTable {
    entries: SpinLock<Vec<Option<Entry>>>,
}

#[derive(Clone)]
struct Entry {
    file: Arc<OpenFile>,
    close_on_exec: bool,
}

impl FdTable {
    /// The open file behind `fd`; EBADF.
    pub fn get(&self, fd: i32) -> Result<Arc<OpenFile>> {
        let entries = self.entries.lock();
        let entry = usize::try_from(fd).ok().and_then(|fd| entries.get(fd)?.as_ref());
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
        let found = entries.iter().skip(from).position(Option::is_none).map(|at| at + from);
        let fd = found.unwrap_or(entries.len().max(from));
        if fd >= limit {
            return Err(crate::errno::EMFILE);
        }
        if fd >= entries.len() {
            entries.resize(fd + 1, None);
        }
        entries[fd] = Some(Entry { file, close_on_exec });
        Ok(fd as i32)
    }

    /// A copy for fork without CLONE_FILES.
    pub fn copy(&self) -> Arc<FdTable> {
        Arc::new(FdTable { entries: SpinLock::new(self.entries.lock().clone()) })
    }

    /// execve: takes out what is marked close-on-exec. Dropping the result closes the files.
    #[must_use = "dropping the files closes them, outside the table's lock"]
    pub fn take_close_on_exec(&self) -> Vec<Arc<OpenFile>> {
        let mut entries = self.entries.lock();
        let marked = entries.iter_mut().filter(|e| e.as_ref().is_some_and(|e| e.close_on_exec));
        marked.filter_map(|entry| entry.take().map(|entry| entry.file)).collect()
    }

    /// Takes a descriptor out of the table; EBADF.
    pub fn remove(&self, fd: i32) -> Result<Arc<OpenFile>> {
        let mut entries = self.entries.lock();
        let entry = usize::try_from(fd).ok().and_then(|fd| entries.get_mut(fd)?.take());
        entry.map(|entry| entry.file).ok_or(EBADF)
    }
}
