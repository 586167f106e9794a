//! What path walks depend on: root, working directory, umask.

/// Shared under CLONE_FS.
#[derive(Default)]
pub struct FsContext {}
