//! Uses all of an image whose hashes are taken to be right; also the body of the fuzz target.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bulla_abi::config::Rootfs;
use bulla_vault::{BlockSource, Erofs, Options, SourceFault};

/// An image whose hashes are always right: what a malicious builder can do.
struct Trusted(Vec<u8>);

impl BlockSource for Trusted {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceFault> {
        buf.fill(0);
        let start = self.0.len().min(offset as usize);
        let length = buf.len().min(self.0.len() - start);
        buf[..length].copy_from_slice(&self.0[start..][..length]);
        Ok(())
    }

    fn sha256(&self, _: &[&[u8]]) -> [u8; 32] {
        [0; 32]
    }
}

/// Uses everything that can be reached, within bounds; errors are fine.
pub fn exercise(image: &[u8]) -> Option<usize> {
    let blocks = (image.len() as u64).div_ceil(4096).clamp(2, 128);
    let rootfs = Rootfs {
        data_size: blocks * 4096,
        tree_size: 4096,
        salt: [0; 32],
        root_hash: [0; 32],
        sites: None,
    };
    let source = Trusted(image[..image.len().min(rootfs.data_size as usize)].to_vec());
    let options = Options {
        hash_cache: 0,
        block_cache: 1 << 20,
        content_cache: 1 << 20,
    };
    let fs = Erofs::open(source, &rootfs, options).ok()?;
    let mut waiting = vec![fs.root().ok()?.nid()];
    let mut seen = BTreeSet::new();
    let mut buffer = vec![0; 9000];
    while let Some(nid) = waiting.pop() {
        if seen.len() > 1000 || !seen.insert(nid) {
            continue;
        }
        let Ok(inode) = fs.inode(nid) else { continue };
        let _ = fs.xattr_names(&inode);
        let _ = fs.xattr(&inode, b"security.capability");
        let _ = fs.read_link(&inode);
        let _ = fs.lookup(&inode, b"files");
        let _ = fs.lookup(&inode, b"zzz");
        let mut count = 0;
        let _ = fs.read_dir(&inode, 0, &mut |entry| {
            count += 1;
            waiting.push(entry.nid);
            if count > 1000 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        for offset in [
            0,
            1,
            4095,
            8192,
            inode.size() / 2,
            inode.size().saturating_sub(5),
        ] {
            let _ = fs.extent_at(&inode, offset);
            if let Ok(read) = fs.read_at(&inode, offset, &mut buffer) {
                assert!(read as u64 <= inode.size().saturating_sub(offset));
            }
        }
    }
    Some(seen.len())
}
