//! `bulla check`: what will work of an image, before it is converted.
//!
//! Reads the image's files and scans its executables: nothing of the image is run.

use crate::failure::Failure;
use crate::registry::RegistryArguments;
use crate::workload::Source;
use bulla_abi::sites::{Form, Kind};
use bulla_image::find_sites;
use bulla_libos::syscall::{Support, table::ROWS};
use bulla_oci::ImageConfig;
use bulla_oci::listing::{FileKind, Files, Found, shown};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// Programs of more bytes are not scanned.
const PROGRAM_MAX: u64 = 512 << 20;
/// How far before a `syscall` its number is looked for.
const BACK: usize = 24;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 no problem found, 1 warnings, 2 it will not work, 125 the \
    image cannot be read.\n\nExample:\n  bulla check redis.tar"
)]
pub struct Arguments {
    /// The image
    #[arg(required_unless_present = "rootfs")]
    pub image: Option<OsString>,

    /// A plain directory instead of an image
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    pub rootfs: Option<PathBuf>,

    #[command(flatten)]
    pub registry: RegistryArguments,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Info,
    Warning,
    Error,
}

#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    about: &'static str,
    what: String,
}

#[derive(Debug, Serialize)]
struct Report {
    architecture: &'static str,
    entry_point: String,
    libc: BTreeSet<String>,
    programs: usize,
    static_programs: usize,
    files: usize,
    bytes: u64,
    /// Bytes of enclave memory that a first start should have.
    memory_estimate: u64,
    findings: Vec<Finding>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let source = match (&arguments.rootfs, &arguments.image) {
        (Some(directory), _) => Source::Directory(directory),
        (None, Some(image)) => Source::Image(image),
        (None, None) => return Err(Failure::new("no image given; see `bulla check --help`")),
    };
    let stored = source.stored(&arguments.registry.options())?;
    let files = Files::open(&stored.path, &stored.rootfs)?;
    let report = Scan::of(&files)?.report(&stored.config);
    let worst = report.findings.iter().map(|finding| finding.level).max();
    if arguments.json {
        crate::print_json(&report)?;
    } else {
        crate::print(&report.to_string())?;
    }
    Ok(match worst {
        Some(Level::Error) => 2,
        Some(Level::Warning) => 1,
        _ => 0,
    })
}

/// What was seen in the files.
#[derive(Default)]
struct Scan {
    files: usize,
    bytes: u64,
    paths: BTreeSet<String>,
    programs: Vec<Program>,
    setuid: Vec<String>,
    links: BTreeMap<String, String>,
}

/// An ELF file.
pub struct Program {
    path: String,
    size: u64,
    machine: u16,
    /// 64 bits, little endian.
    is_64: bool,
    interpreter: Option<String>,
    library: bool,
    /// Numbers of system calls in its code.
    calls: BTreeSet<u32>,
    writable: bool,
}

impl Scan {
    fn of(files: &Files) -> Result<Scan, Failure> {
        let mut scan = Scan::default();
        for Found { path, inode } in files.walk()? {
            let name = shown(&path);
            scan.files += 1;
            match inode.kind() {
                FileKind::Regular => {}
                FileKind::Symlink => {
                    scan.links.insert(name.clone(), shown(&files.link(&inode)?));
                    scan.paths.insert(name);
                    continue;
                }
                _ => continue,
            }
            scan.bytes += inode.size();
            scan.paths.insert(name.clone());
            let executable = inode.mode() & 0o111 != 0;
            if executable && inode.mode() & 0o6000 != 0 {
                scan.setuid.push(name.clone());
            }
            let mut magic = [0; 4];
            let likely = executable || name.contains(".so");
            if !likely || inode.size() > PROGRAM_MAX || files.read(&inode, 0, &mut magic)? < 4 {
                continue;
            }
            if magic != *b"\x7fELF" {
                continue;
            }
            let mut bytes = vec![0; inode.size() as usize];
            let mut have = 0;
            while have < bytes.len() {
                match files.read(&inode, have as u64, &mut bytes[have..])? {
                    0 => break,
                    read => have += read,
                }
            }
            scan.programs.extend(Program::parse(name, &bytes));
        }
        Ok(scan)
    }

