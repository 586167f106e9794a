//! Which instructions the enclave programs consist of.
//!
//! The runtime shares the CPU's extended state with the program that it serves: xmm0 to xmm15 are
//! saved at every system call, and nothing else. So it must not use MMX and x87, nor VEX and EVEX
//! encodings, which clear upper halves, nor do arithmetic that depends on MXCSR or sets flags in it;
//! and nothing that is illegal in an enclave. Every instruction is decoded here. With the feature
//! `embedded`. Exceptions:
//! - the moves and clearings of zmm16 to zmm31 and k0 to k7 around host calls, which touch nothing else
//!   and are counted;
//! - the two functions that find fingerprints, in the registers that they save and give back.
#![cfg(feature = "embedded")]

use bulla_image::embedded::{BOOTSTRAP, RUNTIME};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic, Register,
};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};
use std::ops::Range;

/// What is wrong with an instruction.
fn objection(instruction: &Instruction) -> Option<&'static str> {
    if instruction.code() == Code::INVALID {
        return Some("is none");
    }
    if keeps_wide_registers(instruction) {
        return None;
    }
    if instruction.encoding() != EncodingKind::Legacy {
        return Some("clears upper halves of vector registers");
    }
    let is_foreign = |register: Register| {
        register.is_mm()
            || register.is_st()
            || register.is_ymm()
            || register.is_zmm()
            || register.is_k()
            || register.is_tmm()
            || register.is_segment_register() && register != Register::GS
    };
    if (0..instruction.op_count()).any(|index| is_foreign(instruction.op_register(index))) {
        return Some("uses a register that is the program's");
    }
    let features = instruction.cpuid_features();
    let is_x87 = |feature: &CpuidFeature| {
        matches!(
            feature,
            CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 | CpuidFeature::MMX
        )
    };
    if features.iter().any(is_x87) {
        return Some("uses x87 or MMX state");
    }
    if !instruction.is_string_instruction() && depends_on_mxcsr(instruction.mnemonic()) {
        return Some("uses MXCSR, which is the program's");
    }
    match instruction.mnemonic() {
        Mnemonic::Cpuid
        | Mnemonic::Syscall
        | Mnemonic::Sysenter
        | Mnemonic::Int
        | Mnemonic::Iretq
        | Mnemonic::Rdpmc
        | Mnemonic::In
        | Mnemonic::Out
        | Mnemonic::Vmcall
        | Mnemonic::Hlt => Some("is illegal in an enclave"),
        // FS is the program's: only RDFSBASE and WRFSBASE may name it.
        _ if instruction.memory_segment() == Register::FS => Some("uses FS"),
        _ => None,
    }
}

/// Whether it moves or clears one of AVX-512's own registers, whole, and touches nothing else.
fn keeps_wide_registers(instruction: &Instruction) -> bool {
    let is_wide = |register: Register| match register {
        Register::None => true,
        _ if register.is_zmm() => register.number() >= 16,
        _ if register.is_k() => true,
        _ => false,
    };
    let keeps = matches!(
        instruction.mnemonic(),
        Mnemonic::Vmovdqa64 | Mnemonic::Vpxord | Mnemonic::Kmovq | Mnemonic::Kxorq
    );
    let mut operands = 0..instruction.op_count();
    keeps
        && !instruction.has_op_mask()
        && operands.all(|index| is_wide(instruction.op_register(index)))
}

/// Whether it is one of the floating-point instructions of SSE to SSE4.2 that look at MXCSR or set
/// its flags (SDM volume 1, sections 10.4 to 12.8): arithmetic, comparisons and conversions of
/// packed (`ps`, `pd`) and scalar (`ss`, `sd`) numbers, which are named alike.
fn depends_on_mxcsr(mnemonic: Mnemonic) -> bool {
    let name = format!("{mnemonic:?}").to_lowercase();
    const OPERATIONS: [&str; 15] = [
        "add", "addsub", "sub", "mul", "div", "sqrt", "min", "max", "cmp", "comi", "ucomi", "hadd",
        "hsub", "round", "dp",
    ];
    let number = ["ps", "pd", "ss", "sd"].iter();
    let operation = number.filter_map(|suffix| name.strip_suffix(suffix));
    name.starts_with("cvt") || operation.into_iter().any(|name| OPERATIONS.contains(&name))
}

