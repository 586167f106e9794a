//! A host for unit tests: [`TestPlatform`] behaves as the trusted runtime and an MMU would.
//!
//! All tests of the crate run in one process and share one platform (as all processes of a
//! container share one enclave): user memory is container-wide, so two tests never get the same
//! addresses unless they ask for fixed ones. What a test may want to set for itself (host calls,
//! FS base, extended state) is per host thread.
//!
//! [`setup`] gives a thread of a fresh process with an empty address space.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Instant, SystemTime};

use bulla_abi::hostcall::{DATA_SIZE, HostCall};
use sha2::{Digest, Sha256};

use crate::errno::{EFAULT, EINVAL, EIO, ENOMEM, ENOSYS};
use crate::fs::context::FsContext;
use crate::fs::inode::{FileId, Inode};
use crate::fs::table::FdTable;
use crate::mm::AddressSpace;
use crate::mm::map::Request;
use crate::platform::{Atomic, InstructionGate, Platform, Protection, UserFault};
use crate::process::Process;
use crate::process::thread::StartState;
use crate::{Registers, Result, Thread};

const PAGE: u64 = 4096;

struct Page {
    protection: Protection,
    bytes: Box<[u8; PAGE as usize]>,
}

/// A host call answered by a test: number, arguments, the thread's data buffer.
pub type HostHook = Box<dyn FnMut(HostCall, [u64; 4], &mut [u8]) -> i64>;

std::thread_local! {
    static HOST: RefCell<Option<HostHook>> = const { RefCell::new(None) };
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(std::vec![0; DATA_SIZE as usize]);
    static FS_BASE: Cell<u64> = const { Cell::new(0) };
    static HEAP_IS_SHORT: Cell<bool> = const { Cell::new(false) };
    static FPU: RefCell<[u8; FPU_SIZE]> = const { RefCell::new([0; FPU_SIZE]) };
}

const FPU_SIZE: usize = 832;

/// The test host.
pub struct TestPlatform {
    pages: Mutex<HashMap<u64, Page>>,
    /// Pages that may still be committed; lets tests run out of memory.
    sleep: Mutex<()>,
    woken: Condvar,
    spawned: Mutex<Vec<Arc<Thread>>>,
    rootfs: Mutex<Vec<u8>>,
    start: Instant,
}

/// The test platform, set as the crate's platform on first use.
pub fn platform() -> &'static TestPlatform {
    static SET: Once = Once::new();
    static PLATFORM: std::sync::OnceLock<TestPlatform> = std::sync::OnceLock::new();
    let platform = PLATFORM.get_or_init(|| TestPlatform {
        pages: Mutex::new(HashMap::new()),
        sleep: Mutex::new(()),
        woken: Condvar::new(),
        spawned: Mutex::new(Vec::new()),
        rootfs: Mutex::new(Vec::new()),
        start: Instant::now(),
    });
    SET.call_once(|| crate::platform::set_platform(platform));
    platform
}

/// Whether kernel memory is used up, for this host thread.
pub fn set_heap_is_short(is_short: bool) {
    HEAP_IS_SHORT.set(is_short);
}

/// A thread of a fresh process with an empty address space.
pub fn setup() -> Arc<Thread> {
    platform();
    thread_in(AddressSpace::new())
}

/// A thread of a fresh process in the given address space.
pub fn thread_in(mm: Arc<AddressSpace>) -> Arc<Thread> {
    static NEXT: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(1000);
    // Beyond the ids that the process table gives out.
    let pid = (1 << 23) + NEXT.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    thread_of(pid, mm)
}

/// The first thread of a process with a certain id.
pub fn thread_with_id(pid: u32) -> Arc<Thread> {
    platform();
    thread_of(pid, AddressSpace::new())
}

