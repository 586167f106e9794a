//! Places for open files that have none, so that /proc/<pid>/fd/<n> can be opened and examined.

use alloc::string::ToString;
use alloc::sync::Arc;
use core::any::Any;

use spin::Once;

use super::dentry::Dentry;
use super::file::{FileOps, OpenFile, PathOnly};
use super::inode::{FileId, Inode, Metadata};
use super::mount::{self, Mount, MountSpec};
use super::path::PathRef;
use super::permission::Caller;
use super::pipe;
use crate::Result;
use crate::errno::ENXIO;

/// The inode of an open file without a place. Opening it again opens a pipe's end, a standard
/// stream, or nothing (sockets: ENXIO).
struct FileNode {
    file: Arc<OpenFile>,
}

impl Inode for FileNode {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn id(&self) -> FileId {
        let metadata = self.file.ops.metadata();
        FileId {
            device: metadata.device,
            inode: metadata.inode,
        }
    }

    fn size(&self) -> u64 {
        0
    }

    fn mode(&self) -> u32 {
        self.file.ops.metadata().mode
    }

    fn metadata(&self) -> Metadata {
        self.file.ops.metadata()
    }

    fn is_stable(&self) -> bool {
        false
    }

    fn open(
        self: Arc<Self>,
        _caller: &Caller<'_>,
        _path: &PathRef,
        flags: u32,
    ) -> Result<Arc<dyn FileOps>> {
        if let Some(end) = pipe::of(&self.file) {
            return Ok(pipe::reopen(end.pipe(), flags));
        }
        let ops = self.file.ops.as_any();
        if ops.is::<super::host::HostFile>() || ops.is::<super::procfs::NamespaceFile>() {
            return Ok(self.file.ops.clone());
        }
        Err(ENXIO.because("this kind of file cannot be opened by name"))
    }
}

/// The mount that such places are on.
pub fn mount() -> Arc<Mount> {
    static MOUNT: Once<Arc<Mount>> = Once::new();
    MOUNT
        .call_once(|| {
            let file = OpenFile::new(Arc::new(PathOnly), 0);
            let root = Dentry::root(Arc::new(FileNode { file }));
            mount::detached(MountSpec {
                root,
                flags: 0,
                kind: "anon_inodefs",
                source: "none".to_string(),
                options: Default::default(),
            })
        })
        .clone()
}

/// The place of an open file that has none.
pub fn place(file: &Arc<OpenFile>) -> Result<PathRef> {
    let name = file.ops.describe();
    let inode = Arc::new(FileNode { file: file.clone() });
    Ok(PathRef {
        mount: mount(),
        dentry: Dentry::unnamed(inode, name.as_bytes()),
    })
}
