//! `bulla run --gdb`: waits for gdb, and gives it the symbols of what runs in the enclave.
//!
//! An emulated enclave is memory of this process, so gdb attaches to it. The enclave names the
//! objects that it maps; each is copied out of the image into a directory of its own, and a script
//! there adds its symbols where it is mapped. For objects that come later the script has a
//! breakpoint in [`object_is_mapped`], which reads the newest line and goes on.

use crate::failure::Failure;
use bulla_abi::config::Rootfs;
use bulla_vault::{BlockSource, Erofs, FileKind, Options, SourceFault};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Signals by which the emulator and the loader work; gdb must not stop for them.
const OURS: &str = "SIGILL SIGSYS SIGSEGV SIGBUS SIGFPE SIG61 SIG62 SIG63 SIG64";

/// Waits for gdb and serves it.
pub struct Debugger {
    directory: PathBuf,
    image: Erofs<Image>,
}

/// The file of the root file system.
struct Image(File);

impl BlockSource for Image {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceFault> {
        self.0.read_exact_at(buf, offset).map_err(|_| SourceFault)
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        hash.finalize().into()
    }
}

/// Where the script's breakpoint is: a new object's symbols wait in `new.gdb`.
#[inline(never)]
extern "C" fn object_is_mapped() {
    // Not empty, or the linker may join it with another function that is.
    std::hint::black_box(object_is_mapped as *const () as usize);
}

impl Debugger {
    /// A directory for the script and the objects.
    pub fn new(file: &Path, rootfs: &Rootfs) -> Result<Debugger, Failure> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Failure::new(format!("--gdb: {what}: {error}"))
        };
        let base = std::env::temp_dir();
        let directory = base.join(format!("bulla-gdb-{}", std::process::id()));
        let shown = directory.display().to_string();
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(&format!("cannot empty {shown}"), &error));
            }
            _ => {}
        }
        fs::create_dir(&directory)
            .map_err(|error| failed(&format!("cannot make {shown}"), &error))?;
        let open = File::open(file)
            .map_err(|error| failed(&format!("cannot open {}", file.display()), &error))?;
        let image = Erofs::open(Image(open), rootfs, Options::default())
            .map_err(|error| failed("the image cannot be read", &error))?;
        let debugger = Debugger { directory, image };
        debugger
            .write_script()
            .map_err(|error| failed(&format!("cannot write to {shown}"), &error))?;
        Ok(debugger)
    }

    /// Where everything is, to be removed at the end.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn script(&self) -> PathBuf {
        self.directory.join("attach.gdb")
    }

    fn write_script(&self) -> std::io::Result<()> {
        let directory = self.directory.display();
        let mut text = String::new();
        let hook = object_is_mapped as *const () as usize;
        let _ = write!(
            text,
            "# gdb -x {script} -p {pid}\n\
             set pagination off\n\
             set confirm off\n\
             set breakpoint pending on\n\
             handle {OURS} nostop noprint pass\n\
             break *{hook:#x}\n\
             commands\n\
             silent\n\
             source {directory}/new.gdb\n\
             continue\n\
             end\n\
             source {directory}/objects.gdb\n",
            script = self.script().display(),
            pid = std::process::id(),
        );
        fs::write(self.script(), text)?;
        fs::write(self.directory.join("objects.gdb"), "")
    }

    /// Copies a file of the image into the directory; its first segment's address.
    fn extract(&self, path: &str, to: &Path) -> Option<u64> {
        let mut inode = self.image.root().ok()?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let entry = self.image.lookup(&inode, name.as_bytes()).ok()?;
            inode = self.image.inode(entry.nid).ok()?;
        }
        if inode.kind() != FileKind::Regular {
            return None;
        }
        fs::create_dir_all(to.parent()?).ok()?;
        let mut file = File::create(to).ok()?;
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        let mut first = None;
        while offset < inode.size() {
            let read = self.image.read_at(&inode, offset, &mut buffer).ok()?;
            if read == 0 {
                break;
            }
            if offset == 0 {
                first = first_segment(&buffer[..read]);
            }
            file.write_all(&buffer[..read]).ok()?;
            offset += read as u64;
        }
        first
    }

    fn symbols(&self, address: u64, path: &str) -> String {
        let copy = self
            .directory
            .join("root")
            .join(path.trim_start_matches('/'));
        let first = match copy.exists() {
            true => fs::read(&copy).ok().and_then(|bytes| first_segment(&bytes)),
            false => self.extract(path, &copy),
        };
        match first {
            Some(first) => format!(
                "add-symbol-file {} -o {:#x}\n",
                copy.display(),
                address.wrapping_sub(first)
            ),
            // Made by the container itself, or not an ELF file.
            None => format!("# {path} at {address:#x} is not a program of the image\n"),
        }
    }
}

/// The page of the first loadable segment of an ELF file.
fn first_segment(elf: &[u8]) -> Option<u64> {
    const PT_LOAD: u32 = 1;
    let word = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    if elf.get(..4)? != b"\x7fELF" {
        return None;
    }
    let (table, size, count) = (word(32)?, half(54)?, half(56)?);
    for index in 0..usize::from(count) {
        let at = usize::try_from(table).ok()? + index * usize::from(size);
        let kind = u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?);
        if kind == PT_LOAD {
            return Some(word(at + 16)? & !0xfff);
        }
    }
    None
}

impl bulla_loader::Debugger for Debugger {
    fn mapped(&self, address: u64, path: &str) {
        let line = self.symbols(address, path);
        let written = fs::write(self.directory.join("new.gdb"), &line).and_then(|()| {
            let mut all = File::options()
                .append(true)
                .open(self.directory.join("objects.gdb"))?;
            all.write_all(line.as_bytes())
        });
        if let Err(error) = written {
            eprintln!("bulla: warning: --gdb: no symbols for {path}: {error}");
            return;
        }
        object_is_mapped();
    }

    fn attach(&self) {
        eprintln!(
            "bulla: waiting for a debugger: gdb -x {} -p {}",
            self.script().display(),
            std::process::id()
        );
        while !is_traced() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Whether a debugger holds this thread: only then does the next instruction wait for it.
fn is_traced() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|pid| pid.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_segment_of_this_program() {
        let program = fs::read("/proc/self/exe").unwrap();
        assert_eq!(first_segment(&program), Some(0), "a PIE begins at 0");
        assert_eq!(first_segment(b"#!/bin/sh\n"), None);
        assert_eq!(first_segment(&program[..60]), None);
    }

    #[test]
    fn nobody_traces_this_test() {
        assert!(!is_traced());
    }
}
