//! Sites in program text, rewritten so that they do not trap: system calls, CPUID, and RDTSC where
//! an enclave may not execute it.
//!
//! Sites belong to files. They are known from a measured list ([`measured`]) or learned from first
//! traps ([`trapped`]), and kept by file and offset. Text is rewritten when it is brought
//! in ([`prepare`]), before it can execute; a page that is in use is rewritten at the trap, by one
//! aligned store or with all threads of the process held outside user code.
//!
//! - [`forms`]: how a site can be rewritten. [`table`]: the trampolines. [`measured`]: the lists.
//!
//! A program never sees an address in a trampoline: [`canonical`], [`resume_address`].
//!
//! Lock order: inside a space's state; the table outside the allocator.

pub mod forms;
pub mod measured;
pub mod table;

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bulla_abi::sites::{Form, Kind, SiteList};

use super::vma::FileBacking;
use super::{Backing, PAGE, Space, Vma, VmaFlags, allocator, residency};
use crate::fs::inode::{FileId, Inode};
use crate::platform::{Protection, platform};
use crate::sync::{RwSpinLock, SpinLock};
use crate::{Result, Thread};
use forms::AROUND;
use table::{Patch, Site, Table};

/// What is known of a file.
#[derive(Default)]
struct Known {
    /// Its sites, by offset.
    sites: BTreeMap<u64, (Kind, Form)>,
    /// They are from a measured list, which holds only as long as nobody writes to the file.
    measured: bool,
    /// Parts of the file (offsets) that have been searched for branches.
    searched: Vec<Range<u64>>,
    /// For what may be sites in those parts: bit n is set when something may branch to the n-th
    /// byte after the instruction.
    entered: BTreeMap<u64, u32>,
}

static FILES: SpinLock<BTreeMap<FileId, Known>> = SpinLock::new(BTreeMap::new());
static TABLE: RwSpinLock<Table> = RwSpinLock::new(Table::new());
/// Whether the table has anything, so that most look-ups cost one load.
static PATCHED: AtomicBool = AtomicBool::new(false);

/// Whether sites are rewritten at all.
static IS_ON: AtomicBool = AtomicBool::new(true);
/// Sites that were rewritten, each time that it was, and calls that trapped.
static REWRITTEN: AtomicU64 = AtomicU64::new(0);
static TRAPPED: AtomicU64 = AtomicU64::new(0);

/// Leaves all sites as they are, from now on: each call traps.
pub fn keep() {
    IS_ON.store(false, Ordering::Relaxed);
}

/// Sites that were rewritten, and calls that trapped.
pub fn counts() -> (u64, u64) {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    (load(&REWRITTEN), load(&TRAPPED))
}

/// Most sites learned per file: a bound on kernel memory.
const LEARNED_MAX: usize = 4096;

/// Takes a file's measured list in when it is first needed, and drops it once the file is written.
fn refresh(inode: &dyn Inode) {
    let id = inode.id();
    let measured = FILES.lock().get(&id).map(|known| known.measured);
    match measured {
        None => {
            if let Some(list) = measured::list_of(inode) {
                FILES.lock().entry(id).or_insert_with(|| known(&list));
            }
        }
        Some(true) if !inode.is_immutable() => {
            FILES.lock().remove(&id);
        }
        Some(_) => {}
    }
}

/// Whether sites of a kind are rewritten: not where the instruction executes, for then it is also
/// met in code that nobody lists, and both have to count alike.
fn is_rewritten(kind: Kind) -> bool {
    match kind {
        Kind::Syscall | Kind::Cpuid => true,
        Kind::Rdtsc | Kind::Rdtscp => platform().clock_page().is_none(),
    }
}

/// A measured list, as it is used.
fn known(list: &SiteList) -> Known {
    let sites = list.sites.iter().filter(|site| is_rewritten(site.kind));
    Known {
        sites: sites
            .map(|site| (site.offset, (site.kind, site.form)))
            .collect(),
        measured: true,
        ..Known::default()
    }
}