/// What was found in code.
#[derive(Default)]
struct Findings {
    instructions: usize,
    /// See [`keeps_wide_registers`].
    wide: usize,
    objections: Vec<String>,
}

/// A function that saves the vector registers that it uses.
struct Saving {
    place: Range<u64>,
    registers: Range<usize>,
}

impl Saving {
    /// Whether the instruction is one of its own, and uses no other vector registers.
    fn allows(&self, instruction: &Instruction) -> bool {
        let is_saved = |register: Register| {
            !register.is_vector_register() || self.registers.contains(&register.number())
        };
        let is_integer = instruction.mnemonic() != Mnemonic::Vzeroupper
            && !depends_on_mxcsr(instruction.mnemonic());
        self.place.contains(&instruction.ip())
            && is_integer
            && (0..instruction.op_count()).all(|index| is_saved(instruction.op_register(index)))
    }
}

fn savings(program: &object::File<'_>) -> Vec<Saving> {
    let named = [
        ("bulla_fingerprint_ymm", 0..5),
        ("bulla_fingerprint_zmm", 16..21),
    ];
    let symbols = || program.symbols();
    let found = named.into_iter().filter_map(|(name, registers)| {
        let symbol = symbols().find(|symbol| symbol.name() == Ok(name))?;
        let place = symbol.address()..symbol.address() + symbol.size();
        Some(Saving { place, registers })
    });
    found.collect()
}

fn findings(code: &[u8], address: u64, savings: &[Saving]) -> Findings {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut all = Findings::default();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        all.instructions += 1;
        if savings.iter().any(|saving| saving.allows(&instruction)) {
            continue;
        }
        all.wide += usize::from(keeps_wide_registers(&instruction));
        if let Some(what) = objection(&instruction) {
            let at = (instruction.ip() - address) as usize;
            let bytes = &code[at..code.len().min(at + instruction.len().max(1))];
            all.objections
                .push(format!("{:#x}: {bytes:02x?} {what}", instruction.ip()));
        }
    }
    all
}

#[test]
fn the_programs_leave_the_state_of_others_alone() {
    // 24 registers: saved, loaded, cleared before a host call and after, at a slot's start and end.
    const WIDE: usize = 24 * 6;
    for (name, file, least, wide, saving) in [
        ("bootstrap", BOOTSTRAP, 200, 0, 0),
        ("runtime", RUNTIME, 50_000, WIDE, 2),
    ] {
        let program = object::File::parse(file).unwrap();
        let savings = savings(&program);
        assert_eq!(
            savings.len(),
            saving,
            "{name}: functions that save registers"
        );
        let (mut count, mut kept) = (0, 0);
        for section in program.sections() {
            if section.kind() != SectionKind::Text {
                continue;
            }
            let some = findings(section.data().unwrap(), section.address(), &savings);
            count += some.instructions;
            kept += some.wide;
            let found = some.objections;
            assert!(
                found.is_empty(),
                "{name}, {}: {} instructions, the first:\n{}",
                section.name().unwrap_or("?"),
                found.len(),
                found[..found.len().min(20)].join("\n")
            );
        }
        assert!(count > least, "{name}: {count} instructions");
        assert_eq!(kept, wide, "{name}: with AVX-512's own registers");
    }
}

