//! LTP in the enclave: a few tests of every family always, all of the list in `make test-full`.

use bulla_test_apps::sides;
use bulla_test_conformance::{Suite, Tag};

/// One or two of each family of calls; all quick.
const QUICK: &[&str] = &[
    "accept01",
    "access02",
    "alarm05",
    "brk01",
    "capget01",
    "chdir04",
    "chmod05",
    "chown03",
    "clone01",
    "close_range02",
    "dup201",
    "epoll_ctl02",
    "eventfd2_01",
    "execve03",
    "fallocate02",
    "fchmodat01",
    "fcntl13",
    "fcntl27",
    "flock02",
    "fork01",
    "fstat02",
    "ftruncate03_64",
    "getcwd02",
    "getrlimit02",
    "inotify02",
    "io_setup01",
    "kill02",
    "linkat01",
    "lseek02",
    "madvise02",
    "mkdirat01",
    "mmap06",
    "mprotect01",
    "mq_notify02",
    "mremap05",
    "mseal01",
    "msgrcv02",
    "nice02",
    "openat201",
    "pidfd_send_signal02",
    "pipe2_02",
    "ppoll01",
    "prctl01",
    "pwritev202_64",
    "readlinkat02",
    "renameat201",
    "rt_sigqueueinfo01",
    "semctl03",
    "sendfile02",
    "setfsuid04",
    "setitimer01",
    "shmctl02",
    "signalfd01",
    "splice05",
    "statx03",
    "tgkill02",
    "timer_create01",
    "timerfd_create01",
    "uname01",
    "unlink07",
    "vfork02",
    "waitid07",
    "writev07",
];

fn check(suite: &Suite, tags: &[Tag]) {
    let reports = suite.run_all(tags, &sides(), |_| {});
    let wrong: Vec<String> = reports.iter().filter_map(|r| suite.judge(r)).collect();
    assert!(
        wrong.is_empty(),
        "{} of {} tests differ from expected.tsv (logs in target/conformance):\n{}",
        wrong.len(),
        tags.len(),
        wrong.join("\n")
    );
}

#[test]
fn a_few_of_every_family() {
    let suite = match Suite::open() {
        Ok(suite) => suite,
        // Building LTP takes longer than all other tests together: make test does not ask for it.
        Err(message) => {
            eprintln!("not run: {message}");
            return;
        }
    };
    let known = |tag: &&Tag| QUICK.contains(&tag.name.as_str());
    let listed = suite.tags.iter().filter(known);
    let tags: Vec<Tag> = listed.chain(&suite.beyond).cloned().collect();
    check(&suite, &tags);
}

#[test]
#[ignore = "runs the whole list: 15 minutes, and LTP must be built (make test-full)"]
fn the_whole_list() {
    let suite = Suite::open().unwrap_or_else(|message| panic!("{message}"));
    check(&suite, &suite.tags);
}
