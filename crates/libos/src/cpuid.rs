//! What CPUID answers to programs.
//!
//! The instruction is illegal in an enclave. It traps and is answered from the host's values, each
//! asked for once and then kept, after they went through [`LEAVES`]: what an enclave cannot use is
//! taken out, extended state follows XFRM, and bits that decide whether cryptography is safe against
//! timing are set whatever the host says. Leaves that are not in the table are zero.
//!
//! The host can lie about everything else; a program then does without something, or meets an
//! illegal instruction, which is no more than the host stopping it. The table in
//! docs/manual/cpuid.md is generated from this one (a test compares).

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use crate::sync::SpinLock;

/// EAX, EBX, ECX, EDX.
pub type Words = [u32; 4];

/// What becomes of a leaf.
enum Rule {
    /// As the host says.
    Passed,
    /// The host's bits that are in the mask, and those that are always set.
    Masked { keep: Words, set: Words },
    /// Computed here, from the host's words, the subleaf and the extended state.
    Computed(fn(Words, u32, State) -> Words),
}

/// Components of extended state, as bits of XCR0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// XFRM: those that the enclave may use.
    pub offered: u64,
    /// XCR0: those that XSAVE writes. In an enclave on hardware they are the same; emulation cannot
    /// change XCR0, and a program must have room for what the instruction writes.
    pub written: u64,
    /// Where XSAVE writes those that are offered.
    pub layout: Layout,
}

/// A row: leaf, what becomes of it, why.
struct Leaf {
    number: u32,
    name: &'static str,
    rule: Rule,
    why: &'static str,
}

impl State {
    fn avx(self) -> bool {
        self.offered & AVX != 0
    }

    fn avx512(self) -> bool {
        self.offered & AVX512 == AVX512
    }

    /// Whether XSAVE writes what is not offered.
    fn writes_more(self) -> bool {
        self.written & !self.offered != 0
    }
}

/// XFRM's bit of AVX, and those of AVX-512.
pub const AVX: u64 = 1 << 2;
pub const AVX512: u64 = 0b111 << 5;
const ALL: u32 = u32::MAX;

/// The bits of these numbers.
const fn bits(numbers: &[u32]) -> u32 {
    let mut word = 0;
    let mut at = 0;
    while at < numbers.len() {
        word |= 1 << numbers[at];
        at += 1;
    }
    word
}

/// Highest leaves that are answered.
const MAX_BASIC: u32 = 0x1f;
const MAX_EXTENDED: u32 = 0x8000_0021;

