//! Building a program's address space.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::parse::{self, Elf, HEAD, HEADER_SIZE, Kind, Segment};
use super::stack::{self, Content, auxiliary};
use super::{script, vdso};
use crate::Result;
use crate::errno::{EINVAL, ELIBBAD, ELOOP, ENOENT, ENOEXEC, ENOMEM, EPERM};
use crate::fs::inode::{Execution, Inode};
use crate::fs::path::PathRef;
use crate::mm::map::{Placement, Request, Source};
use crate::mm::vma::FileBacking;
use crate::mm::{
    AddressSpace, PAGE, ProgramInfo, Space, VmaFlags, page_down, page_up, random_below,
};
use crate::platform::{Protection, platform};

/// A file to execute, already checked for permission.
#[derive(Clone)]
pub struct Executable {
    pub inode: Arc<dyn Inode>,
    pub path: Option<PathRef>,
}

/// What execve is given.
pub struct Program {
    pub file: Executable,
    /// The name as given: AT_EXECFN, and what a script's interpreter gets to see.
    pub name: Vec<u8>,
    /// Nobody can open the name once the program runs (a descriptor that execve closes).
    pub name_is_gone: bool,
    pub arguments: Vec<Vec<u8>>,
    pub environment: Vec<Vec<u8>>,
    /// uid, euid, gid, egid as they will be.
    pub ids: [u32; 4],
    /// AT_SECURE: the program has more rights than who starts it.
    pub secure: bool,
    /// RLIMIT_STACK in bytes.
    pub stack_limit: u64,
}

/// A program ready to run.
pub struct Loaded {
    pub mm: Arc<AddressSpace>,
    pub entry: u64,
    pub stack_pointer: u64,
    /// What runs in the end: the interpreter of a script.
    pub file: Executable,
}

/// Most scripts that interpret each other.
const SCRIPTS_MAX: u32 = 5;
/// Stacks are mapped whole, but never more than this.
const STACK_MAX: u64 = 64 << 20;
/// And never less.
const STACK_MIN: u64 = 128 << 10;
/// The part of the stack that is brought in at once.
const STACK_TOP: u64 = 64 << 10;
/// Nothing is mapped this far below the stack (Linux's stack_guard_gap).
const STACK_GUARD: u64 = 1 << 20;
/// CPUID leaf 1 EDX of any x86-64 CPU that SGX exists on.
const HWCAP: u64 = 0xbfeb_fbff;
/// User code may read and write its FS base (FSGSBASE).
const HWCAP2: u64 = 2;

