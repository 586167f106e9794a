//! Images and trees that other programs made: `mkfs.erofs` and `veritysetup format`.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use bulla_abi::config::Rootfs;
use common::*;
use rustix::fs::{XattrFlags, lsetxattr};

fn fill(tree: &Path) {
    fs::create_dir_all(tree.join("a/b")).unwrap();
    for index in 0..300 {
        let path = tree.join(format!("a/{index}"));
        fs::write(&path, noise(index, index as usize * 53)).unwrap();
        // The same on many files: mkfs.erofs stores such attributes once, shared.
        let _ = lsetxattr(
            &path,
            "user.shared",
            b"the same everywhere",
            XattrFlags::empty(),
        );
        if index % 10 == 0 {
            let value = index.to_string();
            let _ = lsetxattr(&path, "user.own", value.as_bytes(), XattrFlags::empty());
        }
    }
    fs::write(tree.join("large"), noise(7, 3_000_000)).unwrap();
    fs::write(tree.join("zeros"), vec![0; 500_000]).unwrap();
    symlink("a/1", tree.join("link")).unwrap();
}

fn hex(text: &str) -> [u8; 32] {
    std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..][..2], 16).unwrap())
}

#[test]
fn images_of_mkfs_and_trees_of_veritysetup_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let (tree, image) = (
        directory.path().join("tree"),
        directory.path().join("image"),
    );
    fs::create_dir(&tree).unwrap();
    fill(&tree);
    let original = describe_directory(&tree);
    for options in [
        &["-x1"][..],
        &["--chunksize=16384"],
        &["-Eforce-inode-compact", "-x1"],
    ] {
        let _ = fs::remove_file(&image);
        let mut mkfs = Command::new("mkfs.erofs");
        match mkfs.args(options).arg(&image).arg(&tree).output() {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => return eprintln!("skipped: mkfs.erofs: {error}"),
        }
        let data_size = fs::metadata(&image).unwrap().len().next_multiple_of(4096);
        fs::File::options()
            .write(true)
            .open(&image)
            .unwrap()
            .set_len(data_size)
            .unwrap();
        let output = Command::new("veritysetup")
            .args(["format", "--no-superblock", "--format=1", "--hash=sha256"])
            .arg(format!("--data-blocks={}", data_size / 4096))
            .arg(format!("--hash-offset={data_size}"))
            .args([&image, &image])
            .output();
        let output = match output {
            Ok(output) => output,
            Err(error) => return eprintln!("skipped: veritysetup: {error}"),
        };
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            hex(line.split_whitespace().last().unwrap())
        };
        let tree_size = fs::metadata(&image).unwrap().len() - data_size;
        let (salt, root_hash) = (field("Salt:"), field("Root hash:"));
        let rootfs = Rootfs {
            data_size,
            tree_size,
            salt,
            root_hash,
            sites: None,
        };
        bulla_rootfs::verify(&image, &rootfs).unwrap();
        let mut found = describe_image(&open(&image, &rootfs));
        if options[0].starts_with("-E") {
            // Short inodes have no time of their own.
            for (path, described) in &mut found {
                described.modified = original[path].modified;
            }
        }
        assert_same(&original, &found);
    }
}
