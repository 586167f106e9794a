//! Sites: the instructions of an executable file that an enclave cannot execute as they stand.
//!
//! The list is made when an image is built, from verified files that never change, and measured
//! with the image. The runtime rewrites the sites of a page when it brings the page in.
//!
//! - [`SiteList`]: the sites of one file.
//! - [`SiteLists`]: those of all files of an image, found by inode number without reading the rest.

use alloc::collections::BTreeMap;
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

/// Most bytes of the lists of one image: what the runtime keeps in its own memory.
pub const BLOB_MAX: u64 = 64 << 20;

/// What lists of an image begin with: a name and the version of the format.
const MAGIC: [u8; 8] = *b"sites\0\0\x01";
/// Magic and number of entries.
const HEADER: usize = 12;
/// Inode number (8 bytes), offset and length of the list in the blob (4 each); little-endian.
const ENTRY: usize = 16;

/// The site lists of an image: an index by inode number, ascending, then the lists. Equal lists
/// are stored once. Only the index is checked when it is read; lists are when they are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteLists {
    bytes: Vec<u8>,
    count: usize,
}

impl SiteLists {
    /// The bytes that go into an image; `None` when they would be more than [`BLOB_MAX`].
    pub fn build(lists: &BTreeMap<u64, SiteList>) -> Option<Vec<u8>> {
        let start = HEADER + lists.len().checked_mul(ENTRY)?;
        let mut content = Vec::new();
        let mut known = BTreeMap::new();
        let mut bytes = Vec::with_capacity(start);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&u32::try_from(lists.len()).ok()?.to_le_bytes());
        for (number, list) in lists {
            let list = list.to_bytes();
            let len = u32::try_from(list.len()).ok()?;
            let at = *known.entry(list).or_insert_with_key(|list| {
                content.extend_from_slice(list);
                start + content.len() - list.len()
            });
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(at).ok()?.to_le_bytes());
            bytes.extend_from_slice(&len.to_le_bytes());
        }
        bytes.extend_from_slice(&content);
        (bytes.len() as u64 <= BLOB_MAX).then_some(bytes)
    }

    /// Takes lists over; `None` when the index is malformed.
    pub fn new(bytes: Vec<u8>) -> Option<SiteLists> {
        let count = bytes.strip_prefix(&MAGIC)?.first_chunk::<4>()?;
        let count = u32::from_le_bytes(*count) as usize;
        let end = count.checked_mul(ENTRY)?.checked_add(HEADER)?;
        let index = bytes.get(HEADER..end)?;
        let mut last = None;
        for entry in index.chunks_exact(ENTRY).map(entry) {
            let (number, start, len) = entry?;
            let inside = start >= end && start.checked_add(len)? <= bytes.len();
            if !inside || last.is_some_and(|last| last >= number) {
                return None;
            }
            last = Some(number);
        }
        Some(SiteLists { bytes, count })
    }

    /// Files that have a list.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether no file has one.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The list of the file with this inode number; `None` when there is none or it is malformed.
    pub fn get(&self, number: u64) -> Option<SiteList> {
        let index = self.bytes.get(HEADER..HEADER + self.count * ENTRY)?;
        let (entries, _) = index.as_chunks::<ENTRY>();
        let at = entries
            .binary_search_by_key(&Some(number), |bytes| Some(entry(bytes)?.0))
            .ok()?;
        let (_, start, len) = entry(&entries[at])?;
        SiteList::from_bytes(self.bytes.get(start..start.checked_add(len)?)?)
    }
}

/// Inode number, start and length of an entry of the index.
fn entry(bytes: &[u8]) -> Option<(u64, usize, usize)> {
    let (number, bytes) = bytes.split_first_chunk::<8>()?;
    let (start, bytes) = bytes.split_first_chunk::<4>()?;
    let len = bytes.first_chunk::<4>()?;
    Some((
        u64::from_le_bytes(*number),
        u32::from_le_bytes(*start) as usize,
        u32::from_le_bytes(*len) as usize,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(offsets: &[u64]) -> SiteList {
        let site = |&offset| Site {
            offset,
            kind: Kind::Syscall,
            form: Form::Number { len: 5 },
        };
        SiteList {
            version: VERSION,
            sites: offsets.iter().map(site).collect(),
        }
    }

    fn lists() -> BTreeMap<u64, SiteList> {
        BTreeMap::from([
            (3, list(&[0x1003, 0x2000])),
            (70, list(&[1 << 30])),
            (5, list(&[0x1003, 0x2000])),
            (1 << 39, list(&[])),
        ])
    }

    #[test]
    fn lists_are_found_by_number() {
        let bytes = SiteLists::build(&lists()).unwrap();
        let read = SiteLists::new(bytes).unwrap();
        assert_eq!(read.len(), 4);
        for (number, list) in lists() {
            assert_eq!(read.get(number), Some(list));
        }
        for number in [0, 4, 6, 71, u64::MAX] {
            assert_eq!(read.get(number), None);
        }
        let none = SiteLists::new(SiteLists::build(&BTreeMap::new()).unwrap()).unwrap();
        assert!(none.is_empty());
        assert_eq!(none.get(0), None);
    }

    #[test]
    fn equal_lists_are_stored_once() {
        let one = SiteLists::build(&BTreeMap::from([(1, list(&[7; 1]))])).unwrap();
        let two = BTreeMap::from([(1, list(&[7])), (2, list(&[7]))]);
        assert_eq!(SiteLists::build(&two).unwrap().len(), one.len() + ENTRY);
    }

    #[test]
    fn malformed_lists_are_refused() {
        let good = SiteLists::build(&lists()).unwrap();
        // Cut anywhere: the index or a list is not whole.
        for len in 0..good.len() {
            let cut = SiteLists::new(good[..len].to_vec());
            assert!(cut.is_none(), "{len}");
        }
        let changed = |at: usize, bytes: &[u8]| {
            let mut blob = good.clone();
            blob[at..at + bytes.len()].copy_from_slice(bytes);
            SiteLists::new(blob)
        };
        assert!(changed(0, b"X").is_none(), "magic");
        assert!(changed(7, &[2]).is_none(), "version");
        for count in [5, 1 << 28, u32::MAX] {
            assert!(changed(8, &u32::to_le_bytes(count)).is_none(), "{count}");
        }
        // Numbers out of order, twice; a list in the index, behind the end, too long.
        assert!(changed(HEADER, &9u64.to_le_bytes()).is_none());
        assert!(changed(HEADER, &5u64.to_le_bytes()).is_none());
        for start in [0, 12, u32::MAX] {
            assert!(changed(HEADER + 8, &u32::to_le_bytes(start)).is_none());
        }
        assert!(changed(HEADER + 12, &u32::MAX.to_le_bytes()).is_none());
        // Every changed byte gives an error or something that can be used.
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                if let Some(lists) = changed(at, &[value]) {
                    for number in [3, 5, 70, 1 << 39] {
                        let _ = lists.get(number);
                    }
                }
            }
        }
    }

    #[test]
    fn a_list_may_not_claim_more_than_it_has() {
        // Version 1, and 2^63 sites.
        let claim = [1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1];
        assert_eq!(SiteList::from_bytes(&claim), None);
        let unordered = list(&[5, 4]).to_bytes();
        assert_eq!(SiteList::from_bytes(&unordered), None);
    }
}
