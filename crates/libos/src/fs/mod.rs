//! Files.
//!
//! - [`init`]: builds the container's tree: the verified root under a writable layer, /proc, /sys,
//!   /dev, /dev/shm, /run and the fixed files of the configuration.
//! - [`path::Walk`]: path resolution; [`namei`]: operations on names.
//! - [`inode::Inode`]: what a file system implements; [`memfs`]: the one that keeps data;
//!   [`procfs`]: generated from the kernel's state.
//! - [`file::OpenFile`], [`file::FileOps`], [`table::FdTable`]: descriptors.
//!
//! Lock order: file position → content write lock → namespace → directory children → dentry place
//! → mount table → directory content → attributes → data. Only the first two may be held while
//! user memory is touched.

pub mod acl;
pub mod anonymous;
pub mod async_io;
pub mod context;
pub mod dentry;
pub mod device;
mod discipline;
pub mod dnotify;
pub mod epoll;
pub mod eventfd;
pub mod file;
pub mod hooks;
pub mod host;
mod init;
pub mod inode;
pub mod inotify;
pub mod ioctl;
pub mod lease;
pub mod lock;
pub mod lower;
pub mod memfs;
pub mod mount;
pub mod namei;
pub mod passthrough;
pub mod path;
pub mod permission;
pub mod pipe;
pub mod procfs;
pub mod pty;
pub mod signalfd;
#[cfg(test)]
mod speed;
pub mod table;
#[cfg(test)]
pub mod tests;
pub mod timerfd;
pub mod tty;

pub use init::{
    InitError, budget, detached_root, empty_root, has_terminal, init, memory_file, populate, root,
    sealed, standard_files, sync_volumes,
};
