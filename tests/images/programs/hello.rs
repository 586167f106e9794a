//! A static position-independent Rust program: threads, collections, time, environment, a file.
use std::collections::BTreeMap;
use std::thread;
use std::time::Instant;

fn main() {
    let start = Instant::now();
    let workers: Vec<_> = (1..=4u64)
        .map(|n| thread::spawn(move || (1..=n * 1000).sum::<u64>()))
        .collect();
    let sums: Vec<u64> = workers.into_iter().map(|w| w.join().unwrap()).collect();
    let path = std::env::temp_dir().join("bulla-hello-rust");
    std::fs::write(&path, "written and read back").unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let words: BTreeMap<_, _> = text.split(' ').map(|w| (w, w.len())).collect();
    println!("hello from Rust: {sums:?} {words:?} {:?}", std::env::args().skip(1).collect::<Vec<_>>());
    assert!(start.elapsed().as_secs() < 60);
}
