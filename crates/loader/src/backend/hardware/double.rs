//! A machine with SGX, for tests: answers the backend's system calls with another platform behind
//! them (the emulated one) and enforces the driver's rules.
//!
//! Rules, from `arch/x86/kernel/cpu/sgx/{ioctl,encl,driver}.c` as of Linux 6.x:
//! - CREATE once, first; ADD_PAGES before INIT only; the rest of the requests after INIT only.
//! - One request at a time per file (EBUSY).
//! - Sources are page aligned; SECINFO is a regular page with sane permissions or a TCS with none;
//!   a page is added once (EBUSY).
//! - A mapping or its protection never exceeds what the pages in it were added with (EACCES).
//! - Long requests may stop after part of the work (EINTR, `count`).
//! - Missing pages are added when touched, after INIT, where the mapping allows it.
//! - TCS pages are mapped RW; only trimmed pages are removed (EPERM).

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::sys::{Capabilities, Sys};
use super::uapi::{self, Request};
use crate::backend::{Backend, EnterLeaf, Error, Outcome, Registers, page_type};
use crate::sys::raw::{Answer, Errno};

const PAGE: u64 = 4096;

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Opened,
    Created,
    Initialised,
}

#[derive(Clone, Copy)]
struct Page {
    max: u64,
    kind: u64,
}

struct State {
    stage: Stage,
    size: u64,
    reserved: bool,
    pages: HashMap<u64, Page>,
    /// Start of a range to its protection, up to the next start.
    mappings: BTreeMap<u64, u64>,
}

/// The machine.
pub struct Double {
    behind: Box<dyn Backend>,
    /// Linux 6.0 or newer on an SGX2 CPU.
    edmm: bool,
    busy: AtomicBool,
    calls: AtomicU64,
    state: Mutex<State>,
}

const fn error(errno: i32) -> Errno {
    Errno(errno)
}

fn behind(result: Result<(), Error>) -> Result<(), Errno> {
    result.map_err(|error| match error {
        Error::System { errno, .. } => Errno(errno),
        Error::Sgx { .. } => Errno(libc::EPERM),
        Error::Refused(_) => Errno(libc::EINVAL),
    })
}

impl Double {
    pub fn new(behind: Box<dyn Backend>, edmm: bool) -> Double {
        Double {
            behind,
            edmm,
            busy: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            state: Mutex::new(State {
                stage: Stage::Opened,
                size: 0,
                reserved: false,
                pages: HashMap::new(),
                mappings: BTreeMap::new(),
            }),
        }
    }

    /// How much of a request for `length` bytes is done this time: every third one is interrupted.
    fn portion(&self, length: u64) -> (u64, bool) {
        match self.calls.fetch_add(1, Ordering::Relaxed) % 3 {
            1 => ((length / PAGE / 2) * PAGE, true),
            _ => (length, false),
        }
    }

    fn serve(&self, state: &mut State, request: Request<'_>) -> Answer {
        let name = request.name();
        let ready = match request {
            Request::Create(_) => state.stage == Stage::Opened,
            Request::AddPages(_) | Request::Init(_) => state.stage == Stage::Created,
            _ => {
                if !self.edmm {
                    return Err(error(libc::ENOTTY));
                }
                state.stage == Stage::Initialised
            }
        };
        if !ready {
            return Err(error(libc::EINVAL));
        }
        assert!(name.starts_with("SGX_IOC_ENCLAVE_"));
        match request {
            Request::Create(argument) => self.create(state, argument.src),
            Request::AddPages(argument) => self.add(state, argument),
            Request::Init(argument) => {
                // SAFETY: the backend passes the address of a SIGSTRUCT that it holds.
                let sigstruct = unsafe { &*(argument.sigstruct as *const [u8; 1808]) };
                behind(self.behind.init(sigstruct))?;
                state.stage = Stage::Initialised;
                Ok(0)
            }
            Request::RestrictPermissions(argument) => {
                let (done, interrupted) = self.portion(argument.length);
                self.regular(state, argument.offset, argument.length)?;
                if done > 0 {
                    behind(
                        self.behind
                            .restrict(argument.offset, done, argument.permissions),
                    )?;
                }
                argument.count = done;
                finished(interrupted)
            }
            Request::ModifyTypes(argument) => {
                let (done, interrupted) = self.portion(argument.length);
                let range = (argument.offset..argument.offset + argument.length).step_by(4096);
                for page in range {
                    let mapped = mapping(state, page);
                    let entry = state.pages.get_mut(&page).ok_or(error(libc::EFAULT))?;
                    if argument.page_type == page_type::TCS {
                        if entry.max & 3 != 3 || mapped != 3 {
                            return Err(error(libc::EPERM));
                        }
                        entry.max = 3;
                    }
                    if page < argument.offset + done {
                        entry.kind = argument.page_type;
                    }
                }
                if done > 0 {
                    behind(
                        self.behind
                            .modify_type(argument.offset, done, argument.page_type),
                    )?;
                }
                argument.count = done;
                finished(interrupted)
            }
            Request::RemovePages(argument) => {
                let (done, interrupted) = self.portion(argument.length);
                for page in (argument.offset..argument.offset + done).step_by(4096) {
                    match state.pages.remove(&page) {
                        Some(Page {
                            kind: page_type::TRIM,
                            ..
                        }) => {}
                        _ => return Err(error(libc::EPERM)),
                    }
                }
                if done > 0 {
                    behind(self.behind.remove(argument.offset, done))?;
                }
                argument.count = done;
                finished(interrupted)
            }
        }
    }

