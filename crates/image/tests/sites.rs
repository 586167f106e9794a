//! Site lists of real libraries and programs, and of hostile files. `objdump`, another decoder,
//! confirms that what moves are whole instructions which nothing branches into.

mod common;

use bulla_abi::sites::{Form, Kind, SiteList};
use bulla_image::{Counts, find_sites};
use common::{run, temporary};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::Command;

const GLIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";
/// From Debian's package `musl`.
const MUSL: &str = "/usr/lib/x86_64-linux-musl/libc.so";

fn sites(path: &Path) -> SiteList {
    let file = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let list = find_sites(&file).unwrap();
    println!("{}: {:?}", path.display(), Counts::of(&list, Kind::Syscall));
    assert_eq!(SiteList::from_bytes(&list.to_bytes()).as_ref(), Some(&list));
    list
}

/// What objdump says: where instructions start (with their text), and where branches lead.
/// Addresses equal file offsets in the executable segments of both libraries.
fn objdump(path: &str) -> (BTreeMap<u64, String>, HashSet<u64>) {
    let text = run(Command::new("objdump")
        .args(["-d", "--no-show-raw-insn"])
        .arg(path));
    let (mut instructions, mut targets) = (BTreeMap::new(), HashSet::new());
    for line in text.lines().filter(|line| line.starts_with(' ')) {
        let Some((address, rest)) = line.trim().split_once(":\t") else {
            continue;
        };
        let Ok(address) = u64::from_str_radix(address, 16) else {
            continue;
        };
        let mut words = rest.split_whitespace();
        let (first, second) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        if first.starts_with('j') || first == "call" {
            targets.extend(u64::from_str_radix(second, 16).ok());
        }
        instructions.insert(address, rest.to_owned());
    }
    (instructions, targets)
}

fn confirmed_by_objdump(path: &str, list: &SiteList) {
    let (instructions, targets) = objdump(path);
    for site in &list.sites {
        let text = instructions.get(&site.offset).map_or("", String::as_str);
        let name = text.split_whitespace().next().unwrap_or("");
        assert_eq!(name, format!("{:?}", site.kind).to_lowercase(), "{site:x?}");
        let (start, end) = site.patched();
        if site.form == Form::Trap {
            continue;
        }
        assert!(end - start >= 5, "{site:x?}");
        assert!(instructions.contains_key(&start), "{site:x?}");
        assert!(instructions.contains_key(&end), "{site:x?}");
        for inside in start + 1..end {
            assert!(
                !targets.contains(&inside),
                "{site:x?}: a branch to {inside:x}"
            );
        }
    }
    let all = instructions
        .values()
        .filter(|text| text.trim() == "syscall")
        .count();
    assert_eq!(Counts::of(list, Kind::Syscall).total(), all);
}

#[test]
fn glibc() {
    let list = sites(GLIBC.as_ref());
    confirmed_by_objdump(GLIBC, &list);
    let counts = Counts::of(&list, Kind::Syscall);
    let file = std::fs::read(GLIBC).unwrap();
    let restorer = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
    let at = file
        .windows(9)
        .position(|window| window == restorer)
        .unwrap() as u64
        + 7;
    let site = list.sites.iter().find(|site| site.offset == at).unwrap();
    assert_eq!(site.form, Form::Trap);
    // Debian 12: 435 by number, 81 after, 5 before, 5 trap (one of them the signal restorer).
    assert!(counts.total() > 500, "{counts:?}");
    assert!(counts.trap * 50 <= counts.total(), "{counts:?}");
}

#[test]
fn musl() {
    let list = sites(MUSL.as_ref());
    confirmed_by_objdump(MUSL, &list);
    let counts = Counts::of(&list, Kind::Syscall);
    // Debian 12: 244 by number, 167 after, 61 before, 27 trap.
    assert!(counts.total() > 450, "{counts:?}");
    assert!(counts.trap * 12 <= counts.total(), "{counts:?}");
    // The one site of all cancellable calls: an instruction of 5 bytes, `syscall`, `ret`.
    let file = std::fs::read(MUSL).unwrap();
    let site = list.sites.iter().find(|site| {
        let at = site.offset as usize;
        file[at - 5..at + 3] == [0x4c, 0x89, 0x5c, 0x24, 0x08, 0x0f, 0x05, 0xc3]
    });
    let form = site.map(|site| site.form);
    assert!(
        matches!(form, Some(Form::Before { len: 5 } | Form::After { .. })),
        "{form:?}"
    );
}

#[test]
fn static_go_programs_with_and_without_symbols() {
    let folder = temporary("go");
    let source = folder.join("main.go");
    std::fs::write(
        &source,
        "package main\nfunc main() { println(\"hello\") }\n",
    )
    .unwrap();
    let build = |name: &str, flags: &str| {
        let output = folder.join(name);
        let mut go = Command::new("go");
        go.env("CGO_ENABLED", "0")
            .env("GOCACHE", folder.join("cache"));
        run(go
            .args(["build", "-ldflags", flags, "-o"])
            .arg(&output)
            .arg(&source));
        sites(&output)
    };
    let (plain, stripped) = (build("plain", ""), build("stripped", "-s -w"));
    assert_eq!(
        Counts::of(&plain, Kind::Syscall),
        Counts::of(&stripped, Kind::Syscall),
        "the function table is enough"
    );
    let counts = Counts::of(&plain, Kind::Syscall);
    // Only the signal restorer traps.
    assert!(counts.total() > 30 && counts.trap <= 1, "{counts:?}");
    assert!(Counts::of(&plain, Kind::Rdtsc).total() > 0);
    assert!(Counts::of(&plain, Kind::Cpuid).total() > 0);
}