    fn report(&self, config: &ImageConfig) -> Report {
        let mut findings = Vec::new();
        let mut say = |level, about, what: String| findings.push(Finding { level, about, what });
        let foreign: Vec<&Program> = self
            .programs
            .iter()
            .filter(|program| !program.is_ours())
            .collect();
        if let Some(first) = foreign.first() {
            let level = match foreign.len() == self.programs.len() {
                true => Level::Error,
                false => Level::Warning,
            };
            say(
                level,
                "architecture",
                format!(
                    "{} programs are not for x86-64 and cannot run, such as {} ({})",
                    foreign.len(),
                    first.path,
                    first.architecture()
                ),
            );
        }
        let entry = [&config.entrypoint[..], &config.cmd].concat();
        match entry.first() {
            None => say(
                Level::Warning,
                "entry point",
                "the image names no program; give one after the image, or `entrypoint` in the manifest".into(),
            ),
            Some(program) if !self.finds(program, config) => say(
                Level::Error,
                "entry point",
                format!("{program} is not in the image, neither as a path nor in PATH"),
            ),
            Some(_) => {}
        }
        let libc: BTreeSet<String> = self.programs.iter().filter_map(Program::libc).collect();
        for (path, names) in self.refused() {
            say(
                Level::Warning,
                "system calls",
                format!(
                    "{path} contains calls that answer ENOSYS: {}",
                    names.join(", ")
                ),
            );
        }
        if !self.setuid.is_empty() {
            say(
                Level::Info,
                "setuid",
                format!(
                    "{} setuid or setgid files: all programs of a container are one trust domain, so \
                     they protect nothing against the others ({})",
                    self.setuid.len(),
                    some(&self.setuid)
                ),
            );
        }
        if let Some(runtime) = self.jit() {
            say(
                Level::Info,
                "JIT",
                format!(
                    "{runtime} generates code: its system calls are found when they first trap, so \
                     start-up is slower"
                ),
            );
        }
        let shell = ["/bin/sh", "/usr/bin/sh", "/bin/bash", "/bin/busybox"];
        let has_shell = shell.iter().any(|path| self.paths.contains(*path));
        let wants_shell = entry.first().is_some_and(|first| {
            ["sh", "bash", "ash", "dash"].contains(&first.rsplit('/').next().unwrap_or_default())
        });
        if wants_shell && !has_shell {
            say(
                Level::Error,
                "shell",
                "the entry point is a shell, but the image has none".into(),
            );
        } else if wants_shell {
            say(
                Level::Info,
                "shell",
                "the entry point goes through a shell; its fork and exec run inside the enclave"
                    .into(),
            );
        }
        let writable: Vec<String> = self
            .programs
            .iter()
            .filter(|p| p.writable)
            .map(|p| p.path.clone())
            .collect();
        if !writable.is_empty() {
            say(
                Level::Warning,
                "memory",
                format!(
                    "segments that are writable and executable: {}",
                    some(&writable)
                ),
            );
        }
        Report {
            architecture: "linux/amd64",
            entry_point: format!("{entry:?}"),
            libc,
            programs: self.programs.len(),
            static_programs: self
                .programs
                .iter()
                .filter(|program| program.is_static())
                .count(),
            files: self.files,
            bytes: self.bytes,
            memory_estimate: self.memory(),
            findings,
        }
    }

    /// Whether a program of this name can be found as `execvp` does.
    fn finds(&self, program: &str, config: &ImageConfig) -> bool {
        let has = |path: &str| {
            self.resolve(path, 0)
                .is_some_and(|path| self.paths.contains(&path))
        };
        if program.contains('/') {
            let absolute = match program.starts_with('/') {
                true => program.to_owned(),
                false => format!("{}/{program}", config.workdir.trim_end_matches('/')),
            };
            return has(&absolute);
        }
        let path = config
            .env
            .iter()
            .find_map(|line| line.strip_prefix("PATH="));
        let path = path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        path.split(':').any(|dir| has(&format!("{dir}/{program}")))
    }

    /// The path without symbolic links.
    fn resolve(&self, path: &str, depth: u32) -> Option<String> {
        if depth > 40 {
            return None;
        }
        let mut done = String::new();
        let parts: Vec<&str> = path
            .split('/')
            .filter(|part| !matches!(*part, "" | "."))
            .collect();
        for (index, part) in parts.iter().enumerate() {
            if *part == ".." {
                done.truncate(done.rfind('/').unwrap_or(0));
                continue;
            }
            let next = format!("{done}/{part}");
            if let Some(target) = self.links.get(&next) {
                let base = if target.starts_with('/') { "" } else { &done };
                let rest = parts[index + 1..].join("/");
                return self.resolve(&format!("{base}/{target}/{rest}"), depth + 1);
            }
            done = next;
        }
        Some(done)
    }

