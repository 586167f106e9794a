//! Directories of the host that a container uses as they are: `insecure_passthrough` mounts.
//!
//! A *place* is a descriptor of the host that stands for an object without opening it (O_PATH).
//! Names are single components: neither side ever lets the host's kernel walk a path or follow a
//! link.

/// Most such mounts of a container.
pub const MOUNTS_MAX: usize = 32;

/// What [`HostCall::PassChange`](crate::hostcall::HostCall::PassChange) changes.
pub mod change {
    /// Permission bits.
    pub const MODE: u64 = 1;
    /// uid, gid; `u32::MAX` leaves one as it is.
    pub const OWNER: u64 = 2;
    /// Time of the last access: seconds, nanoseconds.
    pub const ACCESSED: u64 = 3;
    /// Time of the last change: seconds, nanoseconds.
    pub const MODIFIED: u64 = 4;
    /// The size, of a descriptor that may write.
    pub const SIZE: u64 = 5;
}