/// The address the unmodified program would be at: `rip`, or for an address in a trampoline the
/// one it stands for.
pub fn canonical(rip: u64) -> u64 {
    if !PATCHED.load(Ordering::Acquire) {
        return rip;
    }
    TABLE.read().canonical(rip)
}

/// Where to continue for a canonical address: itself, or its copy in a trampoline when the bytes
/// there were rewritten. The space that is about to run is resident.
pub fn resume_address(rip: u64) -> u64 {
    if !PATCHED.load(Ordering::Acquire) {
        return rip;
    }
    let Some((resume, patch)) = TABLE.read().resume_address(rip) else {
        return rip;
    };
    // This process may have got its instructions back (see [`super::debug`]).
    let mut there = vec![0; patch.original.len()];
    let read = platform().copy_from_user(patch.range().start, &mut there);
    match read.is_ok() && there != patch.replacement() {
        true => rip,
        false => resume,
    }
}

/// Rewrites the known sites in text that was just brought in: its pages are readable and writable
/// and nobody executes them yet. Whether there were any.
pub(super) fn prepare(vma: &Vma, file: &FileBacking, range: Range<u64>) -> Result<bool> {
    let is_text = vma.protection.contains(Protection::EXECUTE) && vma.is_clean();
    if !is_text || !IS_ON.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let first = file.offset + (range.start - vma.start);
    let offsets = first..first + (range.end - range.start);
    refresh(&*file.inode);
    let known: Vec<Site> = match FILES.lock().get(&file.inode.id()) {
        Some(known) => known
            .sites
            .range(offsets)
            .filter(|(_, (_, form))| *form != Form::Trap)
            .map(|(&offset, &(kind, form))| Site {
                address: range.start + (offset - first),
                kind,
                form,
            })
            .collect(),
        None => return Ok(false),
    };
    let wanted: Vec<_> = known
        .into_iter()
        .filter_map(|site| Some((site, original(&site, &range)?)))
        .collect();
    if wanted.is_empty() {
        return Ok(false);
    }
    // Without trampolines the sites trap, which works as well.
    let Ok(patches) = TABLE.write().add(wanted) else {
        return Ok(false);
    };
    PATCHED.store(true, Ordering::Release);
    for patch in &patches {
        let _ = platform().copy_to_user(patch.range().start, &patch.replacement());
    }
    REWRITTEN.fetch_add(patches.len() as u64, Ordering::Relaxed);
    Ok(!patches.is_empty())
}

/// The bytes that a form would replace, if they are within `range` and what the form is for.
fn original(site: &Site, range: &Range<u64>) -> Option<Vec<u8>> {
    let bytes = site.range();
    if bytes.start < range.start || bytes.end.max(site.next()) > range.end {
        return None;
    }
    let (before, at, after) = surroundings(site.address, site.kind, range)?;
    if !forms::matches(site.kind, site.form, &before, &at, &after) {
        return None;
    }
    let mut original = vec![0; (bytes.end - bytes.start) as usize];
    platform().copy_from_user(bytes.start, &mut original).ok()?;
    Some(original)
}

/// The bytes before a site, its own and those after it, as far as they lie within `range` and can
/// be read.
fn surroundings(site: u64, kind: Kind, range: &Range<u64>) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let read = |range: Range<u64>| {
        let mut bytes = vec![0; (range.end.saturating_sub(range.start)) as usize];
        platform()
            .copy_from_user(range.start, &mut bytes)
            .ok()
            .map(|()| bytes)
    };
    let around = AROUND as u64;
    let next = site + kind.size();
    let before = site.saturating_sub(around).max(range.start)..site;
    let after = next..(next + around).min(range.end);
    let at = read(site..next)?;
    let page = site & !(PAGE - 1);
    // A neighbouring page may not be there.
    let before = read(before.clone()).or_else(|| read(before.start.max(page)..before.end))?;
    let after = read(after.clone()).or_else(|| read(after.start..after.end.min(page + PAGE)))?;
    Some((before, at, after))
}

