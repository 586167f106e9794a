//! Which calls of which processes are traced.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use bulla_abi::config::Strace;

use crate::Thread;
use crate::syscall::table::ROWS;

/// What is wrong with the words of `--strace` or `--strace-pid`.
#[derive(Debug)]
pub enum FilterError {
    /// Neither a system call nor a class of them.
    UnknownCall(String),
}

impl core::fmt::Display for FilterError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let FilterError::UnknownCall(word) = self;
        write!(
            f,
            "--strace: {word:?} is no system call of x86-64; write names as strace does, \
             %file, %process, %network, %signal, %memory, %desc or %ipc, with ! in front of \
             the list for all others"
        )
    }
}

/// The words of the configuration, looked up.
pub struct Filter {
    /// A bit per system call.
    calls: [u64; 8],
    /// Process ids or names of programs; empty means all.
    processes: Vec<String>,
}

/// The classes of strace's `-e trace=%…` with their calls.
const CLASSES: &[(&str, &[&str])] = &[
    (
        "%file",
        &[
            "open",
            "openat",
            "openat2",
            "creat",
            "stat",
            "lstat",
            "newfstatat",
            "statx",
            "access",
            "faccessat",
            "faccessat2",
            "rename",
            "renameat",
            "renameat2",
            "mkdir",
            "mkdirat",
            "rmdir",
            "link",
            "linkat",
            "unlink",
            "unlinkat",
            "symlink",
            "symlinkat",
            "readlink",
            "readlinkat",
            "chmod",
            "fchmodat",
            "fchmodat2",
            "chown",
            "lchown",
            "fchownat",
            "utime",
            "utimes",
            "utimensat",
            "futimesat",
            "mknod",
            "mknodat",
            "statfs",
            "truncate",
            "chdir",
            "chroot",
            "execve",
            "execveat",
            "getcwd",
            "mount",
            "umount2",
            "pivot_root",
            "setxattr",
            "lsetxattr",
            "getxattr",
            "lgetxattr",
            "listxattr",
            "llistxattr",
            "removexattr",
            "lremovexattr",
            "inotify_add_watch",
            "name_to_handle_at",
            "acct",
            "swapon",
            "swapoff",
            "quotactl",
            "uselib",
        ],
    ),
    (
        "%process",
        &[
            "clone",
            "clone3",
            "fork",
            "vfork",
            "execve",
            "execveat",
            "exit",
            "exit_group",
            "wait4",
            "waitid",
            "kill",
            "tkill",
            "tgkill",
            "pidfd_open",
            "pidfd_send_signal",
            "rt_sigqueueinfo",
            "rt_tgsigqueueinfo",
        ],
    ),
    (
        "%network",
        &[
            "socket",
            "connect",
            "accept",
            "accept4",
            "sendto",
            "recvfrom",
            "sendmsg",
            "recvmsg",
            "sendmmsg",
            "recvmmsg",
            "shutdown",
            "bind",
            "listen",
            "getsockname",
            "getpeername",
            "socketpair",
            "setsockopt",
            "getsockopt",
        ],
    ),
    (
        "%signal",
        &[
            "rt_sigaction",
            "rt_sigprocmask",
            "rt_sigreturn",
            "rt_sigpending",
            "rt_sigtimedwait",
            "rt_sigqueueinfo",
            "rt_tgsigqueueinfo",
            "rt_sigsuspend",
            "sigaltstack",
            "signalfd",
            "signalfd4",
            "kill",
            "tkill",
            "tgkill",
            "pause",
            "pidfd_send_signal",
        ],
    ),
    (
        "%memory",
        &[
            "mmap",
            "mprotect",
            "munmap",
            "brk",
            "mremap",
            "msync",
            "mincore",
            "madvise",
            "mlock",
            "mlock2",
            "munlock",
            "mlockall",
            "munlockall",
            "mbind",
            "get_mempolicy",
            "set_mempolicy",
            "migrate_pages",
            "move_pages",
            "pkey_mprotect",
            "shmat",
            "shmdt",
            "remap_file_pages",
            "process_madvise",
        ],
    ),
    (
        "%desc",
        &[
            "read",
            "write",
            "open",
            "openat",
            "openat2",
            "close",
            "close_range",
            "fstat",
            "lseek",
            "mmap",
            "ioctl",
            "pread64",
            "pwrite64",
            "readv",
            "writev",
            "preadv",
            "pwritev",
            "preadv2",
            "pwritev2",
            "pipe",
            "pipe2",
            "dup",
            "dup2",
            "dup3",
            "fcntl",
            "flock",
            "fsync",
            "fdatasync",
            "ftruncate",
            "getdents",
            "getdents64",
            "fchdir",
            "fchmod",
            "fchown",
            "sendfile",
            "splice",
            "tee",
            "vmsplice",
            "copy_file_range",
            "poll",
            "ppoll",
            "select",
            "pselect6",
            "epoll_create",
            "epoll_create1",
            "epoll_ctl",
            "epoll_wait",
            "epoll_pwait",
            "epoll_pwait2",
            "eventfd",
            "eventfd2",
            "signalfd",
            "signalfd4",
            "timerfd_create",
            "timerfd_settime",
            "timerfd_gettime",
            "inotify_init",
            "inotify_init1",
            "inotify_add_watch",
            "inotify_rm_watch",
            "memfd_create",
            "fallocate",
            "readahead",
            "fadvise64",
            "syncfs",
            "sync_file_range",
        ],
    ),
    (
        "%ipc",
        &[
            "shmget",
            "shmat",
            "shmdt",
            "shmctl",
            "semget",
            "semop",
            "semtimedop",
            "semctl",
            "msgget",
            "msgsnd",
            "msgrcv",
            "msgctl",
        ],
    ),
];

