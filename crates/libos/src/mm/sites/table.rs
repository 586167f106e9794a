//! Rewritten sites and their trampolines, by address.
//!
//! Trampolines live in *islands*: executable pages next to the text they serve, within reach of a
//! 32-bit jump, taken from the address allocator and freed with the last site. A trampoline has
//! the addresses of one site in it; processes that share addresses (after fork) share it, too.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use bulla_abi::sites::{Form, Kind};

use super::forms::JUMP;
use crate::Result;
use crate::mm::allocator::{self, Wanted};
use crate::mm::{PAGE, accounting};
use crate::platform::{Protection, platform};

/// Bytes per trampoline: at most 17 moved, two `lea` or two stores, two jumps.
pub const SLOT: u64 = 64;
/// A jump reaches 2 GiB; keep well within.
const REACH: u64 = 0x7000_0000;
/// The jump through a gate, and what a trampoline has before it: two `lea` for a system call, two
/// stores for another instruction.
const GATE_LEN: usize = 8;
const SYSCALL_LEN: usize = 7 + 7 + GATE_LEN;
const INSTRUCTION_LEN: usize = 12 + 12 + GATE_LEN;

/// An instruction that may be rewritten.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Site {
    pub address: u64,
    pub kind: Kind,
    pub form: Form,
}

impl Site {
    /// Address of the instruction after it.
    pub fn next(&self) -> u64 {
        self.address + self.kind.size()
    }

    /// The addresses whose bytes are rewritten.
    pub fn range(&self) -> Range<u64> {
        match self.form {
            Form::Trap => self.address..self.address,
            Form::Number { len } | Form::Before { len } => {
                self.address.saturating_sub(len.into())..self.address
            }
            Form::After { len } => self.address..self.next() + u64::from(len),
        }
    }

    fn call_len(&self) -> usize {
        match self.kind {
            Kind::Syscall => SYSCALL_LEN,
            _ => INSTRUCTION_LEN,
        }
    }
}

/// A rewritten site.
#[derive(Clone, Debug)]
pub struct Patch {
    pub site: Site,
    pub trampoline: u64,
    /// What stood in the patched range.
    pub original: Vec<u8>,
}

impl Patch {
    pub fn range(&self) -> Range<u64> {
        self.site.range()
    }

    /// The bytes that replace the original: a jump, and padding that never runs.
    pub fn replacement(&self) -> Vec<u8> {
        let start = self.range().start;
        let mut bytes = jump(start, self.trampoline);
        bytes.resize(self.original.len(), 0x90);
        bytes
    }

    /// The moved instructions.
    fn moved(&self) -> &[u8] {
        match self.site.form {
            Form::After { .. } => &self.original[self.site.kind.size() as usize..],
            _ => &self.original,
        }
    }

    /// Where the program goes on after the instruction.
    pub fn resume(&self) -> u64 {
        match self.site.form {
            Form::After { .. } => self.trampoline + self.site.call_len() as u64,
            _ => self.site.next(),
        }
    }

    /// The trampoline's code.
    fn code(&self) -> Vec<u8> {
        let mut code = Vec::new();
        match self.site.form {
            Form::After { .. } => {
                self.call(&mut code);
                code.extend_from_slice(self.moved());
                let end = self.trampoline + code.len() as u64;
                code.extend_from_slice(&jump(end, self.range().end));
            }
            _ => {
                code.extend_from_slice(self.moved());
                self.call(&mut code);
            }
        }
        code.resize(SLOT as usize, 0xcc);
        code
    }

    /// Appends the way into the kernel. A system call leaves the canonical return address in rcx
    /// and where to resume in r11; other instructions change no register but their own, so theirs
    /// leave the trampoline's address in the thread area.
    fn call(&self, code: &mut Vec<u8>) {
        let gate = match self.site.kind {
            Kind::Syscall => {
                for (opcode, target) in [
                    ([0x48, 0x8d, 0x0d], self.site.next()),
                    ([0x4c, 0x8d, 0x1d], self.resume()),
                ] {
                    let end = self.trampoline + code.len() as u64 + 7;
                    code.extend_from_slice(&opcode);
                    code.extend_from_slice(&(target.wrapping_sub(end) as u32).to_le_bytes());
                }
                platform().gate_offset()
            }
            _ => {
                let gate = platform().instruction_gate();
                for (at, half) in [(0, self.trampoline), (4, self.trampoline >> 32)] {
                    // movl $half, %gs:at
                    code.extend_from_slice(&[0x65, 0xc7, 0x04, 0x25]);
                    code.extend_from_slice(&(gate.trampoline + at).to_le_bytes());
                    code.extend_from_slice(&(half as u32).to_le_bytes());
                }
                gate.offset
            }
        };
        code.extend_from_slice(&[0x65, 0xff, 0x24, 0x25]);
        code.extend_from_slice(&gate.to_le_bytes());
    }

