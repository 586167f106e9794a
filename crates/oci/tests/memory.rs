//! An image of a million tiny files: memory is bounded, and each file is there.
//!
//! Alone in its program, because the peak that is measured is the program's.

use bulla_oci::listing::Files;
use bulla_oci::{Cache, Reference, build_rootfs};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

const FILES: u32 = 1_000_000;
const DIRECTORIES: u32 = 1000;
/// As for an image of 1 GiB.
const PEAK_MAX: u64 = 300 << 20;

/// A member of a tar archive, without what follows.
fn header(path: &str, size: u64) -> [u8; 512] {
    let mut header = [0u8; 512];
    header[..path.len()].copy_from_slice(path.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[136..147].copy_from_slice(b"14371635400");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

fn path(number: u32) -> String {
    format!("d{:03}/f{number:07}", number % DIRECTORIES)
}

fn content(number: u32) -> String {
    format!("{number}\n")
}

/// A docker-archive of one layer, which is the sum of `files` members.
fn archive(to: &Path, files: u32) {
    let layer = to.with_extension("layer");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&layer).unwrap());
    for number in 0..files {
        let text = content(number);
        let mut block = [0; 512];
        block[..text.len()].copy_from_slice(text.as_bytes());
        out.write_all(&header(&path(number), text.len() as u64))
            .unwrap();
        out.write_all(&block).unwrap();
    }
    out.write_all(&[0; 1024]).unwrap();
    out.into_inner().unwrap();
    let sum = std::process::Command::new("sha256sum").arg(&layer).output();
    let sum = String::from_utf8(sum.unwrap().stdout).unwrap();
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{}},\"rootfs\":{{\"type\":\"layers\",\
         \"diff_ids\":[\"sha256:{}\"]}}}}",
        &sum[..64]
    );
    let manifest = r#"[{"Config":"config.json","RepoTags":[],"Layers":["layer.tar"]}]"#;
    let mut out = File::create(to).unwrap();
    for (name, text) in [("config.json", &*config), ("manifest.json", manifest)] {
        let mut padded = text.as_bytes().to_vec();
        padded.resize(text.len().next_multiple_of(512), 0);
        out.write_all(&header(name, text.len() as u64)).unwrap();
        out.write_all(&padded).unwrap();
    }
    let size = fs::metadata(&layer).unwrap().len();
    out.write_all(&header("layer.tar", size)).unwrap();
    std::io::copy(&mut File::open(&layer).unwrap(), &mut out).unwrap();
    out.write_all(&[0; 1024]).unwrap();
    fs::remove_file(layer).unwrap();
}

/// The most memory that this program had, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() << 10
}

fn convert(files: u32) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.tar");
    archive(&image, files);
    let cache = Cache::at(dir.path().join("cache")).unwrap();
    let reference = Reference::parse(image.as_os_str()).unwrap();
    let stored = cache.image(&reference, &mut build_rootfs).unwrap();
    let peak = peak();
    let image = Files::open(&stored.path, &stored.rootfs).unwrap();
    let found = image.walk().unwrap();
    // The root, and the directories that no member names.
    let directories = DIRECTORIES.min(files) + 1;
    assert_eq!(found.len(), (files + directories) as usize);
    let mut expected: Vec<(String, u32)> =
        (0..files).map(|n| ("/".to_owned() + &path(n), n)).collect();
    expected.sort();
    let regular = found.iter().filter(|found| found.path.len() > 5);
    for (found, (path, number)) in regular.zip(&expected) {
        assert_eq!(found.path, path.as_bytes());
        let mut text = [0; 16];
        let read = image.read(&found.inode, 0, &mut text).unwrap();
        assert_eq!(&text[..read], content(*number).as_bytes(), "{path}");
    }
    peak
}

#[test]
fn many_files_are_all_there() {
    convert(20_000);
}

#[test]
#[ignore = "writes and converts an archive of 1 GB"]
fn a_million_tiny_files_in_little_memory() {
    let peak = convert(FILES);
    println!("{} MiB", peak >> 20);
    assert!(peak <= PEAK_MAX, "{} MiB", peak >> 20);
}