/// Builds the address space of a program. `open` finds a file by name and checks that it may be
/// executed (interpreters of scripts and of ELF files).
pub fn load(
    mut program: Program,
    open: &mut dyn FnMut(&[u8]) -> Result<Executable>,
) -> Result<Loaded> {
    let given = program.name.clone();
    let mut scripts = 0;
    while let Some(line) = script_line(&program.file)? {
        scripts += 1;
        if scripts > SCRIPTS_MAX {
            return Err(ELOOP.because("too many scripts that interpret each other"));
        }
        if program.name_is_gone {
            return Err(ENOENT.because("the interpreter could not open its script"));
        }
        let script = core::mem::replace(&mut program.name, line.interpreter.clone());
        let rest = program.arguments.drain(..).skip(1);
        program.arguments = [Some(line.interpreter.clone()), line.argument, Some(script)]
            .into_iter()
            .flatten()
            .chain(rest)
            .collect();
        program.file = open(&line.interpreter)?;
    }
    if program.arguments.is_empty() {
        // Since Linux 5.18 a program always has an argv[0].
        program.arguments.push(Vec::new());
    }
    stack::check(
        &program.arguments,
        &program.environment,
        program.stack_limit,
    )?;
    let elf = parse::parse(&*program.file.inode)?;
    let interpreter = match &elf.interpreter {
        Some(name) => {
            let file = open(name)?;
            let bad = ELIBBAD.because("the ELF interpreter is not an ELF file that can be loaded");
            let elf = parse::parse(&*file.inode).map_err(|_| bad)?;
            if elf.kind != Kind::Relocatable {
                return Err(bad);
            }
            Some((file, elf))
        }
        None => None,
    };
    let mm = AddressSpace::new();
    let base = map_program(&mm, &program.file, &elf)?;
    let span = elf.span();
    let brk = base.wrapping_add(span.end);
    let gap = if elf.kind == Kind::Relocatable {
        mm.brk_gap()
    } else {
        0
    };
    mm.set_up_brk(brk + gap)?;
    let (entry, interpreter_base) = match &interpreter {
        Some((file, elf)) => {
            let base = map_anywhere(&mm, file, elf, Placement::Hint(0))?;
            (base.wrapping_add(elf.entry), base)
        }
        None => (base.wrapping_add(elf.entry), 0),
    };
    let vdso = vdso::map(&mm)?;
    let executable_stack = elf.executable_stack;
    let top = map_stack(&mm, program.stack_limit, executable_stack)?;
    let mut random = [0; 16];
    platform().random(&mut random);
    let [uid, euid, gid, egid] = program.ids.map(u64::from);
    let built = stack::build(
        &mm,
        top,
        &Content {
            arguments: &program.arguments,
            environment: &program.environment,
            file_name: &given,
            random,
            auxiliary: &[
                (auxiliary::SYSINFO_EHDR, vdso),
                (auxiliary::HWCAP, HWCAP),
                (auxiliary::PAGESZ, PAGE),
                (auxiliary::CLKTCK, 100),
                (
                    auxiliary::PHDR,
                    if elf.headers == 0 {
                        0
                    } else {
                        base.wrapping_add(elf.headers)
                    },
                ),
                (auxiliary::PHENT, HEADER_SIZE),
                (auxiliary::PHNUM, elf.headers_count),
                (auxiliary::BASE, interpreter_base),
                (auxiliary::FLAGS, 0),
                (auxiliary::ENTRY, base.wrapping_add(elf.entry)),
                (auxiliary::UID, uid),
                (auxiliary::EUID, euid),
                (auxiliary::GID, gid),
                (auxiliary::EGID, egid),
                (auxiliary::SECURE, u64::from(program.secure)),
                (auxiliary::HWCAP2, HWCAP2),
                (auxiliary::MINSIGSTKSZ, signal_stack()),
            ],
        },
    )?;
    let mut running = info(&program.file, &elf, base, built.stack_pointer, &built);
    running.execution = Some(Execution::begin(&program.file.inode)?);
    mm.set_program(running);
    Ok(Loaded {
        mm,
        entry,
        stack_pointer: built.stack_pointer,
        file: program.file,
    })
}

/// The smallest signal stack: a frame with the extended state.
fn signal_stack() -> u64 {
    (platform().fpu_size() as u64 + 1024).next_multiple_of(16)
}

fn script_line(file: &Executable) -> Result<Option<script::Script>> {
    let mut head = [0; HEAD];
    let mut len = 0;
    while len < HEAD {
        match file.inode.read_bytes(len as u64, &mut head[len..])? {
            0 => break,
            read => len += read.min(HEAD - len),
        }
    }
    script::parse(&head[..len])
}

fn info(
    file: &Executable,
    elf: &Elf,
    base: u64,
    stack_start: u64,
    built: &stack::Built,
) -> ProgramInfo {
    let range = |access: Protection| {
        let part = elf
            .segments
            .iter()
            .filter(|segment| segment.protection.contains(access));
        let start = part
            .clone()
            .map(|segment| segment.address)
            .min()
            .unwrap_or(0);
        let end = part
            .map(|segment| segment.address + segment.file_size)
            .max()
            .unwrap_or(0);
        base.wrapping_add(start)..base.wrapping_add(end)
    };
    ProgramInfo {
        path: file.path.clone(),
        execution: None,
        code: range(Protection::EXECUTE),
        data: range(Protection::WRITE),
        stack_start,
        arguments: built.arguments.clone(),
        environment: built.environment.clone(),
        auxv: built.auxv.clone(),
    }
}

/// Maps the main program; the difference between its addresses and those in the file.
fn map_program(mm: &Space, file: &Executable, elf: &Elf) -> Result<u64> {
    let span = elf.span();
    match elf.kind {
        Kind::Fixed => {
            for segment in &elf.segments {
                map_segment(mm, file, segment, 0)?;
            }
            Ok(0)
        }
        Kind::Relocatable => {
            // Far from where mmap starts, so that the heap has room behind the program.
            if let Some(start) = crate::mm::warm::claim(&*file.inode, span.end - span.start)
                && let Ok(base) = map_anywhere(mm, file, elf, Placement::Free(start))
            {
                return Ok(base);
            }
            /// Low, but above what position-dependent programs and their heaps use; one range of
            /// nearly all addresses stays for whoever reserves it.
            const LOW: u64 = 4 << 30;
            const SPREAD: u64 = 16 << 30;
            let user = platform().user_range();
            let (low, high) = (LOW, (LOW + SPREAD).min(user.end / 2));
            for _ in 0..4 {
                let at = low + random_below((high - low) / elf.align) * elf.align;
                let placement = Placement::Free(at & !(elf.align - 1));
                if crate::mm::allocator::is_free(&(at..at + (span.end - span.start) + (1 << 24)))
                    && let Ok(base) = map_anywhere(mm, file, elf, placement)
                {
                    return Ok(base);
                }
            }
            map_anywhere(mm, file, elf, Placement::Hint(0))
        }
    }
}

