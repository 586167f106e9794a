//! Core files: what a process that a signal ends leaves for a debugger (core(5)).
//!
//! Written inside the container only, where RLIMIT_CORE and PR_SET_DUMPABLE allow it. The other
//! threads end before, and leave their registers for it ([`OtherThreads`]).
//! `|program` as a pattern is refused: nothing would run it.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use crate::errno::{EACCES, EFBIG, EINVAL};
use crate::fs::file::{OpenFile, flags};
use crate::fs::inode::FileType;
use crate::fs::namei::{self, OpenHow};
use crate::fs::path::Walk;
use crate::fs::permission::Caller;
use crate::mm::{PAGE, VmaFlags};
use crate::platform::{Protection, platform};
use crate::process::exit;
use crate::process::limits::Resource;
use crate::signal::SigInfo;
use crate::sync::SpinLock;
use crate::user::IoBuffer;
use crate::{Registers, Result, Thread};

/// Longest pattern, as Linux's.
const PATTERN_MAX: usize = 127;
/// Smaller limits mean no core file at all (Linux's `min_coredump`).
const LIMIT_MIN: u64 = 4096;

/// Bits of /proc/<pid>/coredump_filter: kinds of memory to write.
mod filter {
    pub const PRIVATE: u32 = 1;
    pub const SHARED: u32 = 2;
    pub const FILE_PRIVATE: u32 = 4;
    pub const FILE_SHARED: u32 = 8;
    pub const ELF_HEADERS: u32 = 16;
}

/// Private and shared anonymous memory, and the first page of programs (bit 5: huge pages).
pub const FILTER_DEFAULT: u32 = 0x33;
/// Bits that may be set.
pub const FILTER_MASK: u32 = 0x1ff;

static PATTERN: SpinLock<Option<String>> = SpinLock::new(None);

/// /proc/sys/kernel/core_pattern.
pub fn pattern() -> String {
    let pattern = PATTERN.lock();
    format!("{}\n", pattern.as_deref().unwrap_or("core"))
}

/// EINVAL for a pattern that is too long or names a program.
pub fn set_pattern(bytes: &[u8]) -> Result<()> {
    let line = bytes.split(|&byte| byte == b'\n' || byte == 0).next();
    let text = core::str::from_utf8(line.unwrap_or_default()).map_err(|_| EINVAL)?;
    if text.len() > PATTERN_MAX || text.starts_with('|') {
        return Err(EINVAL.because("core files are not handed to programs"));
    }
    *PATTERN.lock() = Some(String::from(text));
    Ok(())
}

/// A thread's state as its process's core file shows it.
struct State {
    tid: u32,
    blocked: u64,
    registers: Registers,
    fs_base: u64,
    /// The part of FXSAVE.
    fpu: Vec<u8>,
}

impl State {
    /// Of the calling thread.
    fn of(thread: &Thread, registers: &Registers) -> State {
        /// Bytes of `struct user_fpregs_struct`.
        const FXSAVE: usize = 512;
        let mut fpu = alloc::vec![0; platform().fpu_size()];
        platform().fpu_save(&mut fpu);
        fpu.truncate(FXSAVE);
        State {
            tid: thread.tid(),
            blocked: thread.signals.blocked(),
            registers: *registers,
            fs_base: platform().fs_base(),
            fpu,
        }
    }
}

/// What the threads of a process that a core file is made of leave as they end.
#[derive(Default)]
pub struct OtherThreads(SpinLock<Option<Vec<State>>>);

impl OtherThreads {
    /// From now on they do.
    fn collect(&self) {
        *self.0.lock() = Some(Vec::new());
    }

    fn take(&self) -> Vec<State> {
        self.0.lock().take().unwrap_or_default()
    }

    /// The calling thread, one of them, is about to end.
    pub fn leave(&self, thread: &Thread, registers: &Registers) {
        if self.0.lock().is_none() {
            return;
        }
        let state = State::of(thread, registers);
        // Nobody will join it, and a debugger finds the id there.
        thread.exit.clear_child_tid.store(0, Ordering::Relaxed);
        if let Some(others) = &mut *self.0.lock() {
            others.push(state);
        }
    }
}

/// What became of a core file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written,
    NoFile,
    /// Another thread of the process writes one, or executes a program: the caller ends alone.
    AnotherStays,
}