const LEAVES: &[Leaf] = &[
    Leaf {
        number: 0,
        name: "vendor, highest leaf",
        rule: Rule::Computed(|host, _, _| {
            let [max, rest @ ..] = host;
            [max.min(MAX_BASIC), rest[0], rest[1], rest[2]]
        }),
        why: "vendor as it is; no leaf above 1FH",
    },
    Leaf {
        number: 1,
        name: "features",
        rule: Rule::Computed(features),
        why: "no MONITOR, VMX, SMX, power, debug store, x2APIC, deadline timer: not for user code \
              or illegal in enclaves; OSXSAVE, AES, PCLMULQDQ, RDRAND always; AVX, FMA, F16C follow \
              XFRM; no APIC id",
    },
    Leaf {
        number: 2,
        name: "caches",
        rule: Rule::Passed,
        why: "for tuning only",
    },
    Leaf {
        number: 4,
        name: "caches",
        rule: Rule::Passed,
        why: "for tuning only",
    },
    Leaf {
        number: 7,
        name: "more features",
        rule: Rule::Computed(more_features),
        why: "no SGX, MPX, PT, PKU, WAITPKG, ENQCMD, key locker, shadow stacks, user interrupts, \
              AMX: not in XFRM or illegal in enclaves; AVX2, VAES, VPCLMULQDQ and AVX-512 follow \
              XFRM; RDSEED always",
    },
    Leaf {
        number: 0xb,
        name: "topology",
        rule: Rule::Passed,
        why: "for tuning only",
    },
    Leaf {
        number: 0xd,
        name: "extended state",
        rule: Rule::Computed(extended_state),
        why: "components and sizes of XFRM, which is what the enclave's XSAVE writes (emulated: of the machine's XCR0, for the same reason)",
    },
    Leaf {
        number: 0x15,
        name: "time stamp counter",
        rule: Rule::Passed,
        why: "a clock's frequency is the host's word in any case",
    },
    Leaf {
        number: 0x16,
        name: "frequencies",
        rule: Rule::Passed,
        why: "for display only",
    },
    Leaf {
        number: 0x1f,
        name: "topology",
        rule: Rule::Passed,
        why: "for tuning only",
    },
    Leaf {
        number: 0x8000_0000,
        name: "highest extended leaf",
        rule: Rule::Computed(|host, _, _| {
            let [max, rest @ ..] = host;
            [
                max.clamp(0x8000_0000, MAX_EXTENDED),
                rest[0],
                rest[1],
                rest[2],
            ]
        }),
        why: "no leaf above 80000021H",
    },
    Leaf {
        number: 0x8000_0001,
        name: "extended features",
        rule: Rule::Computed(extended_features),
        why: "no SVM, IBS, performance counters, MONITORX; FMA4 and XOP follow XFRM",
    },
    Leaf {
        number: 0x8000_0002,
        name: "name of the CPU",
        rule: Rule::Passed,
        why: "for display only",
    },
    Leaf {
        number: 0x8000_0003,
        name: "name of the CPU",
        rule: Rule::Passed,
        why: "for display only",
    },
    Leaf {
        number: 0x8000_0004,
        name: "name of the CPU",
        rule: Rule::Passed,
        why: "for display only",
    },
    Leaf {
        number: 0x8000_0005,
        name: "caches (AMD)",
        rule: Rule::Passed,
        why: "for tuning only",
    },
    Leaf {
        number: 0x8000_0006,
        name: "caches",
        rule: Rule::Passed,
        why: "for tuning only",
    },
    Leaf {
        number: 0x8000_0007,
        name: "invariant time stamp counter",
        rule: Rule::Masked {
            keep: [0, 0, 0, bits(&[8])],
            set: [0; 4],
        },
        why: "the rest is about power",
    },
    Leaf {
        number: 0x8000_0008,
        name: "address sizes",
        rule: Rule::Masked {
            keep: [ALL, 0, 0, 0],
            set: [0; 4],
        },
        why: "the rest is for kernels",
    },
    Leaf {
        number: 0x8000_001d,
        name: "caches (AMD)",
        rule: Rule::Passed,
        why: "for tuning only",
    },
];

/// Leaf 1.
fn features(host: Words, _: u32, state: State) -> Words {
    let [eax, ebx, mut ecx, edx] = host;
    const APIC_ID: u32 = 0xff << 24;
    // DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, SDBG, PDCM, PCID, DCA, x2APIC, TSC deadline.
    ecx &= !bits(&[2, 3, 4, 5, 6, 7, 8, 11, 15, 17, 18, 21, 24]);
    // PCLMULQDQ, AES, OSXSAVE with XSAVE, RDRAND.
    ecx |= bits(&[1, 25, 26, 27, 30]);
    if !state.avx() {
        // FMA, AVX, F16C.
        ecx &= !bits(&[12, 28, 29]);
    }
    // Debug store, ACPI, thermal monitor, pending break.
    [eax, ebx & !APIC_ID, ecx, edx & !bits(&[21, 22, 29, 31])]
}

/// Leaf 7. AVX-512's parts all need its state.
fn more_features(host: Words, subleaf: u32, state: State) -> Words {
    let [eax, mut ebx, mut ecx, mut edx] = host;
    match subleaf {
        0 => {
            // SGX, MPX, RDT (monitoring, allocation), PT.
            ebx &= !bits(&[2, 12, 14, 15, 25]);
            ebx |= bits(&[18]);
            // PKU, OSPKE, WAITPKG, shadow stacks, TME, key locker, bus lock detection, ENQCMD,
            // SGX launch control, PKS.
            ecx &= !bits(&[3, 4, 5, 7, 13, 23, 24, 29, 30, 31]);
            // UINTR, PCONFIG, LBR, indirect branch tracking, AMX.
            edx &= !bits(&[5, 18, 19, 20, 22, 24, 25]);
            if !state.avx512() {
                ebx &= !bits(&[16, 17, 21, 26, 27, 28, 30, 31]);
                ecx &= !bits(&[1, 6, 11, 12, 14]);
                edx &= !bits(&[2, 3, 8, 23]);
            }
            if !state.avx() {
                ebx &= !bits(&[5]);
                ecx &= !bits(&[9, 10]);
            }
            [eax.min(1), ebx, ecx, edx]
        }
        1 => {
            // AVX-VNNI, AVX-IFMA with AVX; AVX512-BF16 with AVX-512; fast string moves.
            let mut keep = bits(&[10, 11, 12]);
            if state.avx() {
                keep |= bits(&[4, 23]);
            }
            if state.avx512() {
                keep |= bits(&[5]);
            }
            [eax & keep, 0, 0, 0]
        }
        _ => [0; 4],
    }
}