/// A mapping with rewritten sites is gone. Their trampolines go when nobody has the addresses any
/// more; after a fork another process may.
pub(super) fn dropped(range: &Range<u64>) {
    let mut table = TABLE.write();
    for patch in table.overlapping(range) {
        if allocator::is_free(&patch.range()) {
            table.remove(&patch.range());
        }
    }
    PATCHED.store(table.has_moved(), Ordering::Release);
}

/// The patches whose bytes touch a range.
pub(super) fn patches(range: &Range<u64>) -> Vec<Patch> {
    match PATCHED.load(Ordering::Acquire) {
        true => TABLE.read().overlapping(range),
        false => Vec::new(),
    }
}

/// Puts the original bytes back: the mapping becomes writable, or moves. `live` says which pages
/// are there.
pub(super) fn undo(vma: &Vma, live: &super::pages::PageSet) {
    let patches = TABLE.read().overlapping(&vma.range());
    for patch in patches {
        let range = patch.range();
        let pages = super::page_down(range.start)..range.end.next_multiple_of(PAGE);
        let mut at = range.start;
        // Byte ranges may cross a page that is not there.
        for page in pages.step_by(PAGE as usize) {
            let end = range.end.min(page + PAGE);
            let part = (at - range.start) as usize..(end - range.start) as usize;
            if live.contains(page) && vma.range().contains(&page) {
                super::swap::write_live(at, &patch.original[part], vma.page_protection());
            }
            at = end;
        }
    }
}

/// What a trampoline's instruction is and where the program goes on.
pub struct Trampoline {
    pub kind: Kind,
    /// The program's address of the instruction after it.
    pub next: u64,
    pub resume: u64,
}

/// The instruction that the trampoline at an address stands for.
pub fn of_trampoline(address: u64) -> Option<Trampoline> {
    let table = TABLE.read();
    let patch = table.of_trampoline(address)?;
    Some(Trampoline {
        kind: patch.site.kind,
        next: patch.site.next(),
        resume: patch.resume(),
    })
}

/// The instruction at `site` trapped, with `number` in rax: learns it, and rewrites it where it is.
pub fn trapped(thread: &Arc<Thread>, site: u64, kind: Kind, number: u64) {
    if kind == Kind::Syscall {
        TRAPPED.fetch_add(1, Ordering::Relaxed);
    }
    if !IS_ON.load(Ordering::Relaxed) || !is_rewritten(kind) {
        return;
    }
    let mm = thread.mm();
    let Some((vma, file)) = mm.text_at(site, kind) else {
        return;
    };
    let offset = file.offset + (site - vma.start);
    let id = file.inode.id();
    refresh(&*file.inode);
    let known = FILES
        .lock()
        .get(&id)
        .and_then(|known| known.sites.get(&offset).copied());
    let form = match known {
        Some((listed, form)) if listed == kind => form,
        Some(_) => return,
        None => {
            let form = judge(&vma, &file, site, kind, number);
            let mut files = FILES.lock();
            let known = &mut files.entry(id).or_default().sites;
            if known.len() < LEARNED_MAX {
                known.insert(offset, (kind, form));
            }
            form
        }
    };
    if form != Form::Trap {
        let address = site;
        mm.patch(
            thread,
            Site {
                address,
                kind,
                form,
            },
        );
    }
}

/// Chooses a form, and checks that nothing branches into what it moves.
fn judge(vma: &Vma, file: &FileBacking, site: u64, kind: Kind, number: u64) -> Form {
    let Some((before, at, after)) = surroundings(site, kind, &vma.range()) else {
        return Form::Trap;
    };
    if at != forms::encoding(kind) {
        return Form::Trap;
    }
    let form = forms::choose(kind, &before, &after, number);
    match form {
        Form::After { len } if is_entered(vma, file, site, forms::starts(&after, len)) => {
            Form::Trap
        }
        form => form,
    }
}

/// Texts up to this size are searched as a whole; of larger ones only the neighbourhood of a site:
/// whoever lays out so much keeps functions together.
const SEARCH_MAX: u64 = 8 << 20;
const NEIGHBOURHOOD: u64 = 1 << 20;

