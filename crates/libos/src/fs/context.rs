//! What path walks depend on: root, working directory, umask.

/// Shared under CLONE_FS.
#[derive(Default)]
pub struct FsContext {}

impl FsContext {
    /// A copy for fork without CLONE_FS.
    pub fn copy(&self) -> alloc::sync::Arc<FsContext> {
        alloc::sync::Arc::new(FsContext {})
    }
}