    /// The program's address for an offset in the trampoline.
    fn canonical(&self, offset: u64) -> u64 {
        let moved = self.moved().len() as u64;
        match self.site.form {
            Form::After { .. } => match offset.checked_sub(self.site.call_len() as u64) {
                None => self.site.address,
                Some(offset) => self.site.next() + offset.min(moved),
            },
            _ if offset < moved => self.range().start + offset,
            _ => self.site.address,
        }
    }

    /// Where to continue for an address inside the patched range.
    fn resume_at(&self, rip: u64) -> u64 {
        let range = self.range();
        match self.site.form {
            Form::After { .. } if rip >= self.site.next() && rip < range.end => {
                self.resume() + (rip - self.site.next())
            }
            Form::Before { .. } if rip > range.start && rip < range.end => {
                self.trampoline + (rip - range.start)
            }
            _ => rip,
        }
    }
}

/// `jmp target` at `from`.
fn jump(from: u64, target: u64) -> Vec<u8> {
    let distance = target.wrapping_sub(from + JUMP as u64) as u32;
    let mut code = alloc::vec![0xe9];
    code.extend_from_slice(&distance.to_le_bytes());
    code
}

/// A page of trampolines.
struct Island {
    /// Slots handed out so far, in order.
    next: u64,
    /// Slots in use.
    used: u64,
}

/// All rewritten sites of the container.
#[derive(Default)]
pub struct Table {
    patches: BTreeMap<u64, Patch>,
    /// Site by trampoline.
    trampolines: BTreeMap<u64, u64>,
    islands: BTreeMap<u64, Island>,
}

impl Table {
    pub const fn new() -> Table {
        Table {
            patches: BTreeMap::new(),
            trampolines: BTreeMap::new(),
            islands: BTreeMap::new(),
        }
    }

    /// The patch at a site, if it is for the same bytes.
    fn existing(&self, site: &Site, original: &[u8]) -> Option<&Patch> {
        self.patches
            .get(&site.address)
            .filter(|patch| patch.site == *site && patch.original == original)
    }

    /// Trampolines for sites that lie close together, with their original bytes. Sites whose bytes
    /// overlap those of another are left out.
    pub fn add(&mut self, wanted: Vec<(Site, Vec<u8>)>) -> Result<Vec<Patch>> {
        let mut patches = Vec::new();
        let mut fresh = Vec::new();
        let mut last_end = 0;
        for (site, original) in wanted {
            let range = site.range();
            if range.start < last_end {
                continue;
            }
            last_end = range.end.max(site.next());
            match self.existing(&site, &original) {
                Some(patch) => patches.push(patch.clone()),
                // Other bytes in another process at the same address: keep what is there.
                None if self.patches.contains_key(&site.address) => {}
                None => fresh.push(Patch {
                    site,
                    original,
                    trampoline: 0,
                }),
            }
        }
        for chunk in fresh.chunks_mut((PAGE / SLOT) as usize) {
            let start = self.take_slots(chunk[0].site.address, chunk.len() as u64)?;
            let mut code = Vec::new();
            for (index, patch) in chunk.iter_mut().enumerate() {
                patch.trampoline = start + index as u64 * SLOT;
                code.extend_from_slice(&patch.code());
            }
            self.write(start, &code)?;
            for patch in chunk {
                self.trampolines
                    .insert(patch.trampoline, patch.site.address);
                self.patches.insert(patch.site.address, patch.clone());
                patches.push(patch.clone());
            }
        }
        Ok(patches)
    }