/// Whether anything in the text mapped around may branch to one of the bytes after a site that
/// `starts` names.
fn is_entered(vma: &Vma, file: &FileBacking, site: u64, starts: u32) -> bool {
    let id = file.inode.id();
    let offset = file.offset + (site - vma.start);
    let part = if vma.len() <= SEARCH_MAX {
        file.offset..file.offset + vma.len()
    } else {
        let first = offset.saturating_sub(NEIGHBOURHOOD).max(file.offset);
        first..(offset + NEIGHBOURHOOD).min(file.offset + vma.len())
    };
    let is_searched = |known: &Known| {
        known
            .searched
            .iter()
            .any(|done| done.start <= part.start && part.end <= done.end)
    };
    if !FILES.lock().get(&id).is_some_and(is_searched) {
        let Some(entered) = search(file, &part) else {
            return true;
        };
        let mut files = FILES.lock();
        let known = files.entry(id).or_default();
        for (site, bits) in entered {
            *known.entered.entry(site).or_default() |= bits;
        }
        known.searched.push(part);
    }
    let files = FILES.lock();
    files
        .get(&id)
        .and_then(|known| known.entered.get(&offset))
        .is_some_and(|bits| bits & starts != 0)
}

/// Finds what may branch to just after a site: see [`Known::entered`].
fn search(file: &FileBacking, part: &Range<u64>) -> Option<BTreeMap<u64, u32>> {
    let mut code = Vec::new();
    code.try_reserve_exact((part.end - part.start) as usize)
        .ok()?;
    code.resize((part.end - part.start) as usize, 0);
    super::fault::read_file(file, part.start, &mut code).ok()?;
    // Each with the address of the instruction after it, in order of both.
    let sites: Vec<(u64, u64)> = forms::candidates(&code)
        .map(|(at, len)| (part.start + at as u64, part.start + (at + len) as u64))
        .collect();
    let mut entered = BTreeMap::new();
    forms::branch_targets(&code, part.start, |target| {
        // The sites whose following bytes the target is among.
        let first = sites.partition_point(|&(_, next)| next + AROUND as u64 <= target);
        for &(site, next) in sites[first..]
            .iter()
            .take_while(|&&(_, next)| next <= target)
        {
            *entered.entry(site).or_default() |= 1 << (target - next);
        }
    });
    Some(entered)
}

impl Space {
    /// The mapping at an address, if it is text that cannot differ from its file.
    fn text_at(&self, address: u64, kind: Kind) -> Option<(Vma, FileBacking)> {
        let locked = self.lock();
        let vma = locked.vmas.find(address)?;
        let Backing::File(file) = &vma.backing else {
            return None;
        };
        // The vDSO is ours: its `syscall` instructions are never reached from its functions.
        let text = vma.is_clean()
            && vma.protection.contains(Protection::EXECUTE)
            && !vma.flags.contains(VmaFlags::VDSO);
        (text && address + kind.size() <= vma.end).then(|| (vma.clone(), file.clone()))
    }

    /// Rewrites a site in a page that is in use.
    fn patch(&self, thread: &Arc<Thread>, site: Site) {
        let bytes = site.range();
        let word = bytes.start & !7;
        let one_store = bytes.end <= word + 8 && !matches!(site.form, Form::After { .. });
        // With this lock held, threads that were stopped wait for it before they run user code.
        let guard = residency::lock();
        if !one_store {
            self.stop_threads(Some(thread));
        }
        let mut locked = self.lock_with(guard);
        let Some(vma) = locked.vmas.find(site.address).cloned() else {
            return;
        };
        let pages = super::page_down(bytes.start)..bytes.end.next_multiple_of(PAGE);
        let live = pages
            .step_by(PAGE as usize)
            .all(|page| locked.live.contains(page));
        if !vma.is_clean() || !live {
            return;
        }
        let Some(original) = original(&site, &vma.range()) else {
            return;
        };
        let wanted = vec![(site, original)];
        let Ok(patches) = TABLE.write().add(wanted) else {
            return;
        };
        PATCHED.store(true, Ordering::Release);
        for patch in patches {
            if store(&patch, one_store, vma.page_protection()).is_ok() {
                REWRITTEN.fetch_add(1, Ordering::Relaxed);
            }
        }
        locked
            .vmas
            .update(&vma.range(), |vma| vma.flags |= VmaFlags::SITES);
    }
}