#[test]
fn forms_are_chosen_as_the_code_demands() {
    let assembly = |body: &str| {
        let start = "asm(\".globl _start\\n.type _start, @function\\n_start:\\n";
        let source = format!("{start}{body}\\n.size _start, . - _start\");");
        let file = common::compile("forms", &source, &[]);
        let list = find_sites(&file).unwrap();
        list.sites.iter().map(|site| site.form).collect::<Vec<_>>()
    };
    let number = Form::Number { len: 5 };
    assert_eq!(assembly("mov $39, %eax\\nsyscall\\nret"), [number]);
    assert_eq!(
        assembly("mov $39, %rax\\nsyscall\\nret"),
        [Form::Number { len: 7 }]
    );
    // A branch to the `syscall` itself is harmless there.
    assert_eq!(assembly("mov $39, %eax\\n1: syscall\\njmp 1b"), [number]);
    // Unwinders look for these bytes.
    assert_eq!(assembly("mov $15, %rax\\nsyscall"), [Form::Trap]);
    let after = "xor %edi, %edi\\nsyscall\\ncmp $-4096, %rax\\nja 1f\\n1: ret";
    assert_eq!(assembly(after), [Form::After { len: 6 }]);
    // Not when something branches there,
    let after = "xor %edi, %edi\\nsyscall\\n1: cmp $-4096, %rax\\nja 1b\\nret";
    assert_eq!(assembly(after), [Form::Trap]);
    // nor when the function may jump anywhere,
    let after = "xor %edi, %edi\\nsyscall\\ncmp $-4096, %rax\\nja 1f\\njmp *%rax\\n1: ret";
    assert_eq!(assembly(after), [Form::Trap]);
    // nor when what would move depends on where it stands.
    let after = "xor %edi, %edi\\nsyscall\\ncall 1f\\n1: ret";
    assert_eq!(assembly(after), [Form::Trap]);
    let after = "xor %edi, %edi\\nsyscall\\nmov %rax, _start(%rip)\\nret";
    assert_eq!(assembly(after), [Form::Trap]);
    // `ret` and padding.
    let after = "xor %edi, %edi\\nsyscall\\nret\\nnop\\nnop";
    assert_eq!(assembly(after), [Form::After { len: 3 }]);
    let before = "mov %r11, 8(%rsp)\\nsyscall\\njmp _start";
    assert_eq!(assembly(before), [Form::Before { len: 5 }]);
    let before = "xor %edi, %edi\\nmov %rdx, %rax\\n1: syscall\\njmp 1b";
    assert_eq!(assembly(before), [Form::Before { len: 5 }]);
    let before = "xor %edi, %edi\\n1: mov %rdx, %rax\\nsyscall\\njmp 1b";
    assert_eq!(assembly(before), [Form::Trap]);
    // Bytes of a `syscall` inside of another instruction are none.
    assert_eq!(
        assembly("mov $0x050f, %eax\\nmov $1, %eax\\nsyscall"),
        [number]
    );
}

#[test]
fn hostile_files_give_errors_not_panics() {
    let file = std::fs::read(MUSL).unwrap();
    for length in (0..file.len()).step_by(file.len() / 40) {
        let _ = find_sites(&file[..length]);
    }
    let source = "void _start(void) { asm(\"mov $39, %eax\\n syscall\"); for (;;); }";
    let small = common::compile("small", source, &[]);
    let headers = u64::from_le_bytes(small[40..48].try_into().unwrap()) as usize;
    for at in (0..64 + 56 * 12).chain(headers..small.len()) {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bad = small.clone();
            bad[at] = value;
            let _ = find_sites(&bad);
        }
    }
}

#[test]
fn landing_pads_are_branch_targets() {
    // An exception handler that starts right after a `syscall`, as no compiler would put it.
    let source = r#"asm("
        .globl _start, __gxx_personality_v0
        .type _start, @function
        __gxx_personality_v0: ret
        _start: .cfi_startproc
        .cfi_personality 0x1b, __gxx_personality_v0
        .cfi_lsda 0x1b, area
        1: call _start
        2: xor %edi, %edi
        syscall
        3: cmp $-4096, %rax
        ja 1b
        ret
        .cfi_endproc
        .size _start, . - _start
        .section .gcc_except_table, \"a\", @progbits
        area: .byte 0xff, 0xff, 1
        .uleb128 6f - 5f
        5: .uleb128 1b - _start
        .uleb128 2b - 1b
        .uleb128 PAD - _start
        .uleb128 0
        6: .text
    ");"#;
    let form = |pad: &str| {
        let source = source.replace("PAD", pad).replace('\n', "\\n\\\n");
        let file = common::compile("landing", &source, &[]);
        let list = find_sites(&file).unwrap();
        list.sites.iter().map(|site| site.form).collect::<Vec<_>>()
    };
    assert_eq!(form("2b"), [Form::After { len: 6 }]);
    assert_eq!(form("3b"), [Form::Trap]);
}

/// Prints the numbers for the files named in BULLA_SITES, and how long they take.
#[test]
fn report() {
    for path in std::env::var("BULLA_SITES")
        .unwrap_or_default()
        .split_whitespace()
    {
        let file = std::fs::read(path).unwrap();
        let start = std::time::Instant::now();
        let list = find_sites(&file).unwrap();
        let time = start.elapsed();
        println!(
            "{path}: {} bytes, {time:?}, list of {} bytes",
            file.len(),
            list.to_bytes().len()
        );
        for kind in [Kind::Syscall, Kind::Cpuid, Kind::Rdtsc, Kind::Rdtscp] {
            println!("  {kind:?} {:?}", Counts::of(&list, kind));
        }
    }
}
