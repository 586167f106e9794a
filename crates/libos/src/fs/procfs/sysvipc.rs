//! /proc/sysvipc: the System V objects, as ipcs(1) reads them.

use alloc::format;
use alloc::string::String;

use crate::ipc::message::QUEUES;
use crate::ipc::semaphore::SETS;
use crate::ipc::{Object, Permission};
use crate::mm::{PAGE, sysv};

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn owners(permission: &Permission) -> String {
    format!(
        "{:5} {:5} {:5} {:5}",
        permission.uid, permission.gid, permission.creator_uid, permission.creator_gid
    )
}

/// Message queues.
pub fn queues() -> String {
    let mut text = String::from(
        "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      \
         stime      rtime      ctime\n",
    );
    for (id, queue) in QUEUES.list() {
        // struct msqid64_ds after the permissions: stime, rtime, ctime, cbytes, qnum, qbytes, pids.
        let (permission, bytes) = (queue.permission(), queue.encode());
        let pids = word(&bytes, 96);
        text.push_str(&format!(
            "{:10} {id:10}  {:4o}  {:10} {:10} {:5} {:5} {} {:10} {:10} {:10}\n",
            permission.key,
            permission.mode,
            word(&bytes, 72),
            word(&bytes, 80),
            pids as u32,
            pids >> 32,
            owners(&permission),
            word(&bytes, 48),
            word(&bytes, 56),
            word(&bytes, 64),
        ));
    }
    text
}

/// Semaphore sets.
pub fn semaphores() -> String {
    let mut text = String::from(
        "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n",
    );
    for (id, set) in SETS.list() {
        // struct semid64_ds after the permissions: otime, 0, ctime, 0, nsems.
        let (permission, bytes) = (set.permission(), set.encode());
        text.push_str(&format!(
            "{:10} {id:10}  {:4o} {:10} {} {:10} {:10}\n",
            permission.key,
            permission.mode,
            word(&bytes, 80),
            owners(&permission),
            word(&bytes, 48),
            word(&bytes, 64),
        ));
    }
    text
}

/// Shared memory segments.
pub fn segments() -> String {
    let mut text = String::from(
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  \
         cgid      atime      dtime      ctime                   rss                  swap\n",
    );
    for id in sysv::all() {
        // It may have gone meanwhile.
        let Ok(status) = sysv::status(id) else {
            continue;
        };
        text.push_str(&format!(
            "{:10} {id:10}  {:4o} {:21} {:5} {:5}  {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10} {:21} \
             {:21}\n",
            status.key,
            status.mode,
            status.size,
            status.creator,
            status.last,
            status.users,
            status.uid,
            status.gid,
            status.creator_uid,
            status.creator_gid,
            status.attached,
            status.detached,
            status.changed,
            status.resident * PAGE,
            0,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::{IPC_CREAT, message::Queue};
    use crate::process::credentials::Credentials;

    #[test]
    fn a_queue_has_its_line() {
        crate::testing::platform();
        let make = |permission| Ok(Queue::new(permission));
        let root = Credentials::default();
        let id = QUEUES.get(0x7357, IPC_CREAT | 0o640, &root, |_| Ok(()), make);
        let id = id.unwrap();
        let text = queues();
        let line = text
            .lines()
            .find(|line| line.split_whitespace().next() == Some("29527"));
        let fields: alloc::vec::Vec<_> = line.unwrap().split_whitespace().collect();
        assert_eq!(
            fields.len(),
            text.lines().next().unwrap().split_whitespace().count()
        );
        assert_eq!(fields[1], format!("{id}"));
        assert_eq!(fields[2], "640");
        QUEUES.remove(id as i32, |_| Ok(())).unwrap();
    }
}
