//! Futexes under real host threads.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;
use std::thread::JoinHandle;

use super::*;
use crate::process::clone::{CloneFlags, clone};
use crate::process::tests::{arguments, process};
use crate::testing::alloc_user;
use crate::{Registers, Thread};

fn threads(count: usize) -> (u64, Vec<Arc<Thread>>) {
    let main = process();
    let address = alloc_user(&main, 4096);
    let flags = CloneFlags::VM | CloneFlags::SIGHAND | CloneFlags::THREAD;
    let mut all = Vec::new();
    for _ in 1..count {
        let tid = clone(&main, &mut Registers::default(), &arguments(flags)).unwrap();
        let thread = crate::process::table::thread(tid).unwrap();
        thread.clear_work(Work::all());
        all.push(thread);
    }
    all.insert(0, main);
    (address, all)
}

fn waiter(thread: &Arc<Thread>, address: u64, bitset: u32) -> JoinHandle<Result<()>> {
    let thread = thread.clone();
    std::thread::spawn(move || wait(&thread, address, 0, bitset, true, None))
}

/// Until all of the threads stand in a queue, and a moment longer, so that they sleep.
fn settle(threads: &[Arc<Thread>]) {
    let waits = |thread: &Arc<Thread>| {
        let in_bucket = |bucket: &Bucket| {
            bucket
                .entries
                .lock()
                .iter()
                .any(|entry| Arc::ptr_eq(&entry.thread, thread))
        };
        TABLE.iter().any(in_bucket)
    };
    while !threads.iter().all(waits) {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(2));
}

fn set(thread: &Arc<Thread>, address: u64, value: u32) {
    thread.mm().write(address, &value.to_le_bytes()).unwrap();
}

#[test]
fn wait_and_wake_by_bitset_and_count() {
    let (word, all) = threads(4);
    let mm = all[0].mm();
    assert_eq!(wait(&all[0], word, 1, !0, true, None), Err(EAGAIN));
    assert_eq!(wait(&all[0], word + 2, 0, !0, true, None), Err(EINVAL));
    assert_eq!(wait(&all[0], word, 0, 0, true, None), Err(EINVAL));
    let soon = platform().monotonic() + 1_000_000;
    assert_eq!(wait(&all[0], word, 0, !0, true, Some(soon)), Err(ETIMEDOUT));
    assert_eq!(wake(&mm, word, true, 10, !0), Ok(0));

    let first = waiter(&all[1], word, 1);
    settle(&all[1..2]);
    let second = waiter(&all[2], word, 2);
    let third = waiter(&all[3], word, 2);
    settle(&all[1..4]);
    assert_eq!(wake(&mm, word, true, 10, 4), Ok(0));
    assert_eq!(wake(&mm, word, true, 10, 1), Ok(1));
    first.join().unwrap().unwrap();
    assert_eq!(wake(&mm, word, true, 1, !0), Ok(1));
    assert_eq!(wake(&mm, word, true, 10, !0), Ok(1));
    second.join().unwrap().unwrap();
    third.join().unwrap().unwrap();
}

#[test]
fn requeued_waiters_are_woken_at_the_second_word() {
    let (word, all) = threads(4);
    let mm = all[0].mm();
    let other = word + 64;
    let waiters: Vec<_> = all[1..]
        .iter()
        .map(|thread| waiter(thread, word, !0))
        .collect();
    settle(&all[1..4]);
    assert_eq!(requeue(&mm, word, other, true, 1, 10, Some(1)), Err(EAGAIN));
    assert_eq!(requeue(&mm, word, other, true, 1, 10, Some(0)), Ok((1, 2)));
    assert_eq!(wake(&mm, word, true, 10, !0), Ok(0));
    assert_eq!(wake(&mm, other, true, 10, !0), Ok(2));
    for waiter in waiters {
        waiter.join().unwrap().unwrap();
    }
}

#[test]
fn a_signal_interrupts_a_requeued_wait() {
    let (word, all) = threads(2);
    let mm = all[0].mm();
    let waiter = waiter(&all[1], word, !0);
    settle(&all[1..2]);
    assert_eq!(requeue(&mm, word, word + 4, true, 0, 10, None), Ok((0, 1)));
    all[1].add_work(Work::SIGNAL);
    assert_eq!(waiter.join().unwrap(), Err(ERESTARTSYS));
    assert_eq!(wake(&mm, word + 4, true, 10, !0), Ok(0));
}

#[test]
fn no_wake_up_is_lost_between_requeues() {
    let (word, all) = threads(5);
    let mm = all[0].mm();
    for _ in 0..200 {
        set(&all[0], word, 0);
        let waiters: Vec<_> = all[1..]
            .iter()
            .map(|thread| waiter(thread, word, !0))
            .collect();
        let mm = mm.clone();
        let mut done = 0;
        // Those that come late find the word changed and do not wait.
        std::thread::yield_now();
        let (woken, _) = requeue(&mm, word, word + 8, true, 1, 1, None).unwrap();
        done += woken;
        set(&all[0], word, 1);
        let mut late = 0;
        while done + late < waiters.len() {
            done += wake(&mm, word, true, 10, !0).unwrap();
            done += wake(&mm, word + 8, true, 10, !0).unwrap();
            late = waiters.iter().filter(|waiter| waiter.is_finished()).count();
        }
        for waiter in waiters {
            let result = waiter.join().unwrap();
            assert!(result.is_ok() || result == Err(EAGAIN), "{result:?}");
        }
    }
    for bucket in &TABLE {
        // Nothing of this test's threads is left behind.
        let entries = bucket.entries.lock();
        assert!(
            !entries
                .iter()
                .any(|e| all.iter().any(|t| Arc::ptr_eq(t, &e.thread)))
        );
    }
}

