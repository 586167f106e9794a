//! Files.

pub mod context;
pub mod file;
pub mod inode;
pub mod path;
pub mod table;