fn thread_of(pid: u32, mm: Arc<AddressSpace>) -> Arc<Thread> {
    let start = StartState {
        registers: Registers::default(),
        fs_base: 0,
        fpu: None,
    };
    let process = Process::new(pid, mm);
    let thread = Arc::new(Thread::new(
        pid,
        process.clone(),
        Arc::new(FdTable::default()),
        Arc::new(FsContext::default()),
        start,
    ));
    process.threads.lock().push(Arc::downgrade(&thread));
    thread.mm().attach(&thread);
    thread
}

/// Fresh zeroed read-write user memory for a test.
pub fn alloc_user(thread: &Arc<Thread>, len: u64) -> u64 {
    let protection = Protection::READ | Protection::WRITE;
    thread
        .mm()
        .map(Request::anonymous(len, protection))
        .expect("addresses and memory")
}

/// A file of which only the content matters.
pub struct MemoryFile {
    id: u64,
    immutable: core::sync::atomic::AtomicBool,
    pub content: Mutex<Vec<u8>>,
}

impl MemoryFile {
    pub fn new(content: Vec<u8>) -> Arc<MemoryFile> {
        static NEXT: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(1);
        let id = NEXT.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        Arc::new(MemoryFile {
            id,
            immutable: core::sync::atomic::AtomicBool::new(false),
            content: Mutex::new(content),
        })
    }

    /// Whether it says that nobody ever wrote to it.
    pub fn set_immutable(&self, immutable: bool) {
        self.immutable
            .store(immutable, core::sync::atomic::Ordering::Relaxed);
    }
}

impl Inode for MemoryFile {
    fn as_any(&self) -> &dyn core::any::Any {
        self
    }

    fn id(&self) -> FileId {
        FileId {
            device: 0x7e57,
            inode: self.id,
        }
    }

    fn mode(&self) -> u32 {
        0o100755
    }

    fn is_immutable(&self) -> bool {
        self.immutable.load(core::sync::atomic::Ordering::Relaxed)
    }

    fn metadata(&self) -> crate::fs::inode::Metadata {
        crate::fs::inode::Metadata {
            device: 0x7e57,
            inode: self.id,
            mode: self.mode(),
            size: self.size(),
            ..crate::fs::file::anonymous_metadata()
        }
    }

    fn size(&self) -> u64 {
        lock(&self.content).len() as u64
    }

    fn read_bytes(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        let content = lock(&self.content);
        let from = content.get(offset as usize..).unwrap_or_default();
        let len = from.len().min(to.len());
        to[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }

    fn write_bytes(&self, offset: u64, from: &[u8]) -> Result<usize> {
        let mut content = lock(&self.content);
        let end = offset as usize + from.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset as usize..end].copy_from_slice(from);
        Ok(from.len())
    }
}

