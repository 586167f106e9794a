//! Site lists of all programs and libraries of a tree, found while its image is written.
//!
//! Files are read whole, by a few threads, in any order; what they hold of them at once is bounded.
//! A file that cannot be read or understood has no list: its system calls trap, which is slower.

use crate::error::Error;
use crate::tree::{Content, Tree};
use bulla_abi::config::SitesBlob;
use bulla_abi::sites::{SiteList, SiteLists};
use bulla_image::find_sites;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes of file content in memory at once; a larger file is read when no other is.
const IN_MEMORY: u64 = 256 << 20;
/// Larger files are not looked at.
const FILE_MAX: u64 = 2 << 30;
/// An ELF header has more bytes.
const FILE_MIN: u64 = 64;
const THREADS: usize = 8;
/// Bytes that tell a program.
const START: usize = 20;

/// Whether a file may have a list: a program or a library of this architecture.
pub fn is_program(tree: &Tree, content: &Content) -> bool {
    let mut start = [0; START];
    (FILE_MIN..=FILE_MAX).contains(&content.size)
        && tree
            .open(content)
            .is_ok_and(|mut reader| reader.read_exact(&mut start).is_ok())
        // ELF, 64 bits, little-endian; a program or a library; for x86-64.
        && start.starts_with(b"\x7fELF\x02\x01")
        && matches!(start[16..18], [2 | 3, 0])
        && start[18..20] == [62, 0]
}

/// Lists the sites of those of some programs that have any, by what the caller calls them.
pub fn find<Id: Copy + Ord + Send + Sync>(
    tree: &Tree,
    mut files: Vec<(Id, Content)>,
) -> BTreeMap<Id, SiteList> {
    // The largest first, so that no thread ends long after the others.
    files.sort_by_key(|(_, content)| std::cmp::Reverse(content.size));
    let next = AtomicUsize::new(0);
    let memory = Memory::default();
    let work = || {
        let mut found = Vec::new();
        while let Some((id, content)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.extend(list(tree, content, &memory).map(|list| (*id, list)));
        }
        found
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(THREADS))
            .map(|_| scope.spawn(work))
            .collect();
        let mut all = BTreeMap::from_iter(work());
        for other in others {
            all.extend(other.join().expect("looking for sites does not panic"));
        }
        all
    })
}

/// The sites of a file; `None` when it has none that are known.
fn list(tree: &Tree, content: &Content, memory: &Memory) -> Option<SiteList> {
    let mut reader = tree.open(content).ok()?;
    let _taken = memory.take(content.size);
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(usize::try_from(content.size).ok()?)
        .ok()?;
    reader.read_to_end(&mut bytes).ok()?;
    let list = find_sites(&bytes).ok()?;
    (bytes.len() as u64 == content.size && !list.sites.is_empty()).then_some(list)
}

/// Appends lists to an image, by inode number; `None` when there are none.
pub fn append(
    lists: &BTreeMap<u64, SiteList>,
    file: &File,
    offset: u64,
) -> Result<Option<SitesBlob>, Error> {
    if lists.is_empty() {
        return Ok(None);
    }
    // An image with too many of them does without: unlisted sites trap.
    let Some(blob) = SiteLists::build(lists) else {
        return Ok(None);
    };
    file.write_all_at(&blob, offset)
        .map_err(Error::io(Path::new("the image")))?;
    Ok(Some(SitesBlob {
        offset,
        size: blob.len() as u64,
        sha256: Sha256::digest(&blob).into(),
    }))
}

/// Bytes that threads hold; who takes more than there is waits until nobody else has any.
#[derive(Default)]
struct Memory {
    used: Mutex<u64>,
    less: Condvar,
}

struct Taken<'a> {
    memory: &'a Memory,
    size: u64,
}

impl Memory {
    fn take(&self, size: u64) -> Taken<'_> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |used: &mut u64| *used != 0 && *used + size > IN_MEMORY;
        let mut used = self
            .less
            .wait_while(used, full)
            .unwrap_or_else(PoisonError::into_inner);
        *used += size;
        Taken { memory: self, size }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let memory = self.memory;
        *memory.used.lock().unwrap_or_else(PoisonError::into_inner) -= self.size;
        memory.less.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Source;
    use std::path::PathBuf;

    fn content(path: &Path) -> Content {
        Content {
            size: std::fs::metadata(path).map_or(100, |metadata| metadata.len()),
            source: Source::Host(path.to_path_buf()),
        }
    }

    #[test]
    fn programs_have_lists_and_nothing_else_has() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| -> PathBuf {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let text = file("text", &[b'x'; 500]);
        let header = file(
            "header",
            &[b"\x7fELF\x02\x01".as_slice(), &[0; 90]].concat(),
        );
        let libc = Path::new("/lib/x86_64-linux-gnu/libc.so.6");
        let missing = folder.path().join("missing");
        let tree = Tree::new();
        let files = [&*text, libc, &missing, &header, libc].map(content);
        let numbered = (1..).zip(files);
        let programs: Vec<(u32, Content)> = numbered
            .filter(|(_, content)| is_program(&tree, content))
            .collect();
        let lists = find(&tree, programs);
        assert_eq!(lists.keys().collect::<Vec<_>>(), [&2, &5]);
        assert_eq!(
            lists[&2],
            find_sites(&std::fs::read(libc).unwrap()).unwrap()
        );
        assert_eq!(lists[&2], lists[&5]);
        // What is damaged behind its first bytes has none either.
        let damaged = [&std::fs::read(libc).unwrap()[..20], &[0xff; 200]].concat();
        let damaged = content(&file("damaged", &damaged));
        assert!(is_program(&tree, &damaged));
        assert!(find(&tree, vec![(1, damaged)]).is_empty());
    }

    #[test]
    fn memory_is_bounded_and_large_files_come_through() {
        let memory = Memory::default();
        let peak = Mutex::new(0);
        std::thread::scope(|scope| {
            for size in [IN_MEMORY * 3, IN_MEMORY / 2, IN_MEMORY / 2, IN_MEMORY, 1] {
                let (memory, peak) = (&memory, &peak);
                scope.spawn(move || {
                    let _taken = memory.take(size);
                    let used = *memory.used.lock().unwrap();
                    assert!(used <= IN_MEMORY || used == IN_MEMORY * 3, "{used}");
                    let mut peak = peak.lock().unwrap();
                    *peak = used.max(*peak);
                });
            }
        });
        assert_eq!(*memory.used.lock().unwrap(), 0);
        assert_eq!(*peak.lock().unwrap(), IN_MEMORY * 3);
    }
}