/// The components after the legacy ones: bit of XFRM, bytes (SDM volume 1, section 13.4).
pub const COMPONENTS: [(u32, u32); 4] = [(2, 256), (5, 64), (6, 512), (7, 1024)];
/// FXSAVE image and XSAVE header.
const LEGACY_SIZE: u32 = 576;

/// Where each of [`COMPONENTS`] starts in the standard format, which differs between CPUs; 0 for
/// those that are not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout(pub [u32; COMPONENTS.len()]);

impl Layout {
    /// The layout of `xfrm`, where `find` tells the start of a component of this bit and size.
    pub fn found_by(xfrm: u64, find: impl Fn(u32, u32) -> Option<u32>) -> Option<Layout> {
        let mut layout = Layout::default();
        for (start, (bit, len)) in layout.0.iter_mut().zip(COMPONENTS) {
            if xfrm >> bit & 1 == 1 {
                *start = find(bit, len)?;
            }
        }
        Some(layout)
    }

    /// Bit, bytes and start of the components of `xfrm`.
    fn components(&self, xfrm: u64) -> impl Iterator<Item = (u32, u32, u32)> {
        let all = COMPONENTS.into_iter().zip(self.0);
        all.map(|((bit, len), start)| (bit, len, start))
            .filter(move |(bit, ..)| xfrm >> bit & 1 == 1)
    }

    /// Bytes of an area with the components of `xfrm`.
    pub fn size(&self, xfrm: u64) -> u32 {
        let ends = self.components(xfrm).map(|(_, len, start)| start + len);
        ends.max().unwrap_or(LEGACY_SIZE)
    }
}

/// Leaf DH. Where XSAVE writes more than XFRM has, which only emulation meets, the sizes are the
/// machine's: room for XFRM alone would be too little.
fn extended_state(host: Words, subleaf: u32, state: State) -> Words {
    // XSAVEOPT, XSAVEC, XGETBV with ECX = 1; no supervisor state.
    let instructions = host[0] & bits(&[0, 1, 2]);
    if state.writes_more() {
        return match subleaf {
            0 => host,
            1 => [instructions, host[1], 0, 0],
            2..64 if state.written >> subleaf & 1 == 1 => host,
            _ => [0; 4],
        };
    }
    let xfrm = state.offered;
    let size = state.layout.size(xfrm);
    // XSAVEC leaves no gaps.
    let lens = state.layout.components(xfrm).map(|(_, len, _)| len);
    let compacted = LEGACY_SIZE + lens.sum::<u32>();
    match subleaf {
        0 => [xfrm as u32, size, size, (xfrm >> 32) as u32],
        1 => [instructions, compacted, 0, 0],
        _ => {
            let mut components = state.layout.components(xfrm);
            let found = components.find(|(bit, ..)| *bit == subleaf);
            found.map_or([0; 4], |(_, len, start)| [len, start, 0, 0])
        }
    }
}

/// Leaf 80000001H.
fn extended_features(host: Words, _: u32, state: State) -> Words {
    let [eax, ebx, mut ecx, edx] = host;
    // SVM, extended APIC, OSVW, IBS, SKINIT, watchdog, LWP, NodeId, performance counters (4),
    // MONITORX.
    ecx &= !bits(&[2, 3, 9, 10, 12, 13, 15, 19, 23, 24, 26, 27, 28, 29]);
    if !state.avx() {
        ecx &= !bits(&[11, 16]);
    }
    [eax, ebx, ecx, edx]
}

/// What a program gets for a leaf, of which the host says `host`.
fn filter(leaf: u32, subleaf: u32, host: Words, state: State) -> Words {
    let Some(row) = LEAVES.iter().find(|row| row.number == leaf) else {
        return [0; 4];
    };
    match row.rule {
        Rule::Passed => host,
        Rule::Masked { keep, set } => {
            core::array::from_fn(|index| host[index] & keep[index] | set[index])
        }
        Rule::Computed(compute) => compute(host, subleaf, state),
    }
}

