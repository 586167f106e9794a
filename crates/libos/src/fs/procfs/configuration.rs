//! /proc/config.gz: which of Linux's build options describe what this kernel offers. Programs and
//! tests look there before they use a feature, so an option is listed only when the feature works.

use alloc::vec::Vec;

/// What is offered, and by name what is not, where programs ask.
const TEXT: &str = "#
# Bulla's library OS
#
CONFIG_64BIT=y
CONFIG_X86_64=y
CONFIG_SMP=y
CONFIG_MMU=y
CONFIG_MULTIUSER=y
CONFIG_SYSVIPC=y
CONFIG_SYSVIPC_SYSCTL=y
CONFIG_POSIX_MQUEUE=y
CONFIG_POSIX_TIMERS=y
CONFIG_HIGH_RES_TIMERS=y
CONFIG_FUTEX=y
CONFIG_FUTEX_PI=y
CONFIG_EPOLL=y
CONFIG_SIGNALFD=y
CONFIG_TIMERFD=y
CONFIG_EVENTFD=y
CONFIG_AIO=y
CONFIG_ADVISE_SYSCALLS=y
CONFIG_MEMBARRIER=y
CONFIG_MEMFD_CREATE=y
CONFIG_SHMEM=y
CONFIG_TMPFS=y
CONFIG_TMPFS_XATTR=y
CONFIG_FS_POSIX_ACL=y
CONFIG_TMPFS_POSIX_ACL=y
CONFIG_PROC_FS=y
CONFIG_PROC_SYSCTL=y
CONFIG_SYSCTL=y
CONFIG_SYSFS=y
CONFIG_FILE_LOCKING=y
CONFIG_INOTIFY_USER=y
CONFIG_DNOTIFY=y
CONFIG_OVERLAY_FS=y
CONFIG_BINFMT_ELF=y
CONFIG_BINFMT_SCRIPT=y
CONFIG_CROSS_MEMORY_ATTACH=y
CONFIG_CHECKPOINT_RESTORE=y
CONFIG_COREDUMP=y
CONFIG_ELF_CORE=y
CONFIG_PROC_PAGE_MONITOR=y
CONFIG_SECCOMP=y
CONFIG_SECCOMP_FILTER=y
CONFIG_UNIX98_PTYS=y
CONFIG_KEYS=y
CONFIG_PERSISTENT_KEYRINGS=y
CONFIG_BIG_KEYS=y
# CONFIG_TRUSTED_KEYS is not set
# CONFIG_ENCRYPTED_KEYS is not set
# CONFIG_KEY_DH_OPERATIONS is not set
# CONFIG_KEY_NOTIFICATIONS is not set
# CONFIG_ASYMMETRIC_KEY_TYPE is not set
CONFIG_NET=y
CONFIG_UNIX=y
CONFIG_AF_UNIX_OOB=y
CONFIG_INET=y
CONFIG_IPV6=y
# CONFIG_NAMESPACES is not set
# CONFIG_UTS_NS is not set
# CONFIG_TIME_NS is not set
# CONFIG_IPC_NS is not set
# CONFIG_USER_NS is not set
# CONFIG_PID_NS is not set
# CONFIG_NET_NS is not set
# CONFIG_CGROUPS is not set
# CONFIG_USERFAULTFD is not set
# CONFIG_IO_URING is not set
# CONFIG_FANOTIFY is not set
# CONFIG_BPF_SYSCALL is not set
# CONFIG_MODULES is not set
# CONFIG_NUMA is not set
# CONFIG_SWAP is not set
# CONFIG_KSM is not set
# CONFIG_HUGETLBFS is not set
# CONFIG_TRANSPARENT_HUGEPAGE is not set
# CONFIG_BLK_DEV_LOOP is not set
# CONFIG_TUN is not set
# CONFIG_QUOTA is not set
# CONFIG_BSD_PROCESS_ACCT is not set
";

/// The text as a gzip file (RFC 1952) of one stored block (RFC 1951, 3.2.4).
pub fn compressed() -> Vec<u8> {
    const { assert!(TEXT.len() <= 0xffff) }
    let len = TEXT.len() as u16;
    // Magic, deflate, no flags, no time, no extra flags, made on Unix; then the last block.
    let mut out = alloc::vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1];
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&(!len).to_le_bytes());
    out.extend_from_slice(TEXT.as_bytes());
    out.extend_from_slice(&crc32(TEXT.as_bytes()).to_le_bytes());
    out.extend_from_slice(&u32::from(len).to_le_bytes());
    out
}

/// CRC-32 as gzip has it, bit by bit: the text is short.
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let step = |crc: u32| crc >> 1 ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_gzips() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn the_file_is_what_gzip_reads() {
        use std::io::Write;
        let mut child = std::process::Command::new("gzip")
            .arg("-dc")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&compressed())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, TEXT.as_bytes());
    }
}