#[test]
fn wake_op_changes_compares_and_wakes() {
    let (word, all) = threads(3);
    let mm = all[0].mm();
    let second = word + 64;
    let waiters = [waiter(&all[1], word, !0), waiter(&all[2], second, !0)];
    settle(&all[1..3]);
    // Add 5 to the second word; wake its waiters if it was equal to 0.
    let operation = 1 << 28 | 5 << 12;
    assert_eq!(wake_op(&mm, word, second, true, [1, 1], operation), Ok(2));
    assert_eq!(mm.atomic(second, Atomic::Load), Ok(5));
    for waiter in waiters {
        waiter.join().unwrap().unwrap();
    }
    // 1 << 3 or-ed in; compared with −1.
    let operation = (8 | 2) << 28 | 3 << 12 | 0xfff;
    assert_eq!(wake_op(&mm, word, second, true, [1, 1], operation), Ok(0));
    assert_eq!(mm.atomic(second, Atomic::Load), Ok(13));
    assert_eq!(
        wake_op(&mm, word, second, true, [1, 1], 7 << 28),
        Err(ENOSYS)
    );
}

#[test]
fn waiting_for_several_words() {
    let (word, all) = threads(2);
    let mm = all[0].mm();
    let words: Vec<Word> = (0..3)
        .map(|at| Word {
            address: word + at * 64,
            expected: 0,
            private: true,
        })
        .collect();
    let thread = all[1].clone();
    let waiter = std::thread::spawn(move || wait_any(&thread, &words, None));
    settle(&all[1..2]);
    assert_eq!(wake(&mm, word + 64, true, 1, !0), Ok(1));
    assert_eq!(waiter.join().unwrap(), Ok(1));
    assert_eq!(wake(&mm, word, true, 10, !0), Ok(0));
    assert_eq!(wake(&mm, word + 128, true, 10, !0), Ok(0));
}

#[test]
fn priority_inheritance_locks_exclude() {
    let (word, all) = threads(4);
    let counter = Arc::new(std::sync::Mutex::new((0u32, 0u32)));
    let hosts: Vec<_> = all
        .iter()
        .map(|thread| {
            let (thread, counter) = (thread.clone(), counter.clone());
            std::thread::spawn(move || {
                for _ in 0..100 {
                    lock_pi(&thread, word, true, None, true).unwrap();
                    counter.try_lock().expect("nobody else is inside").0 += 1;
                    std::thread::yield_now();
                    unlock_pi(&thread, word, true).unwrap();
                }
            })
        })
        .collect();
    for host in hosts {
        host.join().unwrap();
    }
    assert_eq!(counter.lock().unwrap().0, 400);
    assert_eq!(all[0].mm().atomic(word, Atomic::Load), Ok(0));
    lock_pi(&all[0], word, true, None, true).unwrap();
    assert_eq!(lock_pi(&all[0], word, true, None, true), Err(EDEADLK));
    assert_eq!(lock_pi(&all[1], word, true, None, false), Err(EAGAIN));
    assert_eq!(unlock_pi(&all[1], word, true), Err(EPERM));
    let soon = platform().monotonic() + 1_000_000;
    assert_eq!(
        lock_pi(&all[1], word, true, Some(soon), true),
        Err(ETIMEDOUT)
    );
}

#[test]
fn a_dying_owner_releases_robust_locks_and_its_id() {
    let (base, all) = threads(3);
    let (dying, mm) = (&all[2], all[0].mm());
    let (head, entry, tid_word) = (base, base + 0x100, base + 0x200);
    let put = |address: u64, value: u64| mm.write(address, &value.to_le_bytes()).unwrap();
    put(head, entry);
    put(head + 8, 16);
    put(entry, head);
    put(tid_word, u64::from(dying.tid()));
    set(&all[0], entry + 16, dying.tid() | WAITERS);
    dying.exit.robust_list.store(head, Ordering::Relaxed);
    dying
        .exit
        .clear_child_tid
        .store(tid_word, Ordering::Relaxed);
    let expected = dying.tid() | WAITERS;
    let thread = all[1].clone();
    let lock_waiter =
        std::thread::spawn(move || wait(&thread, entry + 16, expected, !0, true, None));
    let (thread, tid) = (all[0].clone(), dying.tid());
    let joiner = std::thread::spawn(move || wait(&thread, tid_word, tid, !0, false, None));
    settle(&all[0..2]);
    crate::process::exit::thread_exit(dying, 0);
    assert_eq!(
        crate::before_user(dying, &mut Registers::default()),
        crate::Next::Exit
    );
    lock_waiter.join().unwrap().unwrap();
    joiner.join().unwrap().unwrap();
    assert_eq!(
        mm.atomic(entry + 16, Atomic::Load),
        Ok(WAITERS | OWNER_DIED)
    );
    assert_eq!(mm.atomic(tid_word, Atomic::Load), Ok(0));
}
