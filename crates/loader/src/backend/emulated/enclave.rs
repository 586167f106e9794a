//! One emulated enclave: what the CPU keeps in SECS and EPCM, and the host's page operations.
//!
//! Lock order: `build`, then `tcs`, then the EPCM's lock, then `from_file`.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use super::entry;
use super::epcm::{
    Entry, Epcm, MODIFIED, PAGE, PENDING, PR, TYPE_MASK, TYPE_REG, TYPE_TCS, TYPE_TRIM, VALID,
};
use super::keys::Fuses;
use super::profile::Profile;
use super::sys::{self, XsaveLayout};
use super::thread::{Fault, TcsState, Thread};
use crate::backend::{Error, Protection, page_type};
use bulla_abi::layout::{HEAP_OFFSET, HOLE_OFFSET, LayoutKind, RUNTIME_SPAN, SMALL_HEAP};
use bulla_sgx::{Measurement, SecInfo, Secs, Tcs, misc};

/// What EINIT found out.
#[derive(Clone, Debug)]
pub struct Identity {
    pub mrenclave: [u8; 32],
    pub mrsigner: [u8; 32],
    pub isv_prod_id: u16,
    pub isv_svn: u16,
    pub isv_family_id: [u8; 16],
    pub isv_ext_prod_id: [u8; 16],
}

/// Bytes of a large zeroed run, read and write, that have memory when it is added.
const HEAP_READY: u64 = 1 << 20;

/// From this many bytes on the memory for copied pages comes at once, and constants of this program
/// are not copied.
const POPULATED: u64 = 8 * PAGE;

/// Numbers enclaves from 1, so that what a thread remembers of one is never used for another.
static NUMBER: AtomicU64 = AtomicU64::new(1);

pub struct Enclave {
    number: u64,
    pub base: u64,
    pub size: u64,
    pub secs: Secs,
    pub profile: Profile,
    pub xsave: XsaveLayout,
    /// KEYID of the reports made here, new for each enclave.
    pub report_key_id: [u8; 32],
    pub epcm: Epcm,
    pub fuses: Fuses,
    /// The measurement until EINIT.
    pub build: Mutex<Option<Measurement>>,
    pub identity: OnceLock<Identity>,
    initialised: AtomicBool,
    tcs: RwLock<HashMap<u64, Box<TcsState>>>,
    /// States of removed TCSs: threads may still hold their addresses, so they stay boxed.
    #[allow(clippy::vec_box)]
    retired: Mutex<Vec<Box<TcsState>>>,
    /// Pages that show the file of this program, and nothing else once they are removed.
    from_file: Mutex<Vec<Range<u64>>>,
    /// The emulator's page in the enclave's hole, 0 if the layout has none.
    hole: u64,
    pub sites: Mutex<Vec<u64>>,
    pub patched: AtomicU64,
    /// Pages of EAUG, and those of them that are the runtime's.
    pub augmented: AtomicU64,
    pub augmented_runtime: AtomicU64,
}

impl Drop for Enclave {
    fn drop(&mut self) {
        let tcs = self.tcs.get_mut().unwrap_or_else(PoisonError::into_inner);
        for state in tcs.values() {
            state.unregister();
        }
        let start = self.base.max(entry::FIRST_ADDRESS);
        sys::unmap(start, self.base + self.size - start);
    }
}

fn refused(reason: impl Into<String>) -> Error {
    Error::Refused(reason.into())
}