/// Writes the core file of a process that `info` ends.
pub fn write(thread: &Arc<Thread>, registers: &Registers, info: &SigInfo) -> Outcome {
    let process = &thread.process;
    let limit = process.limits.get(Resource::Core).soft;
    if limit < LIMIT_MIN || process.dumpable.load(Ordering::Relaxed) != 1 {
        return Outcome::NoFile;
    }
    if exit::end_other_threads(thread, || process.dumped.collect()).is_err() {
        return match process.group_exit() {
            Some(_) => Outcome::NoFile,
            None => Outcome::AnotherStays,
        };
    }
    let Ok(file) = open(thread, info.number()) else {
        return Outcome::NoFile;
    };
    let mut states = process.dumped.take();
    states.insert(0, State::of(thread, registers));
    let mut dump = Dump {
        thread,
        states,
        file,
        limit,
        at: 0,
    };
    // As on Linux, a file that the limit or a full disk cuts short is still a core file.
    let _ = dump.write_all(info);
    Outcome::Written
}

fn open(thread: &Arc<Thread>, signal: u32) -> Result<Arc<OpenFile>> {
    let fs = thread.fs();
    let mut walk = Walk::new(Caller::new(thread), &fs);
    let how = OpenHow {
        flags: flags::CREAT | flags::RDWR | flags::NOFOLLOW | flags::LARGEFILE,
        mode: 0o600,
    };
    let file = namei::open(&mut walk, name(thread, signal).as_bytes(), how)?;
    let inode = file.inode().ok_or(EACCES)?;
    let metadata = inode.metadata();
    // What somebody else made, or links to, is not overwritten.
    let owner = thread.process.credentials.lock().fsuid;
    if inode.kind() != FileType::Regular || metadata.links != 1 || metadata.uid != owner {
        return Err(EACCES.because("not a plain file of the user"));
    }
    let path = file.path.clone().ok_or(EACCES)?;
    namei::truncate(&path, 0)?;
    Ok(file)
}

/// The pattern with its `%` specifiers filled in.
fn name(thread: &Thread, signal: u32) -> String {
    let process = &thread.process;
    let pattern = pattern();
    let mut out = String::new();
    let mut rest = pattern.trim_end_matches('\n').chars();
    let credentials = process.credentials.lock().clone();
    while let Some(letter) = rest.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let text = match rest.next() {
            Some('%') => String::from("%"),
            Some('p' | 'P') => format!("{}", process.pid),
            Some('i' | 'I') => format!("{}", thread.tid()),
            Some('u') => format!("{}", credentials.ruid),
            Some('g') => format!("{}", credentials.rgid),
            Some('s') => format!("{signal}"),
            Some('t') => format!("{}", platform().realtime() / crate::time::SECOND_NS),
            Some('c') => format!("{}", process.limits.get(Resource::Core).soft),
            Some('d') => format!("{}", process.dumpable.load(Ordering::Relaxed)),
            Some('h') => String::from_utf8_lossy(&crate::kernel().names().0).into_owned(),
            Some('e' | 'f') => {
                String::from_utf8_lossy(&thread.name.lock().clone()).replace('/', "!")
            }
            // Unknown ones vanish.
            _ => continue,
        };
        out.push_str(&text);
    }
    out
}

/// A piece of memory in the file.
struct Piece {
    start: u64,
    end: u64,
    protection: Protection,
    /// Bytes that the file has of it.
    stored: u64,
}

struct Dump<'a> {
    thread: &'a Arc<Thread>,
    /// The one that got the signal first.
    states: Vec<State>,
    file: Arc<OpenFile>,
    limit: u64,
    at: u64,
}

