//! What the tests share: small static PIE programs made with gcc, a configuration, and the
//! `sgxs-tools` programs, installed on first use.
#![allow(dead_code, reason = "every test uses a part of it")]

use bulla_abi::boot::{BootHeader, MAGIC};
use bulla_abi::config::{Config, Rootfs, VERSION};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A bootstrap and a runtime that do nothing, but have everything a layout has to cope with:
/// relocations, read-only data, zeroed data, a boot header.
pub struct Programs {
    pub bootstrap: Vec<u8>,
    pub runtime: Vec<u8>,
}

/// The programs, built once per test binary.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| Programs {
        bootstrap: bootstrap(),
        runtime: runtime(0),
    })
}

fn bootstrap() -> Vec<u8> {
    let source = format!(
        "struct header {{ unsigned long magic; char rest[{}]; }};
         struct header BULLA_BOOT_HEADER = {{ {MAGIC:#x}ul, {{ 0 }} }};
         char stack[5000];
         struct header *pointer = &BULLA_BOOT_HEADER;
         void _start(void) {{ stack[0] = pointer->rest[0]; for (;;); }}",
        BootHeader::SIZE - 8
    );
    compile("bootstrap", &source, &[])
}

/// A runtime with `ballast` bytes of read-only data.
pub fn runtime(ballast: usize) -> Vec<u8> {
    let source = format!(
        "const char text[] = \"read-only\";
         const char ballast[{ballast} + 1] = {{ 1 }};
         int zero[20000];
         int number = 5;
         const void *const table[] = {{ text, ballast, zero, &number }};
         void *writable[] = {{ zero, &number, writable }};
         void _start(void) {{ zero[0] = (long) table[number] + (long) writable[number];
             for (;;); }}"
    );
    compile("runtime", &source, &[])
}

/// Compiles C to a static PIE without a C library.
pub fn compile(name: &str, source: &str, options: &[&str]) -> Vec<u8> {
    // Each for itself: tests compile the same programs at the same time.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = temporary(&format!("compile-{name}-{}-{number}", std::process::id()));
    let (input, output) = (folder.join("input.c"), folder.join("output"));
    std::fs::write(&input, source).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args([
        "-O1",
        "-nostdlib",
        "-static-pie",
        "-fPIE",
        "-Wl,--build-id=none",
        "-o",
    ]);
    run(gcc.arg(&output).args(options).arg(&input));
    let program = std::fs::read(&output).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    program
}

/// A configuration with this much memory and this many threads.
pub fn config(memory: u64, threads: u32) -> Config {
    Config {
        version: VERSION,
        rootfs: Rootfs {
            data_size: 4096,
            tree_size: 0,
            salt: [1; 32],
            root_hash: [2; 32],
            sites: None,
        },
        argv: vec![b"/bin/true".to_vec()],
        env: vec![b"PATH=/bin".to_vec()],
        cwd: b"/".to_vec(),
        user: String::new(),
        hostname: "test".into(),
        memory,
        threads,
        terminal: false,
        files: Vec::new(),
        stop_signal: 15,
        insecure: Vec::new(),
        ..Config::default()
    }
}

/// An empty folder for one use, inside cargo's own temporary folder.
pub fn temporary(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Runs a command that must succeed; gives its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A fresh key of the right kind, made by OpenSSL, in `folder`.
pub fn openssl_key(folder: &Path) -> PathBuf {
    let path = folder.join("key.pem");
    run(Command::new("openssl")
        .args(["genrsa", "-3", "-out"])
        .arg(&path)
        .arg("3072"));
    path
}

/// The folder with the `sgxs-tools` programs; installs them on first use (about 3 minutes, needs
/// Debian's protobuf-compiler, libssl-dev and pkg-config).
pub fn sgxs_tools() -> PathBuf {
    let cache = std::env::var_os("BULLA_TEST_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/bulla-tests"),
        PathBuf::from,
    );
    let root = cache.join("sgxs-tools");
    if !root.join("bin/sgxs-sign").exists() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args([
            "install",
            "sgxs-tools",
            "--version",
            "0.10.0",
            "--locked",
            "--root",
        ]);
        // The outer build's settings are not meant for this one.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG") || text == "RUSTFLAGS" || text == "CARGO_TARGET_DIR" {
                cargo.env_remove(&name);
            }
        }
        run(cargo.arg(&root));
    }
    root.join("bin")
}