    /// Slots in a row, near a site.
    fn take_slots(&mut self, site: u64, count: u64) -> Result<u64> {
        let near = site.saturating_sub(REACH)..site.saturating_add(REACH);
        let room = |island: &Island| island.next + count <= PAGE / SLOT;
        let below = self
            .islands
            .range(near.start..site)
            .rev()
            .take(8)
            .find(|(_, i)| room(i));
        let found = below.map(|(&start, _)| start);
        let start = match found {
            Some(start) => start,
            None => self.make_island(site, near)?,
        };
        let island = self.islands.get_mut(&start).ok_or(crate::errno::ENOMEM)?;
        let slot = start + island.next * SLOT;
        island.next += count;
        island.used += count;
        Ok(slot)
    }

    /// Writes trampolines; they can be executed afterwards.
    fn write(&mut self, start: u64, code: &[u8]) -> Result<()> {
        let page = start & !(PAGE - 1);
        let is_fresh = self
            .islands
            .get(&page)
            .is_some_and(|island| island.next * SLOT == code.len() as u64);
        if !is_fresh {
            return platform().write_protected(start, code);
        }
        let copied = platform().copy_to_user(start, code);
        copied.map_err(|_| crate::errno::EFAULT)?;
        platform().protect(page, PAGE, Protection::READ | Protection::EXECUTE)
    }

    fn make_island(&mut self, site: u64, near: Range<u64>) -> Result<u64> {
        accounting::charge(PAGE)?;
        let wanted = Wanted {
            len: PAGE,
            align: PAGE,
            within: near,
            below: site,
        };
        let start = allocator::allocate(&wanted).inspect_err(|_| accounting::uncharge(PAGE))?;
        // Writable until there is something in it, which spares two changes.
        let open = Protection::READ | Protection::WRITE;
        if let Err(errno) = crate::mm::commit(&(start..start + PAGE), open) {
            allocator::release(start..start + PAGE);
            accounting::uncharge(PAGE);
            return Err(errno);
        }
        self.islands.insert(start, Island { next: 0, used: 0 });
        Ok(start)
    }

    /// The patches whose bytes touch a range.
    pub fn overlapping(&self, range: &Range<u64>) -> Vec<Patch> {
        let near = range.start.saturating_sub(32)..range.end.saturating_add(32);
        let touches = |patch: &&Patch| {
            let bytes = patch.range();
            bytes.start < range.end && range.start < bytes.end
        };
        self.patches
            .range(near)
            .map(|(_, patch)| patch)
            .filter(touches)
            .cloned()
            .collect()
    }

    /// Forgets the sites of a range, and frees islands that nobody uses any more.
    pub fn remove(&mut self, range: &Range<u64>) {
        for patch in self.overlapping(range) {
            self.patches.remove(&patch.site.address);
            self.trampolines.remove(&patch.trampoline);
            let start = patch.trampoline & !(PAGE - 1);
            if let Some(island) = self.islands.get_mut(&start) {
                island.used -= 1;
                if island.used == 0 {
                    self.islands.remove(&start);
                    platform().decommit(start, PAGE);
                    allocator::release(start..start + PAGE);
                    accounting::uncharge(PAGE);
                }
            }
        }
    }

    /// The patch whose trampoline is at an address.
    pub fn of_trampoline(&self, address: u64) -> Option<&Patch> {
        self.patches.get(self.trampolines.get(&address)?)
    }

    /// See [`super::canonical`].
    pub fn canonical(&self, rip: u64) -> u64 {
        match self.trampolines.range(..=rip).next_back() {
            Some((&start, site)) if rip < start + SLOT => self
                .patches
                .get(site)
                .map_or(rip, |patch| patch.canonical(rip - start)),
            _ => rip,
        }
    }

    /// The copy of the instruction at an address in the trampoline of a patch that moved it.
    pub fn resume_address(&self, rip: u64) -> Option<(u64, Patch)> {
        let near = rip.saturating_sub(32)..rip.saturating_add(32);
        let found = self
            .patches
            .range(near)
            .find(|(_, patch)| patch.range().contains(&rip));
        let (_, patch) = found?;
        let resume = patch.resume_at(rip);
        (resume != rip).then(|| (resume, patch.clone()))
    }

    /// Whether any patch has moved instructions that a canonical address can point into.
    pub fn has_moved(&self) -> bool {
        !self.patches.is_empty()
    }
}
