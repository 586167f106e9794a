//! Speeds, printed: `cargo test --release -p bulla-rootfs --test speed -- --ignored --nocapture`.
//! `BULLA_SPEED_TREE` names the directory to use, /usr/lib if unset.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulla_rootfs::{Options, from_directory};
use bulla_vault::{Erofs, FileKind, Inode};
use common::*;

fn timed<T>(what: &str, bytes: u64, action: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = action();
    let time = start.elapsed();
    let speed = bytes as f64 / time.as_secs_f64() / 1e9;
    eprintln!("{what}: {:.3} s, {speed:.2} GB/s", time.as_secs_f64());
    (result, time)
}

fn walk(fs: &Erofs<Memory>, visit: &mut impl FnMut(&[u8], &Inode)) {
    let mut waiting = vec![(Vec::new(), fs.root().unwrap())];
    while let Some((path, inode)) = waiting.pop() {
        visit(&path, &inode);
        if inode.kind() == FileKind::Directory {
            for (name, nid) in list(fs, &inode) {
                if name != b"." && name != b".." {
                    waiting.push(([&path[..], b"/", &name].concat(), fs.inode(nid).unwrap()));
                }
            }
        }
    }
}

fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        >> 10
}

#[test]
#[ignore = "measures, proves nothing"]
fn speeds() {
    let tree = std::env::var_os("BULLA_SPEED_TREE").map_or("/usr/lib".into(), PathBuf::from);
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let build = || {
        let out = File::create(&image).unwrap();
        from_directory(&tree, out, &Options::default()).unwrap()
    };
    build();
    let (rootfs, _) = timed("build", fs::metadata(&image).unwrap().len(), build);
    eprintln!(
        "data {} MiB, tree {} MiB",
        rootfs.data_size >> 20,
        rootfs.tree_size >> 20
    );
    eprintln!("peak memory {} MiB", peak_memory());
    timed("verify", rootfs.data_size, || {
        bulla_rootfs::verify(&image, &rootfs).unwrap()
    });
    let bytes = fs::read(Path::new(&image)).unwrap();
    let mut buffer = vec![0; 128 << 10];
    timed("sha256 alone", rootfs.data_size, || {
        use bulla_vault::BlockSource;
        let memory = Memory(Vec::new());
        for block in bytes[..rootfs.data_size as usize].chunks(4096) {
            std::hint::black_box(memory.sha256(&[&rootfs.salt, block]));
        }
    });
    let fs = Erofs::open(Memory(bytes), &rootfs, bulla_vault::Options::default()).unwrap();
    let mut files = Vec::new();
    let mut paths = Vec::new();
    timed("walk", 0, || {
        walk(&fs, &mut |path, inode| {
            if inode.kind() == FileKind::Regular {
                files.push(inode.clone());
            }
            paths.push(path.to_vec());
        });
    });
    eprintln!("{} inodes", paths.len());
    let read = |inode: &Inode, buffer: &mut [u8]| {
        let mut offset = 0;
        loop {
            match fs.read_at(inode, offset, buffer).unwrap() {
                0 => return offset,
                length => offset += length as u64,
            }
        }
    };
    let large: Vec<_> = files
        .iter()
        .filter(|inode| inode.size() >= 1 << 20)
        .collect();
    let bytes: u64 = large.iter().map(|inode| inode.size()).sum();
    timed("read files of 1 MiB and more, cold", bytes, || {
        large
            .iter()
            .map(|inode| read(inode, &mut buffer))
            .sum::<u64>()
    });
    let bytes: u64 = files.iter().map(Inode::size).sum();
    timed("read all files", bytes, || {
        files
            .iter()
            .map(|inode| read(inode, &mut buffer))
            .sum::<u64>()
    });
    // What is read again comes from the cache.
    let small = large.iter().find(|inode| inode.size() < 20 << 20).copied();
    if let Some(inode) = small {
        read(inode, &mut buffer);
        timed("read one file, cached, 20 times", 20 * inode.size(), || {
            (0..20).map(|_| read(inode, &mut buffer)).sum::<u64>()
        });
    }
    let deep: Vec<_> = paths
        .iter()
        .filter(|path| path.len() > 1)
        .take(1000)
        .collect();
    let lookups: usize = deep
        .iter()
        .map(|path| path.iter().filter(|&&byte| byte == b'/').count())
        .sum();
    let lookup = || {
        for path in &deep {
            let mut inode = fs.root().unwrap();
            for name in path
                .split(|&byte| byte == b'/')
                .filter(|name| !name.is_empty())
            {
                inode = fs.inode(fs.lookup(&inode, name).unwrap().nid).unwrap();
            }
        }
    };
    lookup();
    let (_, time) = timed("look up paths again", 0, lookup);
    eprintln!("{} ns a component", time.as_nanos() as usize / lookups);
}