    /// Programs whose own code (not the C library's) has calls that are refused.
    fn refused(&self) -> Vec<(String, Vec<&'static str>)> {
        let support: BTreeMap<u32, (&'static str, bool)> = ROWS
            .iter()
            .map(|row| {
                (
                    row.number as u32,
                    (row.name, row.support != Support::Missing),
                )
            })
            .collect();
        let mut out = Vec::new();
        for program in self.programs.iter().filter(|program| !program.is_libc()) {
            let names = program
                .calls
                .iter()
                .filter_map(|number| match support.get(number) {
                    Some((name, false)) => Some(*name),
                    _ => None,
                });
            let names: Vec<&str> = names.collect();
            if !names.is_empty() {
                out.push((program.path.clone(), names));
            }
        }
        out
    }

    fn jit(&self) -> Option<&'static str> {
        let known = [
            ("libjvm.so", "the Java virtual machine"),
            ("/node", "Node.js"),
            ("/nodejs", "Node.js"),
            ("libcoreclr.so", ".NET"),
            ("libluajit", "LuaJIT"),
            ("/pypy3", "PyPy"),
            ("libLLVM", "LLVM"),
        ];
        let has = |part: &str| {
            self.programs
                .iter()
                .any(|program| program.path.contains(part))
        };
        known
            .into_iter()
            .find(|(part, _)| has(part))
            .map(|(_, name)| name)
    }

    /// Room for the largest programs and libraries twice, and for a heap; runtimes with a heap of
    /// their own reserve more.
    fn memory(&self) -> u64 {
        let mut sizes: Vec<u64> = self.programs.iter().map(|program| program.size).collect();
        sizes.sort_unstable();
        let largest: u64 = sizes.iter().rev().take(8).sum();
        let base = if self.jit().is_some() {
            512 << 20
        } else {
            64 << 20
        };
        (base + 2 * largest).next_multiple_of(64 << 20)
    }
}

fn some(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(5).map(String::as_str).collect();
    match names.len() {
        0..=5 => shown.join(", "),
        more => format!("{} and {} more", shown.join(", "), more - 5),
    }
}

impl Program {
    /// Reads a file; `None` when it is too damaged to tell.
    pub fn parse(path: String, bytes: &[u8]) -> Option<Program> {
        let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| {
            let value = u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?);
            usize::try_from(value).ok()
        };
        let is_64 = bytes.get(4) == Some(&2) && bytes.get(5) == Some(&1);
        let mut program = Program {
            path,
            size: bytes.len() as u64,
            machine: half(18)?,
            is_64,
            interpreter: None,
            library: false,
            calls: BTreeSet::new(),
            writable: false,
        };
        if !program.is_ours() {
            return Some(program);
        }
        let (start, size, count) = (long(32)?, usize::from(half(54)?), usize::from(half(56)?));
        let mut dynamic = false;
        for index in 0..count {
            let at = start.checked_add(index.checked_mul(size)?)?;
            match (word(at), word(at + 4)) {
                (Some(1), Some(flags)) if flags & 3 == 3 => program.writable = true,
                (Some(2), _) => dynamic = true,
                (Some(3), _) => {
                    let (offset, len) = (long(at + 8)?, long(at + 32)?);
                    let text = bytes.get(offset..offset.checked_add(len)?)?;
                    program.interpreter = Some(shown(text.split(|byte| *byte == 0).next()?));
                }
                _ => {}
            }
        }
        // A library has no interpreter; a static PIE has none either, but an entry point.
        program.library = dynamic && program.interpreter.is_none() && program.path.contains(".so");
        if let Ok(list) = find_sites(bytes) {
            for site in list.sites.iter().filter(|site| site.kind == Kind::Syscall) {
                program
                    .calls
                    .extend(number(bytes, site.offset as usize, site.form));
            }
        }
        Some(program)
    }

    fn is_ours(&self) -> bool {
        self.is_64 && self.machine == 62
    }

    fn architecture(&self) -> String {
        match self.machine {
            3 => "i386".into(),
            40 => "arm".into(),
            183 => "arm64".into(),
            243 => "riscv".into(),
            62 => "x86-64 with 32-bit pointers".into(),
            other => format!("machine {other}"),
        }
    }

    /// Whether it needs no interpreter and is no library.
    pub fn is_static(&self) -> bool {
        self.is_ours() && self.interpreter.is_none() && !self.library
    }

    fn libc(&self) -> Option<String> {
        let interpreter = self.interpreter.as_deref()?;
        Some(if interpreter.contains("ld-linux") {
            "glibc".into()
        } else if interpreter.contains("ld-musl") {
            "musl".into()
        } else {
            interpreter.to_owned()
        })
    }

    fn is_libc(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        [
            "libc.so",
            "libc-",
            "libc.musl",
            "ld-linux",
            "ld-musl",
            "libpthread",
            "ld-2",
            "ld.so",
        ]
        .iter()
        .any(|start| name.starts_with(start))
    }
}