/// Answers that were given, so that they never change. A program can ask for any number of
/// subleaves; more than this are not kept.
const KEPT: usize = 256;
static ANSWERS: SpinLock<BTreeMap<(u32, u32), Words>> = SpinLock::new(BTreeMap::new());

/// Subleaves that differ, by leaf: all others are alike.
fn canonical(leaf: u32, subleaf: u32) -> u32 {
    match leaf {
        4 | 7 | 0xb | 0xd | 0x1f | 0x8000_001d => subleaf.min(63),
        _ => 0,
    }
}

/// Answers CPUID with EAX = `leaf` and ECX = `subleaf`.
pub fn answer(leaf: u32, subleaf: u32, host: impl Fn(u32, u32) -> Words, state: State) -> Words {
    let subleaf = canonical(leaf, subleaf);
    if !LEAVES.iter().any(|row| row.number == leaf) {
        return [0; 4];
    }
    if let Some(&kept) = ANSWERS.lock().get(&(leaf, subleaf)) {
        return kept;
    }
    // Asking costs an exit, and on a virtual machine the instruction itself costs another.
    let is_known = leaf == 0xd && subleaf >= 2 && !state.writes_more();
    let said = match is_known {
        true => [0; 4],
        false => host(leaf, subleaf),
    };
    let words = filter(leaf, subleaf, said, state);
    let mut answers = ANSWERS.lock();
    if answers.len() < KEPT {
        // Another thread may have been first.
        return *answers.entry((leaf, subleaf)).or_insert(words);
    }
    words
}

