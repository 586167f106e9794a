use alloc::vec::Vec;

use crate::errno::*;
use crate::fs::tests::Machine;
use crate::process::table;
use crate::syscall::{descriptor, names};

fn machine() -> Machine {
    let machine = Machine::full();
    table::lock().insert_process(&machine.thread.process, 0);
    machine
}

fn link(m: &Machine, path: &str) -> crate::Result<Vec<u8>> {
    let len = m.one(names::readlink, path, &[m.scratch + 32768, 4096])?;
    Ok(m.get(32768, len))
}

#[test]
fn a_process_sees_itself() {
    let m = machine();
    let pid = m.thread.process.pid;
    assert_eq!(
        link(&m, "/proc/self"),
        Ok(std::format!("{pid}").into_bytes())
    );
    let status = m.content("/proc/self/status");
    let status = core::str::from_utf8(&status).expect("text");
    assert!(
        status.contains(&std::format!("\nPid:\t{pid}\n")),
        "{status}"
    );
    let stat = m.content("/proc/self/stat");
    let stat = core::str::from_utf8(&stat).expect("text");
    assert_eq!(
        stat.trim()
            .rsplit(") ")
            .next()
            .expect("fields")
            .split(' ')
            .count(),
        50
    );
    assert!(
        m.content("/proc/self/maps")
            .windows(4)
            .any(|w| w == b"rw-p")
    );
    let limits = m.content("/proc/self/limits");
    assert!(limits.starts_with(b"Limit"));
    let mounts = m.content("/proc/mounts");
    let mounts = core::str::from_utf8(&mounts).expect("text");
    assert!(
        mounts.contains("proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n"),
        "{mounts}"
    );
    assert!(mounts.starts_with("tmpfs / tmpfs"), "{mounts}");
    assert_eq!(m.open("/proc/4000000", 0, 0), Err(ENOENT));
    assert_eq!(m.open("/proc/01", 0, 0), Err(ENOENT));
    for file in [
        "cpuinfo",
        "meminfo",
        "stat",
        "uptime",
        "loadavg",
        "version",
        "filesystems",
    ] {
        assert!(
            !m.content(&std::format!("/proc/{file}")).is_empty(),
            "{file}"
        );
    }
}

#[test]
fn cpuinfo_has_the_features_of_cpuid() {
    let m = machine();
    let content = m.content("/proc/cpuinfo");
    let text = core::str::from_utf8(&content).expect("text");
    let flags = text.lines().find(|line| line.starts_with("flags"));
    let has = |name| flags.is_some_and(|line| line.split(' ').any(|flag| flag == name));
    assert!(has("sse2") && has("aes") && has("avx"), "{text}");
    assert!(!has("avx2") && !has("avx512f") && !has("sha_ni"), "{text}");
}

#[test]
fn descriptors_are_links_to_their_files() {
    let m = machine();
    let fd = m.create("/file", b"content");
    let path = std::format!("/proc/self/fd/{fd}");
    assert_eq!(link(&m, &path), Ok(b"/file".to_vec()));
    assert_eq!(m.content(&path), b"content");
    m.one(names::unlink, "/file", &[]).expect("unlink");
    assert_eq!(link(&m, &path), Ok(b"/file (deleted)".to_vec()));
    assert_eq!(m.content(&std::format!("/dev/fd/{fd}")), b"content");
    m.call(descriptor::pipe, &[m.scratch]).expect("pipe");
    let read_end = m.get(0, 1)[0];
    let name = link(&m, &std::format!("/proc/self/fd/{read_end}")).expect("link");
    assert!(name.starts_with(b"pipe:["));
    let listing = m.open("/proc/self/fd", 0o200000, 0).expect("open");
    let names = m.list(listing, 4096).expect("list");
    assert!(names.iter().any(|(name, _)| *name == std::format!("{fd}")));
    let info = m.content(&std::format!("/proc/self/fdinfo/{fd}"));
    assert!(info.starts_with(b"pos:\t7\nflags:\t0100002\n"), "{info:?}");
    assert_eq!(m.open("/proc/self/fd/999", 0, 0), Err(ENOENT));
}

#[test]
fn watches_are_described() {
    use crate::syscall::inotify;
    let m = machine();
    let fd = m.call(inotify::inotify_init1, &[0]).expect("init");
    let path = m.put(4000, b"/\0");
    m.call(inotify::inotify_add_watch, &[fd as u64, path, 0xfff])
        .expect("a watch");
    let info = m.content(&std::format!("/proc/self/fdinfo/{fd}"));
    let info = std::string::String::from_utf8(info).expect("text");
    let line = info.lines().last().expect("a line for the watch");
    assert!(line.starts_with("inotify wd:1 ino:"), "{info}");
    assert!(line.ends_with(" mask:fff ignored_mask:0"), "{info}");
}

#[test]
fn other_users_see_little() {
    let root = machine();
    let fd = root.create("/secret", b"x");
    let pid = root.thread.process.pid;
    let alice = root.other(1000, 1000);
    table::lock().insert_process(&alice.thread.process, 0);
    assert_eq!(
        alice.open(&std::format!("/proc/{pid}/maps"), 0, 0),
        Err(EACCES)
    );
    assert_eq!(
        alice.open(&std::format!("/proc/{pid}/environ"), 0, 0),
        Err(EACCES)
    );
    assert_eq!(
        alice.open(&std::format!("/proc/{pid}/fd/{fd}"), 0, 0),
        Err(EACCES)
    );
    assert!(alice.open(&std::format!("/proc/{pid}/stat"), 0, 0).is_ok());
    assert_eq!(link(&alice, &std::format!("/proc/{pid}/cwd")), Err(EACCES));
}

#[test]
fn all_ids_are_there() {
    let m = machine();
    for name in ["uid_map", "gid_map"] {
        let map = m.content(&std::format!("/proc/self/{name}"));
        assert_eq!(map, b"         0          0 4294967295\n");
    }
    assert_eq!(m.content("/proc/self/setgroups"), b"allow\n");
}