impl Dump<'_> {
    fn write_all(&mut self, info: &SigInfo) -> Result<()> {
        /// ELF header and one program header.
        const HEADER: u64 = 64;
        const ENTRY: u64 = 56;
        let pieces = self.pieces();
        let notes = self.notes(info);
        let count = pieces.len() as u64 + 1;
        let notes_at = HEADER + count * ENTRY;
        let memory_at = (notes_at + notes.len() as u64).next_multiple_of(PAGE);
        let mut head = elf_header(count as u16);
        let mut entry = |kind: u32, flags: u32, words: [u64; 6]| {
            head.extend_from_slice(&kind.to_le_bytes());
            head.extend_from_slice(&flags.to_le_bytes());
            head.extend_from_slice(words.as_bytes());
        };
        // PT_NOTE, then PT_LOADs: offset, address, physical address, sizes in file and memory.
        entry(4, 0, [notes_at, 0, 0, notes.len() as u64, 0, 4]);
        let mut offset = memory_at;
        for piece in &pieces {
            let flag = |bit, value| match piece.protection.contains(bit) {
                true => value,
                false => 0,
            };
            let rights = flag(Protection::READ, 4)
                | flag(Protection::WRITE, 2)
                | flag(Protection::EXECUTE, 1);
            let size = piece.end - piece.start;
            entry(
                1,
                rights,
                [offset, piece.start, 0, piece.stored, size, PAGE],
            );
            offset += piece.stored;
        }
        self.put(&head)?;
        self.put(&notes)?;
        self.at = memory_at;
        for piece in &pieces {
            self.put_memory(piece.start..piece.start + piece.stored)?;
        }
        // A hole at the end belongs to the file too.
        if self.at <= self.limit
            && let Some(path) = self.file.path.clone()
        {
            namei::truncate(&path, self.at)?;
        }
        Ok(())
    }

    /// Writes bytes; EFBIG at the limit.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.at + bytes.len() as u64 > self.limit {
            return Err(EFBIG);
        }
        let file = self.file.clone();
        let mut from = IoBuffer::input(bytes);
        while !from.is_empty() {
            let done = file.ops.write_at(self.thread, &file, &mut from, self.at)?;
            if done == 0 {
                return Err(EFBIG);
            }
            self.at += done as u64;
        }
        Ok(())
    }

    /// Writes the pages of a range that are there; the others are holes of the file.
    fn put_memory(&mut self, range: core::ops::Range<u64>) -> Result<()> {
        /// Bytes looked at in one go.
        const STEP: u64 = 1 << 20;
        let mm = self.thread.mm();
        let mut page = [0; PAGE as usize];
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + STEP);
            let present = mm.core(start, end - start)?;
            for (index, present) in present.iter().enumerate() {
                let address = start + index as u64 * PAGE;
                let is_there = *present != 0 && mm.read(address, &mut page).is_ok();
                if is_there && page.iter().any(|&byte| byte != 0) {
                    self.put(&page)?;
                } else {
                    self.at += PAGE;
                }
            }
            start = end;
        }
        Ok(())
    }

    fn pieces(&self) -> Vec<Piece> {
        let mm = self.thread.mm();
        let wanted = self.thread.process.core_filter.load(Ordering::Relaxed);
        let has = |bit: u32| wanted & bit != 0;
        let maps = mm.maps();
        let stored = |map: &crate::mm::MapLine| {
            let size = map.end - map.start;
            if map.flags.contains(VmaFlags::VDSO) {
                return size;
            }
            if map.flags.contains(VmaFlags::DONTDUMP) {
                return 0;
            }
            let whole = match (map.shared, map.file.is_some()) {
                (false, false) => has(filter::PRIVATE),
                (true, false) => has(filter::SHARED),
                (true, true) => has(filter::FILE_SHARED),
                (false, true) => {
                    has(filter::FILE_PRIVATE)
                        || has(filter::PRIVATE) && map.flags.contains(VmaFlags::DIRTY)
                }
            };
            if whole {
                return size;
            }
            let mut magic = [0; 4];
            let is_program = has(filter::ELF_HEADERS)
                && map.file.is_some()
                && map.offset == 0
                && mm.read(map.start, &mut magic).is_ok()
                && magic == *b"\x7fELF";
            if is_program { PAGE } else { 0 }
        };
        maps.iter()
            .map(|map| Piece {
                start: map.start,
                end: map.end,
                protection: map.protection,
                stored: stored(map),
            })
            .collect()
    }

    fn notes(&self, info: &SigInfo) -> Vec<u8> {
        const PRSTATUS: u32 = 1;
        const FPREGSET: u32 = 2;
        const PRPSINFO: u32 = 3;
        const AUXV: u32 = 6;
        const SIGINFO: u32 = 0x5349_4749;
        const FILE: u32 = 0x4649_4c45;
        let mut out = Vec::new();
        for (index, state) in self.states.iter().enumerate() {
            note(&mut out, PRSTATUS, &self.status(state, info));
            if index == 0 {
                note(&mut out, PRPSINFO, &self.description());
                note(&mut out, SIGINFO, &info.to_user());
                note(&mut out, AUXV, &self.thread.mm().program().auxv);
                note(&mut out, FILE, &self.files());
            }
            note(&mut out, FPREGSET, &state.fpu);
        }
        out
    }

    /// `struct elf_prstatus`.
    fn status(&self, state: &State, info: &SigInfo) -> [u8; 336] {
        let process = &self.thread.process;
        let mut out = [0; 336];
        put(&mut out, 0, &info.signal.to_le_bytes());
        put(&mut out, 4, &info.code.to_le_bytes());
        put(&mut out, 12, &(info.signal as u16).to_le_bytes());
        put(&mut out, 16, &process.signals.pending_mask().to_le_bytes());
        put(&mut out, 24, &state.blocked.to_le_bytes());
        let [_, parent, group, session] = self.ids();
        put(&mut out, 32, [state.tid, parent, group, session].as_bytes());
        let words = crate::ptrace::registers::words(&state.registers, state.fs_base);
        put(&mut out, 112, words.as_bytes());
        put(&mut out, 328, &1u32.to_le_bytes());
        out
    }

    fn ids(&self) -> [u32; 4] {
        let process = &self.thread.process;
        [
            process.pid,
            process.parent_pid(),
            process.group(),
            process.session(),
        ]
    }

    /// `struct elf_prpsinfo`.
    fn description(&self) -> [u8; 136] {
        let mut out = [0; 136];
        out[1] = b'R';
        let credentials = self.thread.process.credentials.lock().clone();
        put(
            &mut out,
            16,
            [credentials.ruid, credentials.rgid].as_bytes(),
        );
        put(&mut out, 24, self.ids().as_bytes());
        let name = self.thread.name.lock().clone();
        put(&mut out, 40, &name[..name.len().min(15)]);
        let mm = self.thread.mm();
        let range = mm.program().arguments;
        let mut arguments = [0; 79];
        let len = (range.end.saturating_sub(range.start) as usize).min(arguments.len());
        if mm.read(range.start, &mut arguments[..len]).is_ok() {
            let ended = arguments[..len].iter_mut();
            ended
                .filter(|byte| **byte == 0)
                .for_each(|byte| *byte = b' ');
            put(&mut out, 56, &arguments[..len]);
        }
        out
    }

    /// NT_FILE: which files lie where.
    fn files(&self) -> Vec<u8> {
        let root = self.thread.fs().root();
        let maps = self.thread.mm().maps();
        let mut words = Vec::new();
        let mut names = Vec::new();
        for map in &maps {
            if let Some(path) = &map.path {
                words.extend([map.start, map.end, map.offset / PAGE]);
                names.extend(path.display_path(&root));
                names.push(0);
            }
        }
        let mut out = Vec::new();
        out.extend_from_slice(&(words.len() as u64 / 3).to_le_bytes());
        out.extend_from_slice(&PAGE.to_le_bytes());
        out.extend_from_slice(words.as_bytes());
        out.extend(names);
        out
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A note of "CORE".
fn note(out: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
    out.extend_from_slice([5, bytes.len() as u32, kind].as_bytes());
    out.extend_from_slice(b"CORE\0\0\0\0");
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn elf_header(entries: u16) -> Vec<u8> {
    /// ET_CORE, EM_X86_64.
    const KIND: [u16; 2] = [4, 62];
    let mut out = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.extend_from_slice(KIND.as_bytes());
    out.extend_from_slice(&1u32.to_le_bytes());
    // Entry point; program headers follow the header; no sections.
    out.extend_from_slice([0u64, 64, 0].as_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    out.extend_from_slice([64u16, 56, entries, 0, 0, 0].as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::process;

    #[test]
    fn names_follow_the_pattern() {
        let thread = process();
        *thread.name.lock() = b"a/b".to_vec();
        set_pattern(b"/tmp/%e.%p.%s.%%.%Q\n").unwrap();
        let expected = format!("/tmp/a!b.{}.11.%.", thread.process.pid);
        assert_eq!(name(&thread, 11), expected);
        assert_eq!(set_pattern(b"|/bin/handler"), Err(EINVAL));
        set_pattern(b"core").unwrap();
        assert_eq!(pattern(), "core\n");
    }

    #[test]
    fn headers_have_their_sizes() {
        assert_eq!(elf_header(3).len(), 64);
        let mut notes = Vec::new();
        note(&mut notes, 1, b"12345");
        assert_eq!(notes.len(), 12 + 8 + 8);
    }
}
