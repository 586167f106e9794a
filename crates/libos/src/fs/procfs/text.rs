//! Open files of /proc: text made at the first read, and again when read from the start.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::{Item, Kind, process, query};
use crate::errno::{EACCES, EINVAL, EISDIR, ENOTTY};
use crate::fs::file::{FileOps, OpenFile, SEEK};
use crate::process::Process;
use crate::sync::SpinLock;
use crate::syscall::Context;
use crate::user::IoBuffer;
use crate::{Result, Thread};

/// Most bytes that a write to a setting may have.
const WRITE_MAX: usize = 4096;

/// An open file.
pub struct TextFile {
    kind: Kind,
    text: SpinLock<Option<Arc<Vec<u8>>>>,
}

/// The text of a node.
pub fn generate(kind: &Kind, thread: Option<&Arc<Thread>>) -> Result<Vec<u8>> {
    match kind {
        Kind::Static(Item::Text(make)) => Ok(make().into_bytes()),
        Kind::Static(Item::View(make)) => {
            let reader = thread.ok_or(EINVAL.because("text for a reader"))?;
            Ok(make(reader)?.into_bytes())
        }
        Kind::Static(Item::Bytes(make)) => Ok(make()),
        Kind::Static(Item::Setting(setting)) => Ok(format!("{}\n", setting.value()).into_bytes()),
        Kind::Static(Item::Variable(get, _)) => Ok(get().into_bytes()),
        Kind::PidFile {
            process,
            tid,
            which,
        } => process::text(process, *tid, *which, thread),
        Kind::DescriptorInfo { process, fd } => process::descriptor_info(process, *fd),
        Kind::Interfaces(node) => node.text(),
        _ => Err(EISDIR),
    }
}

impl TextFile {
    pub fn new(kind: Kind) -> Arc<TextFile> {
        Arc::new(TextFile {
            kind,
            text: SpinLock::new(None),
        })
    }

    /// The process whose memory this file is.
    fn memory(&self) -> Option<&Arc<Process>> {
        match &self.kind {
            Kind::PidFile {
                process,
                which: process::PidFile::Memory,
                ..
            } => Some(process),
            _ => None,
        }
    }

    fn text(&self, thread: &Arc<Thread>, offset: u64) -> Result<Arc<Vec<u8>>> {
        if offset != 0
            && let Some(text) = self.text.lock().clone()
        {
            return Ok(text);
        }
        let text = Arc::new(generate(&self.kind, Some(thread))?);
        *self.text.lock() = Some(text.clone());
        Ok(text)
    }
}

impl FileOps for TextFile {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, thread: &Arc<Thread>, file: &OpenFile, to: &mut IoBuffer<'_>) -> Result<usize> {
        let mut position = file.position.lock(thread);
        let read = self.read_at(thread, file, to, *position)?;
        *position += read as u64;
        Ok(read)
    }

    fn read_at(
        &self,
        thread: &Arc<Thread>,
        _file: &OpenFile,
        to: &mut IoBuffer<'_>,
        offset: u64,
    ) -> Result<usize> {
        if let Kind::PidFile { process, which, .. } = &self.kind {
            match which {
                process::PidFile::Memory => return process::read_memory(process, to, offset),
                process::PidFile::PageMap => return process::read_page_map(process, to, offset),
                _ => {}
            }
        }
        let text = self.text(thread, offset)?;
        match usize::try_from(offset)
            .ok()
            .and_then(|offset| text.get(offset..))
        {
            Some(rest) if !rest.is_empty() => to.put(rest),
            _ => Ok(0),
        }
    }

    fn write(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
    ) -> Result<usize> {
        if let Some(process) = self.memory() {
            let mut position = file.position.lock(thread);
            let written = process::write_memory(process, from, *position)?;
            *position += written as u64;
            return Ok(written);
        }
        let len = from.remaining();
        if len > WRITE_MAX {
            return Err(EINVAL);
        }
        if len == 0 && matches!(self.kind, Kind::Static(_)) {
            return Ok(0);
        }
        let mut bytes = alloc::vec![0; len];
        let taken = from.take(&mut bytes)?;
        bytes.truncate(taken);
        match &self.kind {
            Kind::Static(Item::Setting(setting)) => setting.set(&bytes)?,
            Kind::Static(Item::Variable(_, set)) => set(&bytes)?,
            Kind::PidFile {
                process,
                tid,
                which,
            } => {
                process::write(process, *tid, *which, &bytes)?;
            }
            _ => return Err(EACCES),
        }
        Ok(taken)
    }

    fn write_at(
        &self,
        thread: &Arc<Thread>,
        file: &OpenFile,
        from: &mut IoBuffer<'_>,
        offset: u64,
    ) -> Result<usize> {
        match self.memory() {
            Some(process) => process::write_memory(process, from, offset),
            None => self.write(thread, file, from),
        }
    }

    fn seek(&self, thread: &Arc<Thread>, file: &OpenFile, offset: i64, whence: u32) -> Result<u64> {
        let mut position = file.position.lock(thread);
        let target = match whence {
            SEEK::SET => offset,
            SEEK::CUR => position.checked_add_signed(offset).ok_or(EINVAL)? as i64,
            _ => return Err(EINVAL),
        };
        *position = u64::try_from(target).map_err(|_| EINVAL)?;
        Ok(*position)
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
        match &self.kind {
            Kind::PidFile {
                process,
                which: process::PidFile::Maps,
                ..
            } if query::is_query(request) => query::answer(context, process, argument).map(|()| 0),
            _ => Err(ENOTTY),
        }
    }
}