/// The table for the manual.
pub fn manual() -> String {
    let mut out = String::from("| Leaf | About | Answer | Why |\n|---|---|---|---|\n");
    for row in LEAVES {
        let answer = match row.rule {
            Rule::Passed => "passed",
            Rule::Masked { .. } => "masked",
            Rule::Computed(_) => "masked, in part fixed",
        };
        let line = format!(
            "| {:X}H | {} | {answer} | {} |\n",
            row.number, row.name, row.why
        );
        out.push_str(&line);
    }
    out.push_str("| all others | | zero | nothing that a program in an enclave can use |\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Words = [ALL; 4];

    const INTEL: Layout = Layout([576, 1088, 1152, 1664]);
    const AMD: Layout = Layout([576, 832, 896, 1408]);

    /// As on hardware: XCR0 is XFRM.
    fn only(xfrm: u64) -> State {
        State {
            offered: xfrm,
            written: xfrm,
            layout: INTEL,
        }
    }

    #[test]
    fn places_of_extended_state_are_those_that_were_found() {
        for (layout, size) in [(INTEL, 2688), (AMD, 2432)] {
            let place = |bit, len| {
                let index = COMPONENTS.iter().position(|&known| known == (bit, len));
                index.map(|index| layout.0[index])
            };
            assert_eq!(Layout::found_by(0xe7, place), Some(layout));
            assert_eq!(Layout::found_by(7, place), Some(Layout([576, 0, 0, 0])));
            assert_eq!(
                Layout::found_by(0xe7, |bit, _| (bit != 6).then_some(576)),
                None
            );
            let state = State {
                layout,
                ..only(0xe7)
            };
            let answer = |subleaf| filter(0xd, subleaf, FULL, state);
            assert_eq!(answer(0), [0xe7, size, size, 0]);
            // Compacted, there is no gap.
            assert_eq!(answer(1), [7, 2432, 0, 0]);
            for ((bit, len), start) in COMPONENTS.into_iter().zip(layout.0) {
                assert_eq!(answer(bit), [len, start, 0, 0]);
            }
        }
    }

    #[test]
    fn a_program_has_room_for_what_xsave_writes() {
        // An emulated enclave without AVX-512 on an AMD machine with it.
        let state = State {
            offered: 7,
            written: 0xe7,
            layout: Layout([576, 0, 0, 0]),
        };
        let host = |subleaf: u32| match subleaf {
            0 => [0xe7, 2432, 2432, 0],
            1 => [0xf, 2472, 0x1800, 0],
            2 => [256, 576, 0, 0],
            6 => [512, 896, 0, 0],
            11 => [16, 0, 1, 0],
            _ => [0; 4],
        };
        let answer = |subleaf| filter(0xd, subleaf, host(subleaf), state);
        for subleaf in [0, 2, 6, 9, 40, 70] {
            assert_eq!(answer(subleaf), host(subleaf), "{subleaf}");
        }
        assert_eq!(answer(1), [7, 2472, 0, 0]);
        // Supervisor state stays out, and so do the instructions.
        assert_eq!(answer(11), [0; 4]);
        assert_eq!(filter(7, 0, FULL, state)[1] & bits(&[16]), 0);
    }

    #[test]
    fn extended_state_follows_xfrm() {
        for (xfrm, size, compacted) in [(3, 576, 576), (7, 832, 832), (0xe7, 2688, 2432)] {
            assert_eq!(INTEL.size(xfrm), size);
            let answer = filter(0xd, 0, FULL, only(xfrm));
            assert_eq!(answer, [xfrm as u32, size, size, 0]);
            assert_eq!(filter(0xd, 1, FULL, only(xfrm))[..2], [7, compacted]);
            let has_avx = xfrm & AVX != 0;
            let has_avx512 = xfrm & AVX512 != 0;
            let bit = |leaf, subleaf, register: usize, bit: u32| {
                filter(leaf, subleaf, FULL, only(xfrm))[register] >> bit & 1 == 1
            };
            for (leaf, subleaf, register, number) in [
                (1, 0, 2, 28),
                (1, 0, 2, 12),
                (7, 0, 1, 5),
                (7, 0, 2, 9),
                (7, 1, 0, 4),
            ] {
                assert_eq!(
                    bit(leaf, subleaf, register, number),
                    has_avx,
                    "{leaf:x} {number}"
                );
            }
            for (leaf, subleaf, register, number) in [
                (7, 0, 1, 16),
                (7, 0, 1, 31),
                (7, 0, 2, 1),
                (7, 0, 3, 23),
                (7, 1, 0, 5),
            ] {
                assert_eq!(
                    bit(leaf, subleaf, register, number),
                    has_avx512,
                    "{leaf:x} {number}"
                );
            }
            // AMX and protection keys never.
            assert!(!bit(7, 0, 3, 24) && !bit(7, 0, 2, 3));
            assert_eq!(filter(0xd, 2, FULL, only(xfrm)) == [0; 4], !has_avx);
            assert_eq!(filter(0xd, 9, FULL, only(xfrm)), [0; 4]);
            assert_eq!(filter(0xd, 18, FULL, only(xfrm)), [0; 4]);
        }
    }

    #[test]
    fn a_host_that_says_nothing_still_leaves_safe_cryptography() {
        let features = filter(1, 0, [0; 4], only(7));
        for bit in [1, 25, 30] {
            assert_eq!(features[2] >> bit & 1, 1, "{bit}");
        }
        assert_eq!(filter(7, 0, [0; 4], only(7))[1], 1 << 18);
    }

    #[test]
    fn what_is_illegal_or_not_known_is_not_there() {
        // VMX, SMX, MONITOR; SGX; whatever has no row.
        assert_eq!(filter(1, 0, FULL, only(7))[2] & bits(&[3, 5, 6]), 0);
        assert_eq!(filter(7, 0, FULL, only(7))[1] & bits(&[2]), 0);
        for leaf in [
            3,
            5,
            6,
            0xa,
            0x12,
            0x14,
            0x19,
            0x1d,
            0x4000_0000,
            0x8000_001f,
        ] {
            assert_eq!(filter(leaf, 0, FULL, only(7)), [0; 4], "{leaf:x}");
        }
        assert_eq!(filter(0, 0, FULL, only(7))[0], MAX_BASIC);
        assert_eq!(filter(0x8000_0000, 0, FULL, only(7))[0], MAX_EXTENDED);
    }

    #[test]
    fn answers_do_not_change() {
        crate::testing::platform();
        let first = answer(0x16, 5, |_, _| [1, 2, 3, 4], only(7));
        assert_eq!(first, [1, 2, 3, 4]);
        assert_eq!(answer(0x16, 0, |_, _| [9; 4], only(7)), first);
        assert_eq!(answer(0x1234, 0, |_, _| [9; 4], only(7)), [0; 4]);
        let component = answer(0xd, 2, |_, _| panic!("the host is asked"), only(7));
        assert_eq!(component, [256, 576, 0, 0]);
        for subleaf in 0..1000 {
            answer(4, subleaf, |_, _| [subleaf; 4], only(7));
        }
        assert!(ANSWERS.lock().len() <= KEPT);
    }

    #[test]
    fn the_manual_has_this_table() {
        let manual = include_str!("../../../docs/manual/cpuid.md");
        assert!(manual.contains(&super::manual()), "{}", super::manual());
    }
}