impl Enclave {
    /// Reserves ELRANGE for a SECS that ECREATE accepted.
    pub fn new(
        secs: Secs,
        profile: Profile,
        fuses: Fuses,
        xsave: XsaveLayout,
    ) -> Result<Box<Enclave>, Error> {
        let (base, size) = (secs.base_addr, secs.size);
        let start = base.max(entry::FIRST_ADDRESS);
        let epcm = Epcm::new(base, size, profile.strict)?;
        sys::reserve(start, base + size - start)?;
        let measurement = Measurement::ecreate(secs.ssa_frame_size, size);
        let mut enclave = Box::new(Enclave {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            base,
            size,
            secs,
            profile,
            xsave,
            report_key_id: super::keys::random(),
            epcm,
            fuses,
            build: Mutex::new(Some(measurement)),
            identity: OnceLock::new(),
            initialised: AtomicBool::new(false),
            tcs: RwLock::new(HashMap::new()),
            retired: Mutex::new(Vec::new()),
            from_file: Mutex::new(Vec::new()),
            hole: 0,
            sites: Mutex::new(Vec::new()),
            patched: AtomicU64::new(0),
            augmented: AtomicU64::new(0),
            augmented_runtime: AtomicU64::new(0),
        });
        for kind in [LayoutKind::Dynamic, LayoutKind::Static] {
            if kind.elrange_size() == size {
                let runtime = base + kind.runtime_start();
                sys::small_pages(runtime + HEAP_OFFSET, SMALL_HEAP);
                enclave.hole = runtime + HOLE_OFFSET;
                enclave.fill_hole()?;
            }
        }
        Ok(enclave)
    }

    /// The hole's page: pointers to the gates, the one for calls first.
    fn fill_hole(&self) -> Result<(), Error> {
        sys::map_fixed(self.hole, PAGE)?;
        let gates = std::iter::once(entry::address(&entry::bulla_emu_gate))
            .chain((0..entry::EXIT_GATES).map(entry::exit_gate));
        for (index, gate) in gates.enumerate() {
            // SAFETY: the page was just mapped writable and is ours.
            unsafe { (self.hole as *mut u64).add(index).write(gate) };
        }
        sys::protect(self.hole, PAGE, 1)
    }

    /// Address of the pointer to the gate for calls, or to exit gate `index`; `None` if the
    /// enclave has no hole.
    pub fn gate_pointer(&self, exit: Option<usize>) -> Option<u64> {
        let index = exit.map_or(0, |index| index as u64 + 1);
        (self.hole != 0).then_some(self.hole + 8 * index)
    }

    pub fn exinfo(&self) -> bool {
        self.secs.misc_select & misc::EXINFO != 0
    }

    pub fn initialised(&self) -> bool {
        self.initialised.load(Ordering::Acquire)
    }