    fn create(&self, state: &mut State, source: u64) -> Answer {
        if !source.is_multiple_of(PAGE) {
            return Err(error(libc::EINVAL));
        }
        // SAFETY: the backend passes the address of a SECS that it holds.
        let secs = unsafe { &*(source as *const [u8; 4096]) };
        let size = u64::from_le_bytes(secs[..8].try_into().unwrap());
        if !size.is_power_of_two() {
            return Err(error(libc::EINVAL));
        }
        behind(self.behind.create(secs))?;
        state.size = size;
        state.stage = Stage::Created;
        Ok(0)
    }

    fn add(&self, state: &mut State, argument: &mut uapi::AddPages) -> Answer {
        let range = argument.offset | argument.length | argument.src;
        if !range.is_multiple_of(PAGE)
            || argument.length == 0
            || argument.offset + argument.length > state.size
            || argument.flags & !uapi::PAGE_MEASURE != 0
        {
            return Err(error(libc::EINVAL));
        }
        // SAFETY: the backend passes the address of a SECINFO that it holds.
        let secinfo = unsafe { *(argument.secinfo as *const [u64; 8]) };
        let (flags, kind) = (secinfo[0], secinfo[0] >> 8 & 0xff);
        let permissions = flags & 7;
        let sane = match kind {
            page_type::TCS => permissions == 0,
            page_type::REG => permissions & 3 != 2,
            _ => false,
        };
        if !sane || flags & !0xff07 != 0 || secinfo[1..] != [0; 7] {
            return Err(error(libc::EINVAL));
        }
        let (done, interrupted) = self.portion(argument.length);
        let max = if kind == page_type::TCS {
            3
        } else {
            permissions
        };
        for page in (argument.offset..argument.offset + done).step_by(4096) {
            if state.pages.insert(page, Page { max, kind }).is_some() {
                return Err(error(libc::EBUSY));
            }
        }
        if done > 0 {
            // SAFETY: the backend passes the address of at least `length` bytes that it holds.
            let data =
                unsafe { std::slice::from_raw_parts(argument.src as *const u8, done as usize) };
            let measure = argument.flags & uapi::PAGE_MEASURE != 0;
            behind(self.behind.add_pages(argument.offset, data, flags, measure))?;
        }
        argument.count = done;
        finished(interrupted)
    }

    /// All pages are there and regular.
    fn regular(&self, state: &State, address: u64, len: u64) -> Result<(), Errno> {
        for page in (address..address + len).step_by(4096) {
            match state.pages.get(&page) {
                Some(Page {
                    kind: page_type::REG,
                    ..
                }) => {}
                _ => return Err(error(libc::EFAULT)),
            }
        }
        Ok(())
    }
}

fn finished(interrupted: bool) -> Answer {
    if interrupted {
        Err(error(libc::EINTR))
    } else {
        Ok(0)
    }
}

/// The protection of the mapping at `page`.
fn mapping(state: &State, page: u64) -> u64 {
    state
        .mappings
        .range(..=page)
        .next_back()
        .map_or(0, |(_, protection)| *protection)
}

impl Sys for Double {
    fn open(&self) -> Answer {
        Ok(77)
    }

    fn close(&self, _: i32) {}

