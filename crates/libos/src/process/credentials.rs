//! Who a process is: user and group ids, capabilities.

use alloc::vec::Vec;

/// Ids as setresuid(2) and setfsuid(2) know them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    pub ruid: u32,
    pub euid: u32,
    pub suid: u32,
    pub fsuid: u32,
    pub rgid: u32,
    pub egid: u32,
    pub sgid: u32,
    pub fsgid: u32,
    pub groups: Vec<u32>,
}
