//! Decoding, and the choice of a form for each site.

use super::Segment;
use super::bounds::{Bounds, Part};
use bulla_abi::sites::{Form, Kind, Site};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use std::collections::VecDeque;

/// Bytes of a jump with a 32-bit distance.
const JUMP: u64 = 5;
/// No system call has a higher number; a `mov` before a `syscall` outside of known functions that
/// loads a larger one is not what it seems.
const NUMBER_MAX: u64 = 4096;
/// Unwinders know signal frames by the bytes of the restorer (`mov $15, %rax; syscall`), which must
/// therefore stay: libgcc where there is no call frame information, libunwind, gdb.
const RT_SIGRETURN: u64 = 15;
/// Instructions before a site that may have to move: five of one byte each.
const BEFORE: usize = 5;

/// One bit per byte of the segment.
struct Bits {
    start: u64,
    len: u64,
    words: Vec<u64>,
}

impl Bits {
    fn new(start: u64, len: u64) -> Bits {
        Bits {
            start,
            len,
            words: vec![0; len.div_ceil(64) as usize],
        }
    }

    fn set(&mut self, address: u64) {
        let at = address.wrapping_sub(self.start);
        if at < self.len {
            self.words[(at / 64) as usize] |= 1 << (at % 64);
        }
    }

    fn get(&self, address: u64) -> bool {
        let at = address.wrapping_sub(self.start);
        at < self.len && self.words[(at / 64) as usize] >> (at % 64) & 1 != 0
    }

    /// Whether any address in `[from, to)` is set.
    fn any(&self, from: u64, to: u64) -> bool {
        (from..to).any(|address| self.get(address))
    }
}

/// A part whose sites are looked at.
struct Scan {
    part: Part,
    /// Decodes without a gap, and whatever branches into it hits an instruction.
    consistent: bool,
    /// Jumps through a register or memory, so that targets are not all known.
    indirect: bool,
}

/// Lists the sites of a segment.
pub(super) fn find(segment: &Segment<'_>, bounds: &Bounds) -> Vec<Site> {
    // Most libraries have none, which takes the few functions whose bytes might be one to know.
    if !bounds.parts.iter().any(|part| has_site(segment, part)) {
        return Vec::new();
    }
    let mut code = Context::new(segment);
    bounds
        .landing_pads
        .iter()
        .for_each(|&pad| code.targets.set(pad));
    let parts = bounds.parts.iter().copied();
    let with_sites: Vec<Part> = parts.filter(|part| code.survey(*part)).collect();
    let mut sites = Vec::new();
    for part in with_sites {
        for part in code.split(part) {
            let scan = code.scan(part);
            code.sites(&scan, &mut sites);
        }
    }
    sites
}

/// Whether decoding a part finds a site.
fn has_site(segment: &Segment<'_>, part: &Part) -> bool {
    let from = (part.start - segment.address) as usize;
    let to = (part.end - segment.address) as usize;
    super::has_candidates(&segment.data[from..to])
        && decoder(segment, part.start, part.end)
            .into_iter()
            .any(|instruction| kind(&instruction).is_some())
}

fn decoder<'data>(segment: &Segment<'data>, start: u64, end: u64) -> Decoder<'data> {
    let from = (start - segment.address) as usize;
    let to = (end - segment.address) as usize;
    Decoder::with_ip(64, &segment.data[from..to], start, DecoderOptions::NONE)
}

fn kind(instruction: &Instruction) -> Option<Kind> {
    Some(match instruction.code() {
        Code::Syscall => Kind::Syscall,
        Code::Cpuid => Kind::Cpuid,
        Code::Rdtsc => Kind::Rdtsc,
        Code::Rdtscp => Kind::Rdtscp,
        _ => return None,
    })
}

/// Whether an instruction does the same wherever it stands, and gives control to the next one.
fn movable(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::Next
        && !instruction.is_invalid()
        && !instruction.is_ip_rel_memory_operand()
        && kind(instruction).is_none()
        // Something branches here in a way that cannot be seen.
        && instruction.code() != Code::Endbr64
}

/// Whether an instruction does the same wherever it stands, and never gives control to the next.
fn movable_end(instruction: &Instruction) -> bool {
    let flow = instruction.flow_control();
    matches!(flow, FlowControl::Return | FlowControl::IndirectBranch)
        && !instruction.is_ip_rel_memory_operand()
}

/// The number that `mov $number, %eax` loads, in the two encodings that occur.
fn loaded_number(instruction: &Instruction) -> Option<u64> {
    use iced_x86::Register::{EAX, RAX};
    let number = match instruction.code() {
        Code::Mov_r32_imm32 if instruction.op0_register() == EAX && instruction.len() == 5 => {
            u64::from(instruction.immediate32())
        }
        Code::Mov_rm64_imm32 if instruction.op0_register() == RAX && instruction.len() == 7 => {
            instruction.immediate32to64() as u64
        }
        _ => return None,
    };
    Some(number)
}

struct Context<'a, 'data> {
    segment: &'a Segment<'data>,
    /// Where instructions start.
    starts: Bits,
    /// Where control may come from elsewhere: direct branches, calls, addresses that are taken,
    /// landing pads, starts of known functions.
    targets: Bits,
    /// Those of them that look like starts of functions.
    entries: Bits,
}