/// Writes a patch over live text.
fn store(patch: &Patch, one_store: bool, protection: Protection) -> Result<()> {
    let range = patch.range();
    let replacement = patch.replacement();
    if one_store {
        let word = range.start & !7;
        let mut bytes = [0; 8];
        platform()
            .copy_from_user(word, &mut bytes)
            .map_err(|_| crate::errno::EFAULT)?;
        let at = (range.start - word) as usize;
        bytes[at..at + replacement.len()].copy_from_slice(&replacement);
        platform().write_protected(word, &bytes)?;
    } else {
        platform().write_protected(range.start, &replacement)?;
    }
    // The platform leaves text readable and executable.
    if protection != Protection::READ | Protection::EXECUTE {
        let pages = super::page_down(range.start)..range.end.next_multiple_of(PAGE);
        platform().protect(pages.start, pages.end - pages.start, protection)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::map::{Request, Source};
    use crate::testing::{self, MemoryFile};
    use bulla_abi::sites::SiteLists;

    const RX: Protection = Protection::READ.union(Protection::EXECUTE);

    /// glibc's getpid-like site at 0x103, read-like at 0x200, musl's cancellable one at 0x2ffe
    /// (across pages).
    fn text() -> Vec<u8> {
        let mut bytes = vec![0xcc; 0x4000];
        bytes[0xfe..0x106].copy_from_slice(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3]);
        bytes[0x200..0x20a]
            .copy_from_slice(&[0x31, 0xc0, 0x0f, 0x05, 0x48, 0x3d, 0, 0xf0, 0xff, 0xff]);
        bytes[0x2ffb..0x3003].copy_from_slice(&[0x4c, 0x89, 0x5c, 0x24, 8, 0x0f, 0x05, 0xc3]);
        bytes
    }

    fn map(mm: &Space, inode: &Arc<MemoryFile>) -> u64 {
        let mut request = Request::anonymous(0x4000, RX);
        let file = FileBacking {
            inode: inode.clone(),
            offset: 0,
            path: None,
        };
        request.source = Source::File(file);
        mm.map(request).unwrap()
    }

    fn bytes<const N: usize>(mm: &Space, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        mm.read(address, &mut bytes).unwrap();
        bytes
    }

    /// The target of the jump at an address.
    fn jump_target(mm: &Space, address: u64) -> u64 {
        let [opcode, distance @ ..] = bytes::<5>(mm, address);
        assert_eq!(opcode, 0xe9, "a jump at {address:#x}");
        (address + 5).wrapping_add_signed(i64::from(i32::from_le_bytes(distance)))
    }

    /// Trampolines are not in any mapping: read them as the CPU does.
    fn code(address: u64) -> [u8; 64] {
        let mut code = [0; 64];
        platform().copy_from_user(address, &mut code).unwrap();
        code
    }

    #[test]
    fn a_trap_teaches_the_site_and_later_mappings_never_trap() {
        let thread = testing::setup();
        let mm = thread.mm();
        let inode = MemoryFile::new(text());
        let base = map(&mm, &inode);
        trapped(&thread, base + 0x103, Kind::Syscall, 39);
        let trampoline = jump_target(&mm, base + 0xfe);
        assert_eq!(
            bytes::<2>(&mm, base + 0x103),
            [0x0f, 0x05],
            "the instruction stays"
        );
        let expected = [
            &[0xb8, 39, 0, 0, 0][..],
            &[0x48, 0x8d, 0x0d],
            &((base + 0x105).wrapping_sub(trampoline + 12) as u32).to_le_bytes(),
            &[0x4c, 0x8d, 0x1d],
            &((base + 0x105).wrapping_sub(trampoline + 19) as u32).to_le_bytes(),
            &[0x65, 0xff, 0x24, 0x25, 0, 1, 0, 0],
        ]
        .concat();
        assert_eq!(code(trampoline)[..expected.len()], expected);
        assert_eq!(canonical(trampoline), base + 0xfe);
        assert_eq!(canonical(trampoline + 5), base + 0x103);
        assert_eq!(canonical(base + 0x103), base + 0x103);
        assert_eq!(resume_address(base + 0x105), base + 0x105);

        let first_page = trampoline & !0xfff;
        let other = crate::mm::AddressSpace::new();
        let second = map(&other, &inode);
        let trampoline = jump_target(&other, second + 0xfe);
        assert_eq!(canonical(trampoline + 12), second + 0x103);
        drop(other);
        assert_eq!(canonical(trampoline), trampoline);
        // Where the addresses happen to be close, both use one page.
        let page = trampoline & !0xfff;
        assert!(page == first_page || !platform().is_committed(page));
    }

    #[test]
    fn moved_instructions_have_two_addresses() {
        let thread = testing::setup();
        let mm = thread.mm();
        let base = map(&mm, &MemoryFile::new(text()));
        let site = base + 0x202;
        trapped(&thread, site, Kind::Syscall, 0);
        let trampoline = jump_target(&mm, site);
        let tail = trampoline + 22;
        assert_eq!(code(trampoline)[22..28], [0x48, 0x3d, 0, 0xf0, 0xff, 0xff]);
        assert_eq!(code(trampoline)[28], 0xe9);
        assert_eq!(canonical(trampoline + 7), site);
        assert_eq!(canonical(tail), site + 2);
        assert_eq!(canonical(tail + 6), site + 8);
        assert_eq!(resume_address(site + 2), tail);
        assert_eq!(resume_address(site + 8), site + 8);
        assert_eq!(resume_address(site), site);

        let cancel = base + 0x3000;
        trapped(&thread, cancel, Kind::Syscall, 1);
        let trampoline = jump_target(&mm, cancel - 5);
        assert_eq!(code(trampoline)[..5], [0x4c, 0x89, 0x5c, 0x24, 8]);
        assert_eq!(canonical(trampoline), cancel - 5);
        assert_eq!(canonical(trampoline + 5), cancel);

        // Becoming writable brings the original back.
        mm.protect(base, 0x4000, Protection::READ | Protection::WRITE)
            .unwrap();
        assert_eq!(bytes::<0x4000>(&mm, base)[..], text()[..]);
    }

    #[test]
    fn a_branch_into_the_moved_bytes_prevents_it() {
        let thread = testing::setup();
        let mm = thread.mm();
        let mut content = text();
        content[0x1000] = 0xe9;
        let distance = 0x204i32 - 0x1005;
        content[0x1001..0x1005].copy_from_slice(&distance.to_le_bytes());
        let base = map(&mm, &MemoryFile::new(content));
        trapped(&thread, base + 0x202, Kind::Syscall, 0);
        assert_eq!(bytes::<2>(&mm, base + 0x202), [0x0f, 0x05]);
    }

    #[test]
    fn measured_lists_are_used_at_once() {
        crate::testing::platform();
        let _host = measured::tests::HOST.lock();
        let mm = crate::mm::AddressSpace::new();
        let inode = MemoryFile::new(text());
        let site = |offset, form| bulla_abi::sites::Site {
            offset,
            kind: Kind::Syscall,
            form,
        };
        let list = SiteList {
            version: bulla_abi::sites::VERSION,
            sites: vec![
                site(0x103, Form::Number { len: 5 }),
                site(0x202, Form::After { len: 6 }),
                site(0x300, Form::Number { len: 5 }),
                site(0x3000, Form::Before { len: 5 }),
            ],
        };
        let id = Inode::id(&*inode);
        let lists = SiteLists::build(&BTreeMap::from([(id.inode, list)])).unwrap();
        testing::platform().set_rootfs(lists.clone());
        measured::load(id.device, &measured::tests::blob(0, &lists)).unwrap();

        // The list is of the image's content, and this may be another.
        let base = map(&mm, &inode);
        assert_eq!(bytes_of(&mm, base), text());
        assert!(!FILES.lock().contains_key(&id));

        inode.set_immutable(true);
        let base = map(&mm, &inode);
        jump_target(&mm, base + 0xfe);
        jump_target(&mm, base + 0x202);
        jump_target(&mm, base + 0x2ffb);
        assert_eq!(
            bytes::<4>(&mm, base + 0x2fe),
            [0xcc; 4],
            "a list that lies is not believed"
        );

        inode.set_immutable(false);
        let base = map(&mm, &inode);
        assert_eq!(bytes_of(&mm, base), text());
        assert!(!FILES.lock().contains_key(&id));
    }

    /// rdtsc; shl $32, %rdx at 0x100. cpuid; mov %eax, %edi; mov %ebx, %esi at 0x200. mov $7, %eax;
    /// cpuid; ret at 0x300.
    fn instructions() -> Vec<u8> {
        let mut bytes = vec![0xcc; 0x4000];
        bytes[0x100..0x106].copy_from_slice(&[0x0f, 0x31, 0x48, 0xc1, 0xe2, 32]);
        bytes[0x200..0x206].copy_from_slice(&[0x0f, 0xa2, 0x89, 0xc7, 0x89, 0xde]);
        bytes[0x300..0x308].copy_from_slice(&[0xb8, 7, 0, 0, 0, 0x0f, 0xa2, 0xc3]);
        bytes
    }

    #[test]
    fn other_instructions_leave_the_address_of_their_trampoline() {
        let thread = testing::setup();
        let mm = thread.mm();
        let base = map(&mm, &MemoryFile::new(instructions()));
        for (site, kind, moved) in [
            (0x100, Kind::Rdtsc, &[0x48, 0xc1, 0xe2, 32][..]),
            (0x200, Kind::Cpuid, &[0x89, 0xc7, 0x89, 0xde][..]),
        ] {
            let site = base + site;
            trapped(&thread, site, kind, 0);
            let trampoline = jump_target(&mm, site);
            let expected = [
                &[0x65, 0xc7, 0x04, 0x25, 0x10, 1, 0, 0][..],
                &(trampoline as u32).to_le_bytes(),
                &[0x65, 0xc7, 0x04, 0x25, 0x14, 1, 0, 0],
                &((trampoline >> 32) as u32).to_le_bytes(),
                &[0x65, 0xff, 0x24, 0x25, 8, 1, 0, 0],
                moved,
                &[0xe9],
            ]
            .concat();
            assert_eq!(code(trampoline)[..expected.len()], expected);
            let found = of_trampoline(trampoline).unwrap();
            assert_eq!((found.kind, found.next), (kind, site + 2));
            assert_eq!(found.resume, trampoline + 32);
            // Interrupted on its way to the gate, the program is still at the instruction.
            assert_eq!(canonical(trampoline + 12), site);
            assert_eq!(canonical(trampoline + 24), site);
            assert_eq!(resume_address(site), site);
            assert_eq!(resume_address(site + 2), trampoline + 32);
            assert_eq!(canonical(trampoline + 32), site + 2);
        }
        assert!(of_trampoline(base).is_none());

        let site = base + 0x305;
        trapped(&thread, site, Kind::Cpuid, 7);
        let trampoline = jump_target(&mm, site - 5);
        assert_eq!(code(trampoline)[..5], [0xb8, 7, 0, 0, 0]);
        assert_eq!(bytes::<2>(&mm, site), [0x0f, 0xa2], "the instruction stays");
        assert_eq!(of_trampoline(trampoline).unwrap().resume, site + 2);
        assert_eq!(canonical(trampoline + 5), site);
    }

    fn bytes_of(mm: &Space, base: u64) -> Vec<u8> {
        bytes::<0x4000>(mm, base).to_vec()
    }
}