#[test]
fn what_is_saved_is_allowed_in_its_place_only() {
    let objects = |code: &[u8], registers: Range<usize>| {
        let saving = Saving {
            place: 0..16,
            registers,
        };
        findings(code, 0, &[saving]).objections.len()
    };
    let vpxor = [0xc5, 0xfd, 0xef, 0xc1]; // vpxor ymm0, ymm0, ymm1
    assert_eq!(objects(&vpxor, 0..2), 0);
    assert_eq!(objects(&vpxor, 0..1), 1, "ymm1 is not saved");
    let behind = [&[0x90; 16][..], &vpxor].concat();
    assert_eq!(objects(&behind, 0..2), 1, "another function");
    assert_eq!(objects(&[0xc5, 0xf8, 0x77], 0..32), 1, "vzeroupper");
}

#[test]
fn each_objection_is_found() {
    let objects = |code: &[u8]| findings(code, 0, &[]).objections.len();
    for (code, name) in [
        (&[0xc5, 0xf8, 0x77][..], "vzeroupper"),
        (&[0xc5, 0xf9, 0x6f, 0xc1], "vmovdqa xmm0, xmm1"),
        (&[0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc1], "vmovaps zmm0, zmm1"),
        (&[0xc5, 0xfa, 0x6f, 0xc1], "vmovdqu xmm0, xmm1"),
        (
            &[0x62, 0xb1, 0xfd, 0x48, 0x6f, 0xc0],
            "vmovdqa64 zmm0, zmm16",
        ),
        (
            &[0x62, 0xe1, 0xfd, 0x28, 0x6f, 0x00],
            "vmovdqa64 ymm16, [rax]",
        ),
        (
            &[0x62, 0xe1, 0xfd, 0x49, 0x6f, 0x00],
            "vmovdqa64 zmm16 {k1}, [rax]",
        ),
        (&[0xc4, 0xe1, 0xfb, 0x93, 0xc1], "kmovq rax, k1"),
        (&[0x0f, 0x6f, 0xc1], "movq mm0, mm1"),
        (&[0x0f, 0x77], "emms"),
        (&[0xdb, 0xe3], "fninit"),
        (&[0xd9, 0xc0], "fld st0"),
        (&[0x0f, 0xa2], "cpuid"),
        (&[0x0f, 0x05], "syscall"),
        (&[0xcd, 0x80], "int 0x80"),
        (
            &[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0],
            "mov rax, fs:[0]",
        ),
        (&[0xf2, 0x0f, 0x58, 0xc1], "addsd xmm0, xmm1"),
        (&[0x66, 0x0f, 0x2f, 0xc1], "comisd xmm0, xmm1"),
        (&[0xf2, 0x48, 0x0f, 0x2c, 0xc0], "cvttsd2si rax, xmm0"),
        (&[0x06], "no instruction"),
    ] {
        assert_eq!(objects(code), 1, "{name}");
    }
    for (code, name) in [
        (&[0x66, 0x0f, 0xef, 0xc0][..], "pxor xmm0, xmm0"),
        (&[0x0f, 0x38, 0xcb, 0xc1], "sha256rnds2 xmm0, xmm1"),
        (&[0x66, 0x0f, 0xfe, 0xc1], "paddd xmm0, xmm1"),
        (&[0x0f, 0x28, 0xc1], "movaps xmm0, xmm1"),
        (
            &[0x62, 0xe1, 0xfd, 0x48, 0x6f, 0x00],
            "vmovdqa64 zmm16, [rax]",
        ),
        (
            &[0x62, 0xa1, 0x7d, 0x40, 0xef, 0xc0],
            "vpxord zmm16, zmm16, zmm16",
        ),
        (&[0xc4, 0xe1, 0xf8, 0x90, 0x08], "kmovq k1, [rax]"),
        (&[0xc4, 0xe1, 0xf4, 0x47, 0xc9], "kxorq k1, k1, k1"),
        (&[0xa7], "cmpsd"),
        (&[0x0f, 0x01, 0xd7], "enclu"),
        (&[0xf3, 0x48, 0x0f, 0xae, 0xc0], "rdfsbase rax"),
        (&[0x48, 0x0f, 0xae, 0x20], "xsave64 [rax]"),
    ] {
        assert_eq!(objects(code), 0, "{name}");
    }
}