    fn ioctl(&self, fd: i32, request: Request<'_>) -> Answer {
        if fd != 77 {
            return Err(error(libc::EBADF));
        }
        if self.busy.swap(true, Ordering::SeqCst) {
            return Err(error(libc::EBUSY));
        }
        let answer = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            self.serve(&mut state, request)
        };
        self.busy.store(false, Ordering::SeqCst);
        answer
    }

    fn reserve(&self, fd: i32, address: u64, len: u64) -> Answer {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if fd != 77 {
            return Err(error(libc::EBADF));
        }
        if address < 0x1_0000 {
            return Err(error(libc::EPERM));
        }
        if address + len > state.size || state.stage == Stage::Opened {
            return Err(error(libc::EACCES));
        }
        state.reserved = true;
        state.mappings.insert(address, 0);
        Ok(address)
    }

    fn protect(&self, address: u64, len: u64, protection: u64) -> Answer {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.reserved || address < 0x1_0000 || address + len > state.size {
            return Err(error(libc::ENOMEM));
        }
        let range = address..address + len;
        let mut present = Vec::new();
        for page in range.clone().step_by(4096) {
            if let Some(entry) = state.pages.get(&page) {
                if protection & !entry.max != 0 {
                    return Err(error(libc::EACCES));
                }
                present.push(page);
            }
        }
        let after = mapping(&state, range.end);
        let inside: Vec<u64> = state
            .mappings
            .range(range.clone())
            .map(|(at, _)| *at)
            .collect();
        for at in inside {
            state.mappings.remove(&at);
        }
        state.mappings.insert(range.start, protection);
        state.mappings.entry(range.end).or_insert(after);
        for run in present.chunk_by(|one, next| next - one == PAGE) {
            behind(
                self.behind
                    .protect(run[0], run.len() as u64 * PAGE, protection),
            )?;
        }
        Ok(0)
    }

    fn touch(&self, address: u64, len: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            state.stage == Stage::Initialised,
            "SIGBUS: no page, not initialised"
        );
        for page in (address..address + len).step_by(4096) {
            let protection = mapping(&state, page);
            assert!(protection & 1 != 0, "SIGSEGV: touched what cannot be read");
            if state.pages.contains_key(&page) {
                continue;
            }
            assert!(self.edmm, "SIGBUS: this machine adds no pages");
            self.behind.commit(page, PAGE, protection).expect("EAUG");
            let kind = page_type::REG;
            state.pages.insert(page, Page { max: 7, kind });
        }
    }

    fn capabilities(&self) -> Capabilities {
        let features = self.behind.features();
        Capabilities {
            sgx1: true,
            sgx2: features.edmm || features.rdtsc,
            miscselect: u32::from(features.exinfo),
            attributes: u32::from(features.kss) << 7 | u32::from(features.aex_notify) << 10,
            xfrm: features.xfrm,
        }
    }

    fn can_enter(&self) -> bool {
        true
    }

    fn prepare_thread(&self) -> Answer {
        behind(self.behind.prepare_thread()).map(|()| 0)
    }

    fn enter(&self, tcs: u64, leaf: EnterLeaf, registers: &mut Registers) -> Outcome {
        self.behind.enter(tcs, leaf, registers)
    }

    unsafe fn kick_in_handler(&self, context: *mut c_void) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.behind.kick_in_handler(context) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Hardware;
    use super::*;
    use crate::fake::Fake;

    const RW: u64 = page_type::REG << 8 | 3;
    const RX: u64 = page_type::REG << 8 | 5;
    const TCS: u64 = page_type::TCS << 8;
    const BASE: u64 = 1 << 30;

    fn machine(edmm: bool) -> Hardware<Double> {
        let fake: &'static Fake = Box::leak(Box::new(Fake::new()));
        Hardware::with(Double::new(Box::new(fake), edmm)).unwrap()
    }

    fn secs(size: u64) -> [u8; 4096] {
        let mut secs = [0; 4096];
        secs[..8].copy_from_slice(&size.to_le_bytes());
        secs
    }

    fn errno(result: Result<(), Error>) -> i32 {
        match result {
            Err(Error::System { errno, .. }) => errno,
            other => panic!("{other:?}"),
        }
    }

    fn built(edmm: bool) -> Hardware<Double> {
        let machine = machine(edmm);
        machine.create(&secs(1 << 40)).unwrap();
        machine
            .add_pages(BASE, &vec![7; 600 << 10], RX, true)
            .unwrap();
        machine
            .add_zero_pages(BASE + (1 << 20), 3 << 20, RW, false)
            .unwrap();
        machine
            .add_pages(BASE + (8 << 20), &[0; 4096], TCS, true)
            .unwrap();
        let mut sigstruct = [0; 1808];
        sigstruct[960] = 42;
        machine.init(&sigstruct).unwrap();
        machine
    }

    #[test]
    fn builds_in_pieces_and_through_interruptions() {
        let machine = built(true);
        assert!(machine.features().edmm);
        assert_eq!(machine.mrenclave()[0], 42);
        let counters: HashMap<_, _> = machine.counters().into_iter().collect();
        assert!(counters["driver requests repeated"] > 2, "{counters:?}");
        let state = machine.sys.state.lock().unwrap();
        assert_eq!(
            state.pages.len() as u64,
            (600 << 10) / PAGE + (3 << 20) / PAGE + 1
        );
        assert_eq!(mapping(&state, BASE), 5);
        assert_eq!(mapping(&state, BASE + (600 << 10)), 0);
        assert_eq!(mapping(&state, BASE + (1 << 20)), 3);
        assert_eq!(mapping(&state, BASE + (8 << 20)), 3);
    }

    #[test]
    fn memory_comes_changes_and_goes() {
        let machine = built(true);
        let heap = BASE + (64 << 20);
        machine.commit(heap, 8 * PAGE, 3).unwrap();
        machine.restrict(heap, 4 * PAGE, 1).unwrap();
        machine.protect(heap, 4 * PAGE, 1).unwrap();
        machine
            .modify_type(heap + 7 * PAGE, PAGE, page_type::TCS)
            .unwrap();
        machine
            .modify_type(heap, 5 * PAGE, page_type::TRIM)
            .unwrap();
        assert_eq!(errno(machine.remove(heap + 5 * PAGE, PAGE)), libc::EPERM);
        machine.remove(heap, 5 * PAGE).unwrap();
        machine.commit(heap, 5 * PAGE, 7).unwrap();
    }

    #[test]
    fn the_drivers_refusals_come_through() {
        let machine = built(true);
        // More access than the pages were added with.
        assert_eq!(errno(machine.protect(BASE, PAGE, 7)), libc::EACCES);
        assert_eq!(errno(machine.commit(BASE, PAGE, 3)), libc::EACCES);
        // Too late, and in the wrong order.
        assert_eq!(
            errno(machine.add_pages(BASE + (9 << 20), &[0; 4096], RW, false)),
            libc::EINVAL
        );
        let fresh = super::tests::machine(true);
        assert_eq!(errno(fresh.init(&[0; 1808])), libc::EINVAL);
        fresh.create(&secs(1 << 36)).unwrap();
        assert!(matches!(
            fresh.create(&secs(1 << 36)),
            Err(Error::Refused(_))
        ));
        // A TCS with permissions, and a page that can be written but not read.
        let tcs = fresh.add_pages(BASE, &[0; 4096], TCS | 3, true);
        assert_eq!(errno(tcs), libc::EINVAL);
        let write_only = fresh.add_pages(BASE, &[0; 4096], RW & !1, true);
        assert_eq!(errno(write_only), libc::EINVAL);
        // The same page twice. The driver says EBUSY, which we take for a passing state at first.
        fresh.add_pages(BASE, &[0; 4096], RW, true).unwrap();
        assert_eq!(
            errno(fresh.add_pages(BASE, &[0; 4096], RW, true)),
            libc::EBUSY
        );
    }

    #[test]
    fn without_edmm_nothing_changes_at_run_time() {
        let machine = built(false);
        assert!(!machine.features().edmm);
        for result in [
            machine.restrict(BASE, PAGE, 1),
            machine.modify_type(BASE, PAGE, page_type::TRIM),
            machine.remove(BASE, PAGE),
        ] {
            assert!(matches!(result, Err(Error::Refused(_))));
        }
        machine.protect(BASE, PAGE, 1).unwrap();
        // Making pages accessible that are there already is no more than that.
        machine.protect(BASE + (1 << 20), PAGE, 0).unwrap();
        machine.commit(BASE + (1 << 20), PAGE, 3).unwrap();
    }

    #[test]
    fn no_device_is_explained() {
        let explained = super::super::no_device(Errno(libc::ENOENT), Capabilities::default());
        assert!(
            explained.to_string().contains("emulated platform"),
            "{explained}"
        );
        if let Err(error) = Hardware::open() {
            assert!(error.to_string().contains("/dev/sgx_enclave"), "{error}");
        }
    }
}
