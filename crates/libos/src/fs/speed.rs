//! What the file system's hot paths cost, without the gate and without user memory. Run with
//! `cargo test --release -p bulla-libos -- --ignored --nocapture speed`.

use alloc::sync::Arc;
use std::println;
use std::time::Instant;

use crate::fs::file::flags;
use crate::fs::namei;
use crate::fs::path::{Follow, Walk};
use crate::fs::permission::Caller;
use crate::fs::pipe;
use crate::fs::tests::Machine;
use crate::user::IoBuffer;

fn measure(name: &str, mut run: impl FnMut()) {
    const ROUNDS: u32 = 1_000_000;
    for _ in 0..1000 {
        run();
    }
    let start = Instant::now();
    for _ in 0..ROUNDS {
        run();
    }
    println!(
        "{name:<40} {:>6} ns",
        start.elapsed().as_nanos() / u128::from(ROUNDS)
    );
}

#[test]
#[ignore = "a measurement, not a check"]
fn speed() {
    let m = Machine::full();
    for path in ["/usr", "/usr/share", "/usr/share/doc"] {
        m.one(crate::syscall::directory::mkdir, path, &[0o755])
            .expect("mkdir");
    }
    m.create("/usr/share/doc/file", b"content");
    let thread = &m.thread;
    let fd = m.open("/dev/zero", 0, 0).expect("open") as i32;
    measure("descriptor lookup", || drop(thread.file(fd)));
    let mut byte = [0u8; 1];
    measure("read of /dev/zero, 1 byte", || {
        let file = thread.file(fd).expect("open");
        let mut to = IoBuffer::output(&mut byte);
        file.ops.read(thread, &file, &mut to).expect("read");
    });
    let path = b"/usr/share/doc/file";
    measure("walk of four components", || {
        Walk::from(Caller::new(thread), thread.fs())
            .find(path, Follow::Yes)
            .expect("found");
    });
    measure("walk and metadata", || {
        let mut walk = Walk::from(Caller::new(thread), thread.fs());
        walk.find(path, Follow::Yes)
            .expect("found")
            .inode()
            .metadata();
    });
    measure("walk to nothing", || {
        let mut walk = Walk::from(Caller::new(thread), thread.fs());
        assert!(walk.find(b"/usr/share/doc/nothing", Follow::Yes).is_err());
    });
    measure("open, add, close", || {
        let mut walk = Walk::from(Caller::new(thread), thread.fs());
        let how = namei::OpenHow { flags: 0, mode: 0 };
        let file = namei::open(&mut walk, path, how).expect("opens");
        let fd = thread.files().add(file, false, 1024).expect("room");
        drop(thread.files().remove(fd));
    });
    let file = m.open("/usr/share/doc/file", 2, 0).expect("open") as i32;
    let file = thread.files().get(file).expect("open");
    measure("pread of 7 bytes", || {
        let mut bytes = [0u8; 7];
        file.ops
            .read_at(thread, &file, &mut IoBuffer::output(&mut bytes), 0)
            .expect("read");
    });
    measure("pwrite of 7 bytes", || {
        file.ops
            .write_at(thread, &file, &mut IoBuffer::input(b"1234567"), 0)
            .expect("write");
    });
    let page = [1u8; 4096];
    measure("pwrite of 4096 bytes", || {
        file.ops
            .write_at(thread, &file, &mut IoBuffer::input(&page), 0)
            .expect("write");
    });
    let [read, write] = pipe::pipe(flags::NONBLOCK);
    measure("pipe write and read, 1 byte", || {
        write
            .ops
            .write(thread, &write, &mut IoBuffer::input(b"x"))
            .expect("write");
        let mut byte = [0u8; 1];
        read.ops
            .read(thread, &read, &mut IoBuffer::output(&mut byte))
            .expect("read");
    });
    let _ = Arc::strong_count(&read);
}