impl<'a, 'data> Context<'a, 'data> {
    fn new(segment: &'a Segment<'data>) -> Self {
        let bits = || Bits::new(segment.address, segment.data.len() as u64);
        Context {
            segment,
            starts: bits(),
            targets: bits(),
            entries: bits(),
        }
    }

    /// Notes instructions and branch targets of a part; says whether it has sites.
    fn survey(&mut self, part: Part) -> bool {
        if part.known {
            self.targets.set(part.start);
        }
        let mut has_site = false;
        let mut decoder = decoder(self.segment, part.start, part.end);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            self.starts.set(instruction.ip());
            has_site |= kind(&instruction).is_some();
            if instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64 {
                let target = instruction.near_branch_target();
                self.targets.set(target);
                if instruction.flow_control() == FlowControl::Call {
                    self.entries.set(target);
                }
            }
            if instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand() {
                let target = instruction.ip_rel_memory_address();
                self.targets.set(target);
                // Compilers align functions, but not labels.
                if target % 16 == 0 {
                    self.entries.set(target);
                }
            }
        }
        has_site
    }

    /// Splits what lies between known functions where functions seem to start.
    fn split(&self, part: Part) -> Vec<Part> {
        let Part { start, end, known } = part;
        let mut parts = Vec::new();
        let mut from = start;
        if !known {
            for at in start + 1..end {
                if self.entries.get(at) && self.starts.get(at) {
                    parts.push(Part {
                        start: from,
                        end: at,
                        known,
                    });
                    from = at;
                }
            }
        }
        parts.push(Part {
            start: from,
            end,
            known,
        });
        parts
    }

    fn scan(&self, part: Part) -> Scan {
        let stray = |address| self.targets.get(address) && !self.starts.get(address);
        let mut consistent = !(part.start..part.end).any(stray);
        let mut indirect = false;
        for instruction in &mut decoder(self.segment, part.start, part.end) {
            consistent &= !instruction.is_invalid();
            indirect |= instruction.flow_control() == FlowControl::IndirectBranch;
        }
        Scan {
            part,
            consistent,
            indirect,
        }
    }

    /// Adds the sites of one part.
    fn sites(&self, scan: &Scan, sites: &mut Vec<Site>) {
        let Part { start, end, known } = scan.part;
        let mut before: VecDeque<Instruction> = VecDeque::with_capacity(BEFORE);
        for instruction in &mut decoder(self.segment, start, end) {
            if let Some(kind) = kind(&instruction) {
                let form = self.form(&instruction, kind, &before, scan);
                // Without bounds, and not consistent, this may well be data. If it is code after
                // all, it keeps trapping.
                if known || scan.consistent || form != Form::Trap {
                    let offset = instruction.ip() - self.segment.address + self.segment.offset;
                    sites.push(Site { offset, kind, form });
                }
            }
            if before.len() == BEFORE {
                before.pop_front();
            }
            before.push_back(instruction);
        }
    }

    fn form(
        &self,
        site: &Instruction,
        kind: Kind,
        before: &VecDeque<Instruction>,
        scan: &Scan,
    ) -> Form {
        let number = before.back().and_then(loaded_number);
        if kind == Kind::Syscall && number == Some(RT_SIGRETURN) {
            return Form::Trap;
        }
        if let Some(last) = before.back()
            && let Some(number) = number
            && (scan.consistent || (kind == Kind::Syscall && number < NUMBER_MAX))
            && !self.targets.any(last.ip() + 1, site.ip())
        {
            return Form::Number {
                len: last.len() as u8,
            };
        }
        if !scan.consistent || scan.indirect {
            return Form::Trap;
        }
        if let Some(len) = self.after(site) {
            return Form::After { len };
        }
        if let Some(len) = self.before(site, before) {
            return Form::Before { len };
        }
        Form::Trap
    }

    /// How many bytes after the site can move together with it.
    fn after(&self, site: &Instruction) -> Option<u8> {
        let limit =
            (site.next_ip() + 64).min(self.segment.address + self.segment.data.len() as u64);
        let mut ended = false;
        let mut decoder = decoder(self.segment, site.next_ip(), limit);
        while decoder.can_decode() {
            let next = decoder.decode();
            if self.targets.any(next.ip(), next.next_ip()) {
                return None;
            }
            let padding = matches!(next.mnemonic(), Mnemonic::Nop | Mnemonic::Int3);
            match ended {
                true if padding => {}
                true => return None,
                false if movable_end(&next) => ended = true,
                false if movable(&next) => {}
                false => return None,
            }
            if next.next_ip() - site.ip() >= JUMP {
                return u8::try_from(next.next_ip() - site.next_ip()).ok();
            }
        }
        None
    }

    /// How many bytes before the site can move away.
    fn before(&self, site: &Instruction, before: &VecDeque<Instruction>) -> Option<u8> {
        let mut end = site.ip();
        for last in before.iter().rev() {
            if last.next_ip() != end || !movable(last) {
                return None;
            }
            // Control may enter at the first byte that moves, and at the site, but not between.
            if self.targets.any(last.ip() + 1, site.ip()) {
                return None;
            }
            end = last.ip();
            if site.ip() - end >= JUMP {
                return u8::try_from(site.ip() - end).ok();
            }
        }
        None
    }
}