impl Filter {
    /// Looks the words up.
    pub fn new(words: &Strace) -> Result<Filter, FilterError> {
        let mut filter = Filter {
            calls: [0; 8],
            processes: words.processes.clone(),
        };
        let mut inverted = false;
        for (position, word) in words.calls.iter().enumerate() {
            let mut word = word.as_str();
            if let (0, Some(rest)) = (position, word.strip_prefix('!')) {
                (inverted, word) = (true, rest);
            }
            filter.add(word)?;
        }
        if inverted || words.calls.is_empty() {
            filter.calls = filter.calls.map(|bits| !bits);
        }
        Ok(filter)
    }

    fn add(&mut self, word: &str) -> Result<(), FilterError> {
        if word == "all" {
            self.calls = [u64::MAX; 8];
            return Ok(());
        }
        if let Some((_, names)) = CLASSES.iter().find(|(class, _)| *class == word) {
            for name in *names {
                // A class may name calls that the table leaves out.
                let _ = self.add_call(name);
            }
            return Ok(());
        }
        self.add_call(word)
            .ok_or_else(|| FilterError::UnknownCall(word.to_string()))
    }

    fn add_call(&mut self, name: &str) -> Option<()> {
        let number = ROWS.iter().find(|row| row.name == name)?.number;
        *self.calls.get_mut(number / 64)? |= 1 << (number % 64);
        Some(())
    }

    /// Whether this call of this thread is traced.
    pub fn wants(&self, thread: &Thread, number: u64) -> bool {
        let bits = self.calls.get((number / 64) as usize);
        let wanted = bits.is_none_or(|bits| bits >> (number % 64) & 1 == 1);
        wanted && self.wants_process(thread)
    }

    /// Whether anything of this thread's process is traced.
    pub fn wants_process(&self, thread: &Thread) -> bool {
        self.processes.is_empty()
            || self.processes.iter().any(|word| match word.parse::<u32>() {
                Ok(pid) => pid == thread.process.pid || pid == thread.tid(),
                Err(_) => thread.name.lock().as_slice() == word.as_bytes(),
            })
    }
}