/// The number that a site's code puts into eax shortly before.
fn number(bytes: &[u8], site: usize, form: Form) -> Option<u32> {
    let at = |start: usize| {
        Some(u32::from_le_bytes(
            bytes.get(start..start + 4)?.try_into().ok()?,
        ))
    };
    let plausible = |number: u32| (number < 1024).then_some(number);
    if let Form::Number { .. } = form {
        return plausible(at(site.checked_sub(4)?)?);
    }
    (site.saturating_sub(BACK)..site.saturating_sub(4))
        .rev()
        .find_map(|start| match bytes.get(start)? {
            0xb8 => plausible(at(start + 1)?),
            _ => None,
        })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let libc: Vec<&str> = self.libc.iter().map(String::as_str).collect();
        let libc = if libc.is_empty() {
            "none (static programs only)".into()
        } else {
            libc.join(", ")
        };
        writeln!(f, "architecture  {}", self.architecture)?;
        writeln!(f, "entry point   {}", self.entry_point)?;
        writeln!(f, "C library     {libc}")?;
        writeln!(
            f,
            "programs      {}, {} of them static",
            self.programs, self.static_programs
        )?;
        writeln!(
            f,
            "files         {}, {:.1} MB",
            self.files,
            self.bytes as f64 / 1e6
        )?;
        writeln!(
            f,
            "memory        try {} MiB first",
            self.memory_estimate >> 20
        )?;
        for finding in &self.findings {
            let level = match finding.level {
                Level::Info => "note",
                Level::Warning => "warning",
                Level::Error => "error",
            };
            writeln!(f, "{level}: {}: {}", finding.about, finding.what)?;
        }
        let worst = self.findings.iter().map(|finding| finding.level).max();
        f.write_str(match worst {
            Some(Level::Error) => "this will not work as it is\n",
            Some(Level::Warning) => "this will probably work, see the warnings\n",
            _ => "nothing found that would not work\n",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_before_a_call() {
        let code = [0xb8, 39, 0, 0, 0, 0x0f, 0x05];
        assert_eq!(number(&code, 5, Form::Number { len: 5 }), Some(39));
        let code = [0xb8, 231, 0, 0, 0, 0x90, 0x90, 0x0f, 0x05];
        assert_eq!(number(&code, 7, Form::Trap), Some(231));
        assert_eq!(number(&[0x0f, 0x05], 0, Form::Trap), None);
    }

    #[test]
    fn links_are_followed_as_in_the_container() {
        let mut scan = Scan::default();
        scan.links.insert("/bin".into(), "usr/bin".into());
        scan.links
            .insert("/usr/bin/python3".into(), "python3.11".into());
        scan.links.insert("/loop".into(), "/loop".into());
        scan.paths.insert("/usr/bin/python3.11".into());
        let config = ImageConfig::default();
        assert!(scan.finds("/bin/python3", &config) && scan.finds("python3", &config));
        assert!(!scan.finds("/loop/x", &config) && !scan.finds("perl", &config));
    }

    #[test]
    fn odd_files_are_no_programs() {
        for len in 0..64 {
            let mut bytes = vec![0xff; len];
            bytes.splice(..len.min(6), b"\x7fELF\x02\x01".iter().copied().take(len));
            let _ = Program::parse("/x".into(), &bytes);
        }
    }
}