/// Answers this host thread's host calls with `hook` from now on.
pub fn on_host_call(hook: impl FnMut(HostCall, [u64; 4], &mut [u8]) -> i64 + 'static) {
    HOST.with(|host| *host.borrow_mut() = Some(Box::new(hook)));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TestPlatform {
    /// Threads given to `spawn` since the last call.
    pub fn take_spawned(&self) -> Vec<Arc<Thread>> {
        core::mem::take(&mut *lock(&self.spawned))
    }

    /// The content of the untrusted rootfs file.
    pub fn set_rootfs(&self, bytes: Vec<u8>) {
        *lock(&self.rootfs) = bytes;
    }

    /// The protection of a committed page.
    pub fn protection(&self, address: u64) -> Option<Protection> {
        lock(&self.pages)
            .get(&(address / PAGE))
            .map(|page| page.protection)
    }

    /// The bytes of a committed page, whatever its protection.
    pub fn page(&self, address: u64) -> Option<[u8; PAGE as usize]> {
        lock(&self.pages)
            .get(&(address / PAGE))
            .map(|page| *page.bytes)
    }

    /// Committed pages in a range.
    pub fn committed(&self, range: Range<u64>) -> usize {
        lock(&self.pages)
            .keys()
            .filter(|page| range.contains(&(*page * PAGE)))
            .count()
    }

    /// Runs `each` over the page pieces of a range that allow `access`, in order.
    fn walk(
        &self,
        address: u64,
        len: usize,
        access: Protection,
        mut each: impl FnMut(&mut [u8], Range<usize>),
    ) -> core::result::Result<(), UserFault> {
        let mut pages = lock(&self.pages);
        let mut done = 0;
        while done < len {
            let at = address.wrapping_add(done as u64);
            let offset = (at % PAGE) as usize;
            let step = (len - done).min(PAGE as usize - offset);
            match pages.get_mut(&(at / PAGE)) {
                Some(page) if page.protection.contains(access) => {
                    each(&mut page.bytes[offset..offset + step], done..done + step);
                }
                _ => {
                    return Err(UserFault {
                        remaining: len - done,
                    });
                }
            }
            done += step;
        }
        Ok(())
    }

    fn check_range(&self, address: u64, len: u64) {
        let user = self.user_range();
        let end = address.checked_add(len).expect("range wraps");
        assert!(
            address.is_multiple_of(PAGE) && len.is_multiple_of(PAGE),
            "{address:#x}+{len:#x} not page aligned"
        );
        assert!(
            user.start <= address && end <= user.end,
            "{address:#x}+{len:#x} not user memory"
        );
    }
}

impl Platform for TestPlatform {
    fn user_range(&self) -> Range<u64> {
        bulla_abi::layout::USER_START..bulla_abi::layout::LayoutKind::Dynamic.runtime_start()
    }

    fn commit(&self, address: u64, len: u64, protection: Protection) -> Result<()> {
        self.check_range(address, len);
        let mut pages = lock(&self.pages);
        if pages.len() as u64 + len / PAGE > (4 << 30) / PAGE {
            return Err(ENOMEM);
        }
        for page in address / PAGE..(address + len) / PAGE {
            let fresh = Page {
                protection,
                bytes: Box::new([0; PAGE as usize]),
            };
            let old = pages.insert(page, fresh);
            assert!(old.is_none(), "page {:#x} committed twice", page * PAGE);
        }
        Ok(())
    }

    fn decommit(&self, address: u64, len: u64) {
        self.check_range(address, len);
        let mut pages = lock(&self.pages);
        let numbers = address / PAGE..(address + len) / PAGE;
        if numbers.end - numbers.start > pages.len() as u64 {
            pages.retain(|page, _| !numbers.contains(page));
        } else {
            numbers.for_each(|page| drop(pages.remove(&page)));
        }
    }

    fn protect(&self, address: u64, len: u64, protection: Protection) -> Result<()> {
        self.check_range(address, len);
        let mut pages = lock(&self.pages);
        for page in address / PAGE..(address + len) / PAGE {
            if let Some(page) = pages.get_mut(&page) {
                page.protection = protection;
            }
        }
        Ok(())
    }

    fn is_committed(&self, address: u64) -> bool {
        lock(&self.pages).contains_key(&(address / PAGE))
    }

    fn write_protected(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.walk(address, bytes.len(), Protection::empty(), |page, range| {
            page.copy_from_slice(&bytes[range]);
        })
        .map_err(|_| EFAULT)
    }

    fn fill(
        &self,
        address: u64,
        len: u64,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.check_range(address, len);
        let mut bytes = std::vec![0; len as usize];
        self.walk(address, len as usize, Protection::empty(), |page, range| {
            bytes[range].copy_from_slice(page);
        })
        .map_err(|_| EFAULT)?;
        fill(&mut bytes)?;
        self.write_protected(address, &bytes)
    }

    fn copy_from_user(&self, address: u64, to: &mut [u8]) -> core::result::Result<(), UserFault> {
        self.walk(address, to.len(), Protection::READ, |page, range| {
            to[range].copy_from_slice(page);
        })
    }

    fn copy_to_user(&self, address: u64, from: &[u8]) -> core::result::Result<(), UserFault> {
        self.walk(address, from.len(), Protection::WRITE, |page, range| {
            page.copy_from_slice(&from[range]);
        })
    }

    fn clear_user(&self, address: u64, len: usize) -> core::result::Result<(), UserFault> {
        self.walk(address, len, Protection::WRITE, |page, _| page.fill(0))
    }

    fn atomic_user(&self, address: u64, operation: Atomic) -> core::result::Result<u32, UserFault> {
        assert!(
            address.is_multiple_of(4),
            "unaligned atomic at {address:#x}"
        );
        let access = match operation {
            Atomic::Load => Protection::READ,
            _ => Protection::READ | Protection::WRITE,
        };
        let mut old = 0;
        self.walk(address, 4, access, |page, _| {
            old = u32::from_le_bytes([page[0], page[1], page[2], page[3]]);
            page.copy_from_slice(&operation.apply(old).to_le_bytes());
        })?;
        Ok(old)
    }

    fn fs_base(&self) -> u64 {
        FS_BASE.get()
    }

    fn set_fs_base(&self, base: u64) {
        FS_BASE.set(base);
    }

    fn cpuid(&self, leaf: u32, _: u32) -> crate::cpuid::Words {
        // A CPU with AVX, and AES, but nothing newer.
        if leaf == 1 {
            [0, 0, 1 << 28 | 1 << 25, 0]
        } else {
            [0; 4]
        }
    }

    fn fpu_size(&self) -> usize {
        FPU_SIZE
    }

    fn fpu_features(&self) -> u64 {
        7
    }

    fn fpu_save(&self, to: &mut [u8]) {
        FPU.with(|fpu| to[..FPU_SIZE].copy_from_slice(&*fpu.borrow()));
    }

    fn fpu_restore(&self, from: &[u8]) {
        FPU.with(|fpu| fpu.borrow_mut().copy_from_slice(&from[..FPU_SIZE]));
    }

    fn spawn(&self, thread: Arc<Thread>) -> Result<()> {
        lock(&self.spawned).push(thread);
        Ok(())
    }

    fn sleep(&self, thread: &Thread, seen: u32, deadline: Option<u64>) {
        let mut guard = lock(&self.sleep);
        while thread.event_count() == seen {
            let left = match deadline {
                Some(deadline) => match deadline.checked_sub(self.monotonic()) {
                    None | Some(0) => return,
                    Some(left) => Duration::from_nanos(left),
                },
                None => Duration::from_secs(3600),
            };
            guard = match self.woken.wait_timeout(guard, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn wake(&self, _thread: &Thread) {
        drop(lock(&self.sleep));
        self.woken.notify_all();
    }

    fn kick(&self, _thread: &Thread) {}

    fn stop(&self, _thread: &Thread) {}

    fn yield_now(&self) {
        std::thread::yield_now();
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn host_call(
        &self,
        call: HostCall,
        arguments: [u64; 4],
        _waiting: Option<(&Thread, u32)>,
    ) -> i64 {
        HOST.with(|host| match &mut *host.borrow_mut() {
            Some(hook) => BUFFER.with(|data| hook(call, arguments, &mut data.borrow_mut())),
            None => -i64::from(ENOSYS.code()),
        })
    }

    fn host_put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        BUFFER.with(|data| {
            let mut data = data.borrow_mut();
            let target = data
                .get_mut(offset as usize..)
                .and_then(|to| to.get_mut(..bytes.len()));
            target.ok_or(EINVAL)?.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn host_get(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        BUFFER.with(|data| {
            let data = data.borrow();
            let source = data
                .get(offset as usize..)
                .and_then(|from| from.get(..bytes.len()));
            bytes.copy_from_slice(source.ok_or(EINVAL)?);
            Ok(())
        })
    }

    fn host_put_user(
        &self,
        offset: u64,
        address: u64,
        len: usize,
    ) -> core::result::Result<(), UserFault> {
        let mut bytes = std::vec![0; len];
        let result = self.copy_from_user(address, &mut bytes);
        let done = len - result.map_or_else(|fault| fault.remaining, |()| 0);
        self.host_put(offset, &bytes[..done])
            .map_err(|_| UserFault { remaining: len })?;
        result
    }

    fn host_get_user(
        &self,
        offset: u64,
        address: u64,
        len: usize,
    ) -> core::result::Result<(), UserFault> {
        let mut bytes = std::vec![0; len];
        self.host_get(offset, &mut bytes)
            .map_err(|_| UserFault { remaining: len })?;
        self.copy_to_user(address, &bytes)
    }

    fn rootfs_read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let rootfs = lock(&self.rootfs);
        let from = rootfs
            .get(offset as usize..)
            .and_then(|from| from.get(..to.len()));
        to.copy_from_slice(from.ok_or(EIO)?);
        Ok(())
    }

    fn report(&self, target: &[u8; 512], data: &[u8; 64]) -> Result<[u8; 432]> {
        // A report whose MAC is a hash, so that the target takes part.
        let mut report = [0; 432];
        report[48] = 5;
        report[64..96].fill(0xe1);
        report[128..160].fill(0x51);
        report[320..384].copy_from_slice(data);
        let mac = self.sha256(&[target, &report[..384]]);
        report[416..].copy_from_slice(&mac[..16]);
        Ok(report)
    }

    fn key(&self, request: &[u8; 512]) -> Result<[u8; 16]> {
        let hash = self.sha256(&[request]);
        Ok(hash[..16].try_into().unwrap_or_default())
    }

    fn exit(&self, status: u32) -> ! {
        panic!("container exits with {status:#x}");
    }

    fn fatal(&self, reason: &str) -> ! {
        panic!("{reason}");
    }

    fn log(&self, level: u8, message: &str) {
        std::eprintln!("[{level}] {message}");
    }

    fn monotonic(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64 + 1_000_000_000
    }

    fn realtime(&self) -> u64 {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.as_nanos() as u64)
    }

    fn random(&self, to: &mut [u8]) {
        rand::fill(to);
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        hash.finalize().into()
    }

    fn fingerprints(&self, pages: &[u8], of: &mut [u128]) -> bool {
        for (page, of) in pages.chunks_exact(4096).zip(of) {
            let hash = self.sha256(&[page]);
            *of = u128::from_le_bytes(hash[..16].try_into().expect("16 of 32 bytes")) | 1;
        }
        true
    }

    fn cpus(&self) -> u32 {
        2
    }

    fn gate_offset(&self) -> u32 {
        0x100
    }

    fn instruction_gate(&self) -> InstructionGate {
        InstructionGate {
            offset: 0x108,
            trampoline: 0x110,
        }
    }

    fn heap_usage(&self) -> (u64, u64) {
        (0, 1 << 30)
    }

    fn heap_is_short(&self) -> bool {
        HEAP_IS_SHORT.get()
    }
}

mod tests {
    use super::*;

    #[test]
    fn user_memory_faults_as_an_mmu_does() {
        let thread = setup();
        let address = alloc_user(&thread, 2 * PAGE);
        let test = platform();
        assert_eq!(test.copy_to_user(address + 4090, b"0123456789"), Ok(()));
        let mut back = [0; 10];
        assert_eq!(test.copy_from_user(address + 4090, &mut back), Ok(()));
        assert_eq!(&back, b"0123456789");
        test.protect(address + PAGE, PAGE, Protection::READ)
            .unwrap();
        let fault = test.copy_to_user(address + 4090, b"0123456789");
        assert_eq!(fault, Err(UserFault { remaining: 4 }));
        test.decommit(address + PAGE, PAGE);
        let fault = test.copy_from_user(address + 4090, &mut back);
        assert_eq!(fault, Err(UserFault { remaining: 4 }));
        assert_eq!(test.atomic_user(address, Atomic::Add(3)), Ok(0));
        assert_eq!(test.atomic_user(address, Atomic::Load), Ok(3));
    }

    #[test]
    fn a_sleeping_thread_is_woken() {
        let thread = setup();
        let seen = thread.event_count();
        let waker = thread.clone();
        let other = std::thread::spawn(move || waker.notify());
        crate::platform::platform().sleep(&thread, seen, None);
        assert_ne!(thread.event_count(), seen);
        other.join().unwrap();
    }
}