/// Maps a relocatable file; the difference between its addresses and those in the file.
fn map_anywhere(mm: &Space, file: &Executable, elf: &Elf, placement: Placement) -> Result<u64> {
    let span = elf.span();
    let len = span.end - span.start;
    let slack = if placement == Placement::Hint(0) {
        elf.align - PAGE
    } else {
        0
    };
    let mut request =
        Request::anonymous(len.checked_add(slack).ok_or(ENOMEM)?, Protection::empty());
    request.placement = placement;
    // A mapping of the file, so that what is ready of it stays so.
    request.source = Source::File(FileBacking {
        inode: file.inode.clone(),
        offset: 0,
        path: file.path.clone(),
    });
    let found = mm.map(request)?;
    // The first address at which the segments are aligned as they want to be.
    let wanted = span.start & (elf.align - 1);
    let start = found + (wanted.wrapping_sub(found) & (elf.align - 1)).min(slack);
    let base = start.wrapping_sub(span.start);
    if placement != Placement::Hint(0) {
        mm.note_image(start..start + len, &*file.inode);
    }
    let mut at = found;
    for segment in &elf.segments {
        let pages = segment.pages();
        let first = base.wrapping_add(pages.start);
        if first > at {
            mm.unmap(at, first - at)?;
        }
        at = at.max(base.wrapping_add(pages.end));
        map_segment(mm, file, segment, base)?;
    }
    if found + len + slack > at {
        mm.unmap(at, found + len + slack - at)?;
    }
    Ok(base)
}

fn map_segment(mm: &Space, file: &Executable, segment: &Segment, base: u64) -> Result<()> {
    let start = base.wrapping_add(segment.address);
    let file_end = start.checked_add(segment.file_size).ok_or(EINVAL)?;
    let end = start.checked_add(segment.memory_size).ok_or(EINVAL)?;
    let first = page_down(start);
    let file_pages = page_up(file_end).ok_or(EINVAL)?;
    let all_pages = page_up(end).ok_or(EINVAL)?;
    if segment.file_size > 0 {
        let backing = FileBacking {
            inode: file.inode.clone(),
            offset: page_down(segment.offset),
            path: file.path.clone(),
        };
        fixed(
            mm,
            first,
            file_pages,
            segment.protection,
            Source::File(backing),
        )?;
        // The rest of the last page is the beginning of bss; ld.so takes its very end for memory
        // that nobody has used.
        if end > file_end && file_end < file_pages && segment.protection.contains(Protection::WRITE)
        {
            let clear = (file_pages - file_end) as usize;
            mm.clear(file_end, clear).map_err(|_| ENOEXEC)?;
        }
    }
    let bss = if segment.file_size > 0 {
        file_pages
    } else {
        first
    };
    if all_pages > bss {
        fixed(mm, bss, all_pages, segment.protection, Source::Anonymous)?;
    }
    Ok(())
}

fn fixed(mm: &Space, start: u64, end: u64, protection: Protection, source: Source) -> Result<()> {
    let request = Request {
        placement: Placement::Fixed(start),
        len: end - start,
        protection,
        flags: VmaFlags::empty(),
        source,
        populate: false,
    };
    mm.map(request).map(drop).map_err(|errno| {
        // A program that wants addresses which the enclave does not have.
        let unavailable = ENOMEM.because("the program's addresses are not available");
        if errno == EPERM { unavailable } else { errno }
    })
}