    pub fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.base) < self.size
    }

    /// Marks the enclave as usable; the TCSs become known to the gates.
    pub fn set_initialised(&self) {
        self.initialised.store(true, Ordering::Release);
    }

    fn check_range(&self, address: u64, len: u64) -> Result<(), Error> {
        let hole = || self.hole != 0 && address < self.hole + PAGE && self.hole < address + len;
        let low = address < entry::FIRST_ADDRESS;
        if !self.epcm.contains(address, len) || low || hole() {
            return Err(refused(format!(
                "pages {address:#x}+{len:#x} are not whole pages of the enclave's range"
            )));
        }
        Ok(())
    }

    // -- EADD and EEXTEND ------------------------------------------------------------------

    /// EADD of pages; `data` is `None` for zeros.
    pub fn add(
        &self,
        address: u64,
        len: u64,
        data: Option<&[u8]>,
        flags: u64,
        measure: bool,
    ) -> Result<(), Error> {
        let mut build = self.build.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(measurement) = build.as_mut() else {
            return Err(refused(
                "EADD after EINIT; with EDMM pages are committed instead",
            ));
        };
        self.check_range(address, len)?;
        let info = check_secinfo(flags)?;
        let end = address + len;
        if self.epcm.find(address, end, |entry| entry.is(VALID)) != end {
            return Err(refused(format!(
                "EADD of {address:#x}+{len:#x} overlaps pages that are there already"
            )));
        }
        if info.is_tcs() {
            for at in (0..len).step_by(PAGE as usize) {
                let zeros = [0; PAGE as usize];
                let page = data.map_or(&zeros[..], |data| &data[at as usize..][..PAGE as usize]);
                self.add_tcs(address + at, page)?;
            }
        } else {
            let _guard = self.epcm.lock();
            let entry = Entry::new(VALID | TYPE_REG, info.permissions(), info.permissions());
            if let Some(data) = data
                && !self.map_from_program(address, data)?
            {
                sys::protect(address, len, 3)?;
                if len >= POPULATED {
                    sys::populate(address, len)?;
                }
                // SAFETY: the range was reserved for the enclave and is writable now.
                unsafe { ptr::copy_nonoverlapping(data.as_ptr(), address as *mut u8, data.len()) };
            }
            let protection = self.epcm.fill(address, len, entry)?;
            if protection == 0 && data.is_some() {
                sys::protect(address, len, 0)?;
            }
            // The beginning of a heap, which is used before anything else runs: one call for all its
            // pages takes half as long as a page fault for each.
            if data.is_none() && len >= HEAP_READY && protection == 3 {
                sys::populate(address, HEAP_READY)?;
            }
        }
        let offset = address - self.base;
        match (measure, data) {
            (false, _) => measurement.eadd_run(offset, info, len / PAGE),
            (true, data) => {
                let zeros = [0; PAGE as usize];
                for at in (0..len).step_by(PAGE as usize) {
                    let page = match data {
                        Some(data) => data[at as usize..].first_chunk().unwrap_or(&zeros),
                        None => &zeros,
                    };
                    measurement.page(offset + at, info, page);
                }
            }
        }
        Ok(())
    }

    /// The content of pages without a copy, if they are constants of this program: the runtime's code
    /// is, and copying it would take as long as all else before the enclave's first instruction. A
    /// page that is written (where the emulator rewrites an ENCLU) becomes one of its own. The
    /// caller holds the EPCM's lock.
    fn map_from_program(&self, address: u64, data: &[u8]) -> Result<bool, Error> {
        let len = data.len() as u64;
        if len < POPULATED {
            return Ok(false);
        }
        let Some(offset) = sys::place_in_program(data) else {
            return Ok(false);
        };
        // Without /proc they are copied.
        let Ok(program) = File::open("/proc/self/exe") else {
            return Ok(false);
        };
        sys::map_file(address, len, program.as_fd(), offset)?;
        let mut mapped = self
            .from_file
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        mapped.push(address..address + len);
        Ok(true)
    }

    /// Gives the memory of pages back. The caller holds the EPCM's lock.
    fn discard(&self, address: u64, len: u64) -> Result<(), Error> {
        let mapped = self
            .from_file
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for range in mapped.iter() {
            let part = range.start.max(address)..range.end.min(address + len);
            if part.start < part.end {
                sys::unmap_file(part.start, part.end - part.start)?;
            }
        }
        sys::discard(address, len)
    }

    fn add_tcs(&self, address: u64, page: &[u8]) -> Result<(), Error> {
        let page: &[u8; PAGE as usize] = page
            .first_chunk()
            .ok_or_else(|| refused("a TCS page is shorter than a page"))?;
        let tcs = Tcs::from_bytes(page)
            .ok_or_else(|| refused(format!("EADD of the TCS at {address:#x}: reserved field")))?;
        let state = self
            .tcs_state(address, &tcs)
            .map_err(|reason| refused(format!("EADD of the TCS at {address:#x}: {reason}")))?;
        // EADD clears what is the CPU's or the debugger's.
        state.cssa.store(0, Ordering::Relaxed);
        state.valid.store(true, Ordering::Release);
        let _guard = self.epcm.lock();
        self.epcm
            .fill(address, PAGE, Entry::new(VALID | TYPE_TCS, 0, 3))?;
        self.put_tcs(state);
        Ok(())
    }

    /// The checks of a TCS's content that EADD and EACCEPT share.
    fn tcs_state(&self, address: u64, tcs: &Tcs) -> Result<Box<TcsState>, &'static str> {
        const DBGOPTIN: u64 = 1;
        const AEXNOTIFY: u64 = 2;
        if tcs.flags & !(DBGOPTIN | AEXNOTIFY) != 0 {
            return Err("reserved flags are set");
        }
        if tcs.flags & AEXNOTIFY != 0
            && self.secs.attributes.flags & bulla_sgx::flags::AEX_NOTIFY == 0
        {
            return Err("AEXNOTIFY is set, but not in the enclave's attributes");
        }
        if tcs.ossa & (PAGE - 1) != 0 {
            return Err("OSSA is not page aligned");
        }
        if (tcs.ofs_base | tcs.ogs_base) & (PAGE - 1) != 0 {
            return Err("OFSBASGX or OGSBASGX is not page aligned");
        }
        let absolute = |offset: u64| self.base.wrapping_add(offset);
        let frame_size = u64::from(self.secs.ssa_frame_size) * PAGE;
        // SAFETY: zero is a valid value in every field.
        let mut state: Box<TcsState> = Box::new(unsafe { std::mem::zeroed() });
        state.address = address;
        state.entry = absolute(tcs.oentry);
        state.fs = absolute(tcs.ofs_base);
        state.gs = absolute(tcs.ogs_base);
        state.ssa = absolute(tcs.ossa);
        state.nssa = tcs.nssa;
        state.cssa.store(tcs.cssa, Ordering::Relaxed);
        state.debug_opt_in = tcs.flags & DBGOPTIN != 0;
        state.aex_notify = tcs.flags & AEXNOTIFY != 0;
        state.frame_size = frame_size;
        state.enclave = self;
        if [state.entry, state.fs, state.gs, state.ssa]
            .iter()
            .any(|at| at >> 47 != 0)
        {
            return Err("an offset is too large");
        }
        Ok(state)
    }

    fn put_tcs(&self, state: Box<TcsState>) {
        if state.valid.load(Ordering::Acquire) {
            state.register();
        }
        let mut all = self.tcs.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = all.insert(state.address, state) {
            self.retire(old);
        }
    }

    fn retire(&self, state: Box<TcsState>) {
        state.valid.store(false, Ordering::Release);
        state.unregister();
        self.retired
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(state);
    }

    /// Calls `visit` with every TCS, removed ones too (for counters).
    pub fn for_each_tcs(&self, mut visit: impl FnMut(&TcsState)) {
        let all = self.tcs.read().unwrap_or_else(PoisonError::into_inner);
        all.values().for_each(|state| visit(state));
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.iter().for_each(|state| visit(state));
    }

    /// The TCS at `address`, as EENTER finds it.
    #[inline]
    pub fn find_tcs(&self, thread: &mut Thread, address: u64) -> Result<&TcsState, Fault> {
        if thread.cached_enclave == self.number {
            // SAFETY: a TCS state lives as long as its enclave.
            let cached = unsafe { &*thread.cached };
            if cached.address == address && cached.valid.load(Ordering::Relaxed) {
                return Ok(cached);
            }
        }
        self.look_up_tcs(thread, address)
    }

    #[cold]
    fn look_up_tcs(&self, thread: &mut Thread, address: u64) -> Result<&TcsState, Fault> {
        if address & (PAGE - 1) != 0 {
            return Err(Fault::GP);
        }
        let entry = self.epcm.get(address);
        if !entry.is(VALID) {
            return Err(Fault::absent(address));
        }
        if entry.0 & (TYPE_MASK | PENDING | MODIFIED) != TYPE_TCS {
            return Err(Fault::page(address, false));
        }
        if !self.initialised() {
            return Err(Fault::GP);
        }
        let all = self.tcs.read().unwrap_or_else(PoisonError::into_inner);
        let state = all.get(&address).ok_or(Fault::page(address, false))?;
        let state: *const TcsState = &**state;
        thread.cached = state;
        thread.cached_enclave = self.number;
        // SAFETY: states are boxed and never freed before the enclave.
        Ok(unsafe { &*state })
    }

    /// EACCEPT of a page that EMODT made a TCS: `Err` where the SDM raises #GP.
    pub fn accept_tcs(&self, address: u64) -> Result<(), Fault> {
        let all = self.tcs.read().unwrap_or_else(PoisonError::into_inner);
        let state = all.get(&address).ok_or(Fault::GP)?;
        if state.debug_opt_in || state.cssa.load(Ordering::Relaxed) >= state.nssa {
            return Err(Fault::GP);
        }
        state.valid.store(true, Ordering::Release);
        state.register();
        Ok(())
    }

    // -- the driver's operations -----------------------------------------------------------

    fn check_edmm(&self, address: u64, len: u64) -> Result<(), Error> {
        if !self.profile.features.edmm {
            return Err(refused(
                "this platform has no EDMM: the enclave needs the static layout",
            ));
        }
        if !self.initialised() {
            return Err(refused("pages can only be changed after EINIT"));
        }
        self.check_range(address, len)
    }

    /// EAUG of the pages that are not there; page tables of all to `protection`.
    pub fn commit(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error> {
        self.check_edmm(address, len)?;
        let end = address + len;
        let mut page = address;
        while page < end {
            let guard = self.epcm.lock();
            let fresh = self.epcm.find(page, end, |entry| entry.is(VALID));
            if fresh > page {
                let entry = Entry::new(VALID | PENDING | TYPE_REG, 3, protection);
                self.epcm.fill(page, fresh - page, entry)?;
                let writable = self.epcm.get(page).host() & 2 != 0;
                let pages = (fresh - page) / PAGE;
                self.augmented.fetch_add(pages, Ordering::Relaxed);
                // The runtime has the top of ELRANGE.
                if page - self.secs.base_addr >= self.secs.size.saturating_sub(RUNTIME_SPAN) {
                    self.augmented_runtime.fetch_add(pages, Ordering::Relaxed);
                }
                // Without the lock, since it takes long.
                drop(guard);
                if writable {
                    sys::populate(page, fresh - page)?;
                }
                page = fresh;
            } else {
                page = self.epcm.find(fresh, end, |entry| !entry.is(VALID));
                self.set_tables(fresh, page, protection)?;
            }
        }
        Ok(())
    }

    fn set_tables(&self, start: u64, end: u64, protection: Protection) -> Result<(), Error> {
        for page in (start..end).step_by(PAGE as usize) {
            self.epcm.replace(page, |entry| {
                entry.is(VALID).then(|| entry.with_table(protection))
            });
        }
        self.epcm.sync(start, end - start)
    }

    pub fn protect(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error> {
        self.check_range(address, len)?;
        let _guard = self.epcm.lock();
        self.set_tables(address, address + len, protection)
    }

    /// EMODPR of each page, and the TLB shootdown that goes with it.
    pub fn restrict(&self, address: u64, len: u64, protection: Protection) -> Result<(), Error> {
        self.check_edmm(address, len)?;
        if protection & !7 != 0 || protection & 3 == 2 {
            return Err(refused(
                "EMODPR: not a combination of permissions that pages can have",
            ));
        }
        let _guard = self.epcm.lock();
        let end = address + len;
        let odd = self.epcm.find(address, end, |entry| {
            entry.0 & (VALID | PENDING | MODIFIED | TYPE_MASK) != VALID | TYPE_REG
        });
        if odd != end {
            return Err(not_modifiable("EMODPR", odd));
        }
        for page in (address..end).step_by(PAGE as usize) {
            self.epcm.replace(page, |entry| {
                let permissions = entry.permissions() & protection;
                Some(Entry(entry.0 | PR).with_permissions(permissions))
            });
        }
        self.epcm.sync(address, len)
    }

    /// EMODT of each page.
    pub fn modify_type(&self, address: u64, len: u64, new: u64) -> Result<(), Error> {
        self.check_edmm(address, len)?;
        let (new, old) = match new {
            page_type::TCS => (TYPE_TCS, [TYPE_REG, TYPE_REG]),
            page_type::TRIM => (TYPE_TRIM, [TYPE_REG, TYPE_TCS]),
            _ => return Err(refused("EMODT: pages can only become TCS or TRIM")),
        };
        let end = address + len;
        let mut states = Vec::new();
        {
            let _guard = self.epcm.lock();
            let odd = self.epcm.find(address, end, |entry| {
                !entry.is(VALID)
                    || entry.0 & (PENDING | MODIFIED) != 0
                    || !old.contains(&entry.page_type())
            });
            if odd != end {
                return Err(not_modifiable("EMODT", odd));
            }
            if new == TYPE_TCS {
                for page in (address..end).step_by(PAGE as usize) {
                    states.push(self.read_tcs(page)?);
                }
            }
            self.check_idle(address, end)?;
            for page in (address..end).step_by(PAGE as usize) {
                self.epcm.replace(page, |entry| {
                    Some(Entry(entry.0 & !(TYPE_MASK | PR) | new | MODIFIED).with_permissions(0))
                });
            }
            self.epcm.sync(address, len)?;
        }
        states
            .into_iter()
            .flatten()
            .for_each(|state| self.put_tcs(state));
        Ok(())
    }

    /// The TCS that a page would be; `None` if EACCEPT will refuse it.
    fn read_tcs(&self, address: u64) -> Result<Option<Box<TcsState>>, Error> {
        let entry = self.epcm.get(address);
        if entry.host() & 1 == 0 {
            sys::protect(address, PAGE, entry.host() | 1)?;
        }
        // SAFETY: the page is there and readable; other threads of the enclave may write to it,
        // which can only make the copy wrong.
        let page = unsafe { ptr::read_volatile(address as *const [u8; PAGE as usize]) };
        if entry.host() & 1 == 0 {
            sys::protect(address, PAGE, entry.host())?;
        }
        Ok(Tcs::from_bytes(&page).and_then(|tcs| self.tcs_state(address, &tcs).ok()))
    }

    /// No TCS in the range may be in use. Marks them as not valid.
    fn check_idle(&self, address: u64, end: u64) -> Result<(), Error> {
        let is_tcs = |entry: Entry| entry.is(VALID) && entry.page_type() == TYPE_TCS;
        if self.epcm.find(address, end, is_tcs) == end {
            return Ok(());
        }
        let all = self.tcs.read().unwrap_or_else(PoisonError::into_inner);
        for state in all
            .values()
            .filter(|state| (address..end).contains(&state.address))
        {
            if state.busy.swap(1, Ordering::Acquire) != 0 {
                return Err(refused(format!(
                    "the TCS at {:#x} is in use",
                    state.address
                )));
            }
            state.valid.store(false, Ordering::Release);
            state.unregister();
            state.busy.store(0, Ordering::Release);
        }
        Ok(())
    }

    /// EREMOVE of trimmed and accepted pages.
    pub fn remove(&self, address: u64, len: u64) -> Result<(), Error> {
        self.check_edmm(address, len)?;
        let end = address + len;
        {
            let _guard = self.epcm.lock();
            let odd = self.epcm.find(address, end, |entry| {
                entry.0 & (VALID | MODIFIED | TYPE_MASK) != VALID | TYPE_TRIM
            });
            if odd != end {
                return Err(refused(format!(
                    "the page at {odd:#x} is not trimmed and accepted, so it cannot be removed"
                )));
            }
            self.epcm.clear(address, len);
            self.discard(address, len)?;
        }
        let mut all = self.tcs.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<u64> = all
            .keys()
            .copied()
            .filter(|at| (address..end).contains(at))
            .collect();
        for at in gone {
            if let Some(state) = all.remove(&at) {
                self.retire(state);
            }
        }
        Ok(())
    }
}

fn not_modifiable(leaf: &'static str, address: u64) -> Error {
    Error::Sgx {
        leaf,
        code: bulla_sgx::ErrorCode::PageNotModifiable as u64,
        reason: format!("the page at {address:#x} is not there, not accepted or of another type"),
    }
}

fn check_secinfo(flags: u64) -> Result<SecInfo, Error> {
    let info = SecInfo(flags);
    let permissions = info.permissions();
    let known = flags & !(7 | 0xff00) == 0;
    let valid = match u64::from(info.page_type()) {
        // The CPU would clear a TCS's permissions silently; the driver refuses them.
        page_type::TCS => permissions == 0,
        page_type::REG => permissions & 3 != 2,
        _ => false,
    };
    if known && valid {
        Ok(info)
    } else {
        Err(refused(format!(
            "EADD: SECINFO.FLAGS {flags:#x} is not a page that can be added"
        )))
    }
}
