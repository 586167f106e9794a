//! Sites: the instructions of an executable file that an enclave cannot execute as they stand.
//!
//! The list is made when an image is built, from verified files that never change, and measured
//! with the image. The runtime rewrites the sites of a page when it brings the page in.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Version of [`SiteList`]; a reader ignores lists of any other.
pub const VERSION: u32 = 1;

/// The sites of one file, ascending by offset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteList {
    pub version: u32,
    pub sites: Vec<Site>,
}

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Offset of the instruction in the file.
    pub offset: u64,
    pub kind: Kind,
    pub form: Form,
}

/// Which instruction stands at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `syscall`, 2 bytes.
    Syscall,
    /// `cpuid`, 2 bytes.
    Cpuid,
    /// `rdtsc`, 2 bytes.
    Rdtsc,
    /// `rdtscp`, 3 bytes.
    Rdtscp,
}

impl Kind {
    /// Bytes of the instruction.
    pub const fn size(self) -> u64 {
        match self {
            Kind::Rdtscp => 3,
            Kind::Syscall | Kind::Cpuid | Kind::Rdtsc => 2,
        }
    }
}

/// How a site is rewritten: where a 5-byte jump to a trampoline fits. Moved bytes do not depend on
/// where they stand, and no branch of the file leads into the middle of what the jump replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Form {
    /// Nothing fits: the instruction goes on trapping.
    Trap,
    /// `mov $number, %eax` (5 bytes) or `mov $number, %rax` (7 bytes) stands directly before and
    /// becomes the jump. The instruction stays, for whatever branches to it.
    Number { len: u8 },
    /// The instruction and the `len` bytes after it become the jump; those bytes run in the
    /// trampoline. They may end with `ret` or an indirect jump, and padding may follow that.
    After { len: u8 },
    /// The `len` bytes (5 or more) before the instruction become the jump; they run in the
    /// trampoline. The instruction stays.
    Before { len: u8 },
}

impl Site {
    /// File offsets of the bytes that the rewriting touches: start and end.
    pub fn patched(&self) -> (u64, u64) {
        match self.form {
            Form::Trap => (self.offset, self.offset),
            Form::Number { len } | Form::Before { len } => {
                (self.offset.saturating_sub(len.into()), self.offset)
            }
            Form::After { len } => (
                self.offset,
                self.offset
                    .saturating_add(self.kind.size() + u64::from(len)),
            ),
        }
    }
}

impl SiteList {
    /// The bytes that go into an image.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a SiteList always serialises")
    }

    /// Reads a list back; `None` when it is malformed, of another version or out of order.
    pub fn from_bytes(bytes: &[u8]) -> Option<SiteList> {
        let (list, rest) = postcard::take_from_bytes::<SiteList>(bytes).ok()?;
        let ordered = list
            .sites
            .windows(2)
            .all(|pair| pair[0].offset < pair[1].offset);
        (rest.is_empty() && list.version == VERSION && ordered).then_some(list)
    }
}