/// Maps the stack; its end.
fn map_stack(mm: &Space, limit: u64, executable: bool) -> Result<u64> {
    let len = page_up(limit.clamp(STACK_MIN, STACK_MAX)).ok_or(ENOMEM)?;
    let guarded = Request::anonymous(len + STACK_GUARD, Protection::empty());
    let guard = mm.map(guarded)?;
    let start = guard + STACK_GUARD;
    let mut protection = Protection::READ | Protection::WRITE;
    protection.set(Protection::EXECUTE, executable);
    let mut request = Request::anonymous(len, protection);
    request.placement = Placement::Fixed(start);
    request.flags = VmaFlags::STACK | VmaFlags::NORESERVE;
    mm.map(request)?;
    mm.keep_free(guard..start)?;
    mm.populate(&(start + len - STACK_TOP..start + len))?;
    // Programs may differ in their stacks' addresses by less than a page, too.
    Ok(start + len - random_below(PAGE / 16) * 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::parse::tests::build;
    use crate::errno::{E2BIG, ENOENT};
    use crate::testing::{self, MemoryFile};
    use std::vec;

    fn executable(content: Vec<u8>) -> Executable {
        Executable {
            inode: MemoryFile::new(content),
            path: None,
        }
    }

    fn program(file: Executable, arguments: &[&str]) -> Program {
        testing::platform();
        Program {
            file,
            name: b"/bin/test".to_vec(),
            name_is_gone: false,
            arguments: arguments
                .iter()
                .map(|argument| argument.as_bytes().to_vec())
                .collect(),
            environment: vec![b"A=1".to_vec(), b"B=".to_vec()],
            ids: [1, 2, 3, 4],
            secure: false,
            stack_limit: 8 << 20,
        }
    }

    fn nothing(_name: &[u8]) -> Result<Executable> {
        Err(ENOENT)
    }

    fn word(mm: &Space, at: u64) -> u64 {
        let mut bytes = [0; 8];
        mm.read(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// A file of 0x2800 bytes: headers and text, then data at 0x2000 with bss behind it.
    fn sample(kind: u16, base: u64) -> Vec<u8> {
        let headers = [
            (1, 5, 0, base, 0x1234, 0x1234),
            (1, 6, 0x2000, base + 0x3000, 0x800, 0x5000),
        ];
        let mut bytes = build(kind, base + 0x100, &headers);
        bytes.resize(0x2000, 0x90);
        bytes.resize(0x3000, 0xdd);
        bytes
    }

    fn check(loaded: &Loaded, base: u64) {
        let mm = &loaded.mm;
        assert_eq!(loaded.entry, base + 0x100);
        let mut bytes = [0; 0x1000];
        mm.read(base + 0x3000, &mut bytes).unwrap();
        assert!(bytes[..0x800].iter().all(|&byte| byte == 0xdd));
        assert!(bytes[0x800..].iter().all(|&byte| byte == 0), "bss is clear");
        mm.write(base + 0x7ff8, b"bss end.").unwrap();
        assert!(mm.write(base + 0x100, b"x").is_err(), "text is read-only");
        assert_eq!(loaded.stack_pointer % 16, 0);
        let sp = loaded.stack_pointer;
        assert_eq!(word(mm, sp), 2);
        assert_eq!(word(mm, sp + 24), 0);
        assert_eq!(word(mm, sp + 48), 0);
        let mut at = sp + 56;
        let mut found = std::collections::HashMap::new();
        while word(mm, at) != 0 {
            found.insert(word(mm, at), word(mm, at + 8));
            at += 16;
        }
        assert_eq!(found[&auxiliary::PHDR], base + 0x40);
        assert_eq!(found[&auxiliary::PHNUM], 2);
        assert_eq!(found[&auxiliary::ENTRY], base + 0x100);
        assert_eq!(found[&auxiliary::EUID], 2);
        let name = crate::user::read_string(mm, found[&auxiliary::EXECFN], 100).unwrap();
        assert_eq!(name, b"/bin/test");
        let argument = crate::user::read_string(mm, word(mm, sp + 16), 100).unwrap();
        assert_eq!(argument, b"two");
        let variable = crate::user::read_string(mm, word(mm, sp + 40), 100).unwrap();
        assert_eq!(variable, b"B=");
        let info = mm.program();
        assert_eq!(info.environment.end - info.environment.start, 7);
        assert_eq!(info.arguments.end - info.arguments.start, 8);
    }

    #[test]
    fn loads_a_fixed_program() {
        let base = 0x4000_0000;
        let file = executable(sample(2, base));
        let loaded = load(program(file, &["one", "two"]), &mut nothing).unwrap();
        check(&loaded, base);
    }

    #[test]
    fn two_fixed_programs_share_their_addresses() {
        let base = 0x5000_0000;
        let file = executable(sample(2, base));
        let one = load(program(file.clone(), &["one", "two"]), &mut nothing).unwrap();
        let two = load(program(file, &["one", "two"]), &mut nothing).unwrap();
        assert!(one.mm.is_resident() && !two.mm.is_resident());
        one.mm.write(base + 0x3000, b"one's").unwrap();
        check(&two, base);
        let mut bytes = [0; 5];
        one.mm.read(base + 0x3000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"one's");
        drop(one);
        let thread = testing::thread_in(two.mm.clone());
        two.mm.enter_user(&thread);
        assert!(two.mm.is_resident());
        check(&two, base);
    }

    #[test]
    fn loads_a_relocatable_program() {
        let file = executable(sample(3, 0));
        let loaded = load(program(file, &["one", "two"]), &mut nothing).unwrap();
        check(&loaded, loaded.entry - 0x100);
        assert!(loaded.entry > 1 << 32);
        assert_eq!(loaded.mm.brk(0) % PAGE, 0);
        assert!(loaded.mm.brk(0) >= loaded.entry - 0x100 + 0x8000);
    }

    #[test]
    fn scripts_name_their_interpreter() {
        let script = executable(b"#!/bin/interpreter -x y\n".to_vec());
        let mut open = |name: &[u8]| {
            assert_eq!(name, b"/bin/interpreter");
            Ok(executable(sample(3, 0)))
        };
        let loaded = load(program(script.clone(), &["script", "arg"]), &mut open).unwrap();
        let mm = &loaded.mm;
        let argument = |index: u64| {
            let at = word(mm, loaded.stack_pointer + 8 + index * 8);
            crate::user::read_string(mm, at, 100).unwrap()
        };
        assert_eq!(word(mm, loaded.stack_pointer), 4);
        assert_eq!(argument(0), b"/bin/interpreter");
        assert_eq!(argument(1), b"-x y");
        assert_eq!(argument(2), b"/bin/test");
        assert_eq!(argument(3), b"arg");
        let mut again = |_: &[u8]| Ok(script.clone());
        let result = load(program(script.clone(), &["script"]), &mut again);
        assert_eq!(result.err(), Some(ELOOP));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let file = executable(sample(3, 0));
        let mut large = program(file.clone(), &["x"]);
        large.environment.push(vec![b'x'; stack::STRING_MAX]);
        assert_eq!(load(large, &mut nothing).err(), Some(E2BIG));
        let mut large = program(file, &["x"]);
        large
            .environment
            .extend((0..20).map(|_| vec![b'x'; 120 << 10]));
        assert_eq!(load(large, &mut nothing).err(), Some(E2BIG));
        let mut interpreted = build(3, 0, &[(1, 5, 0, 0, 9, 9), (3, 4, 0xb0, 0, 7, 7)]);
        interpreted.extend(b"/lib/x\0");
        assert_eq!(
            load(program(executable(interpreted), &["x"]), &mut nothing).err(),
            Some(ENOENT)
        );
        let text = executable(b"echo hello\n".to_vec());
        assert_eq!(
            load(program(text, &["x"]), &mut nothing).err(),
            Some(ENOEXEC)
        );
        let low = executable(sample(2, 0x1000));
        assert_eq!(load(program(low, &["x"]), &mut nothing).err(), Some(ENOMEM));
    }

    /// The programs of the machine that runs the tests, if it has them where Debian does.
    #[test]
    fn loads_real_programs() {
        let mut open = |name: &[u8]| {
            let name = std::str::from_utf8(name).map_err(|_| ENOENT)?;
            std::fs::read(name).map(executable).map_err(|_| ENOENT)
        };
        for name in ["/bin/sh", "/bin/bash", "/usr/bin/python3", "/sbin/ldconfig"] {
            let Ok(content) = std::fs::read(name) else {
                continue;
            };
            let elf = parse::parse(&*MemoryFile::new(content.clone())).unwrap();
            let loaded = load(program(executable(content), &[name, "x"]), &mut open).unwrap();
            let mut code = [0; 16];
            loaded.mm.read(loaded.entry, &mut code).unwrap();
            assert_ne!(code, [0; 16], "{name}");
            for segment in &elf.segments {
                let writable = segment.protection.contains(Protection::WRITE);
                if elf.kind == Kind::Fixed && writable {
                    let mut bytes = vec![0; segment.memory_size as usize];
                    loaded.mm.read(segment.address, &mut bytes).unwrap();
                }
            }
        }
    }
}
