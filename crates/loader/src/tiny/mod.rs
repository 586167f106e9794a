//! Whole runs of a tiny hand-made enclave: loaded, launched and ended as a real one, on the
//! emulated platform and on the hardware backend with the test double under it.
//!
//! `launch` is once per process and its process ends afterwards, so each run is a child process:
//! this test binary again, told to run only [`child`].

mod code;

use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bulla_abi::hostcall::{BootParams, HostCall};
use bulla_abi::layout::{
    BOOTSTRAP_OFFSET, CONFIG_OFFSET, LayoutKind, SSA_FRAME_PAGES, slot, slot_start,
};
use bulla_image::{Date, Description, SigningKey};
use bulla_sgx::{Attributes, Measurement, SecInfo, Secs, Tcs, flags};
use code::{field, op};

use crate::backend::Backend;
use crate::backend::emulated::{Emulated, Profile};
use crate::backend::hardware::{Double, Hardware};
use crate::{Content, Enclave, Options, PageRun, Stats, launch};

const KIND: LayoutKind = LayoutKind::Static;
const CODE: u64 = KIND.runtime_start() + BOOTSTRAP_OFFSET;
const SCRIPT_SIZE: u64 = 0x4000;
const NONE: u64 = u64::MAX;
/// A key for tests only.
const KEY: &str = include_str!("../../tests/emulator/signer-a.pem");

/// Where slot `index` keeps the address of its shared area.
fn shared_of(index: u32) -> u64 {
    slot_start(KIND, index) + slot::AREA + field::SHARED
}

fn script_of(index: u32) -> u64 {
    KIND.runtime_start() + CONFIG_OFFSET + u64::from(index) * SCRIPT_SIZE
}

/// What a slot does, step by step.
#[derive(Default)]
struct Script(Vec<[u64; 6]>);

impl Script {
    fn step(mut self, operation: u64, arguments: [u64; 4]) -> Self {
        let [a, b, c, d] = arguments;
        self.0.push([operation, a, b, c, d, 0]);
        self
    }

    fn call(self, call: HostCall, arguments: [u64; 4]) -> Self {
        self.step(call as u64, arguments)
    }

    fn expect(self, result: i64) -> Self {
        self.step(op::EXPECT, [result as u64, 0, 0, 0])
    }

    /// Bytes into the data buffer.
    fn put(mut self, bytes: &[u8]) -> Self {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self = self.step(
                op::STORE,
                [index as u64 * 8, u64::from_le_bytes(word), 0, 0],
            );
        }
        self
    }

    fn exit(self, code: u64) -> Self {
        self.call(HostCall::Exit, [code << 8, 0, 0, 0])
    }

    fn bytes(&self) -> Vec<u8> {
        let words = self.0.iter().flatten();
        let mut bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        assert!(bytes.len() as u64 <= SCRIPT_SIZE);
        bytes.resize(SCRIPT_SIZE as usize, 0);
        bytes
    }
}

/// Collects pages and their measurement.
struct Builder {
    measurement: Measurement,
    runs: Vec<PageRun>,
}

impl Builder {
    fn add(&mut self, address: u64, data: Vec<u8>, info: SecInfo) {
        for (index, page) in data.chunks_exact(4096).enumerate() {
            let page = page.try_into().unwrap();
            self.measurement
                .page(address + index as u64 * 4096, info, page);
        }
        let content = Content::Data(data.into());
        self.runs.push(PageRun {
            address,
            flags: info.0,
            measured: true,
            content,
        });
    }
}

fn enclave(scripts: &[Script]) -> Enclave {
    let attributes = Attributes {
        flags: flags::MODE64BIT,
        xfrm: 7,
    };
    let secs = Secs {
        size: KIND.elrange_size(),
        base_addr: 0,
        ssa_frame_size: SSA_FRAME_PAGES as u32,
        misc_select: 0,
        cet_leg_bitmap_offset: 0,
        cet_attributes: 0,
        attributes,
        mrenclave: [0; 32],
        mrsigner: [0; 32],
        config_id: [0; 64],
        isv_prod_id: 0,
        isv_svn: 0,
        config_svn: 0,
    };
    let mut builder = Builder {
        measurement: Measurement::ecreate(secs.ssa_frame_size, secs.size),
        runs: Vec::new(),
    };
    let mut text = code::bytes().to_vec();
    text.resize(text.len().next_multiple_of(4096), 0xcc);
    builder.add(CODE, text, SecInfo::regular(5));
    for (index, script) in scripts.iter().enumerate() {
        let index = index as u32;
        let start = slot_start(KIND, index);
        let mut area = vec![0u8; 4096];
        let gprs = start + slot::SSA + SSA_FRAME_PAGES * 4096 - 184;
        area[field::STEP..field::STEP + 8].copy_from_slice(&script_of(index).to_le_bytes());
        area[field::GPRS..field::GPRS + 8].copy_from_slice(&gprs.to_le_bytes());
        builder.add(script_of(index), script.bytes(), SecInfo::regular(3));
        builder.add(start + slot::AREA, area, SecInfo::regular(3));
        let frames = vec![0; slot::SSA_SIZE as usize];
        builder.add(start + slot::SSA, frames, SecInfo::regular(3));
        let tcs = Tcs {
            flags: 0,
            ossa: start + slot::SSA,
            cssa: 0,
            nssa: 3,
            oentry: CODE,
            ofs_base: start + slot::AREA,
            ogs_base: start + slot::AREA,
            fs_limit: 0xfff,
            gs_limit: 0xfff,
        };
        builder.add(start + slot::TCS, tcs.to_bytes().to_vec(), SecInfo::tcs());
    }
    let description = Description {
        mrenclave: builder.measurement.finish(),
        date: Date::new(2026, 11, 23).unwrap(),
        vendor: 0,
        sw_defined: 0,
        isv_prod_id: 0,
        isv_svn: 0,
        isv_family_id: [0; 16],
        isv_ext_prod_id: [0; 16],
        attributes,
        attribute_mask: Attributes {
            flags: !0,
            xfrm: !0,
        },
        misc_select: 0,
        misc_mask: !0,
    };
    let key = SigningKey::from_pem(KEY).unwrap();
    Enclave {
        kind: KIND,
        secs: secs.to_bytes(),
        runs: builder.runs,
        sigstruct: description.sign(&key).unwrap().to_bytes(),
        slots: scripts.len() as u32,
    }
}

/// What the enclave does in each scenario.
fn scenario(name: &str) -> Vec<Script> {
    let new = Script::default;
    let eintr = -i64::from(libc::EINTR);
    let taken = 1 << (libc::SIGTERM - 1);
    match name {
        "hello" => vec![
            new()
                .put(b"hello\n")
                .call(HostCall::Write, [1, 6, NONE, 0])
                .expect(6)
                .step(op::PARAMETER, [0; 4])
                .expect(size_of::<BootParams>() as i64)
                .exit(42),
        ],
        "fault" => vec![new().step(op::FAULT, [0; 4]).exit(5)],
        // Slot 1 wakes slot 0 and gives itself up; then the same again.
        "threads" => {
            let start = |script: Script| {
                script
                    .call(HostCall::ThreadStart, [1, 0, 0, 0])
                    .expect(0)
                    .call(HostCall::Wait, [0, NONE, 0, 0])
                    .expect(0)
            };
            let wake = |script: Script| {
                script
                    .step(op::BUMP, [shared_of(0), 0, 0, 0])
                    .call(HostCall::Wake, [0; 4])
                    .expect(0)
                    .call(HostCall::ThreadExit, [0; 4])
            };
            vec![start(new()).exit(6), wake(new())]
        }
        // Slot 1 kicks slot 0 out of its loop.
        "kick" => vec![
            new()
                .call(HostCall::ThreadStart, [1, 0, 0, 0])
                .step(op::SPIN, [0; 4])
                .exit(7),
            new()
                .call(HostCall::Wait, [0, 30_000_000, 0, 0])
                .call(HostCall::Kick, [0; 4])
                .expect(0)
                .call(HostCall::Wait, [0, NONE, 0, 0]),
        ],
        "signal while running" => vec![
            new()
                .put(b"ready\n")
                .call(HostCall::Write, [1, 6, NONE, 0])
                .step(op::SPIN, [0; 4])
                .call(HostCall::TakeSignals, [0; 4])
                .expect(taken)
                .exit(8),
        ],
        "signal while waiting" => vec![
            new()
                .put(b"ready\n")
                .call(HostCall::Write, [1, 6, NONE, 0])
                .call(HostCall::Wait, [0, NONE, 0, 0])
                .expect(eintr)
                .call(HostCall::TakeSignals, [0; 4])
                .expect(taken)
                .exit(9),
        ],
        "panic" => vec![
            new()
                .put(b"out of clay")
                .call(HostCall::Panic, [11, 0, 0, 0]),
        ],
        "no such slot" => vec![
            new()
                .call(HostCall::ThreadStart, [9, 0, 0, 0])
                .call(HostCall::Wait, [0, NONE, 0, 0]),
        ],
        "killed" => vec![new().call(HostCall::Exit, [15, 0, 0, 0])],
        "damaged" => vec![new().exit(0)],
        // Leaves the terminal raw: no echo, no line editing (c_lflag at 12, 0).
        "raw terminal" => vec![
            new()
                .call(HostCall::Ioctl, [0, libc::TCGETS, 36, 0])
                .expect(0)
                .step(op::STORE, [8, 0xbf, 0, 0])
                .call(HostCall::Ioctl, [0, libc::TCSETS, 36, 0])
                .expect(0)
                .exit(3),
        ],
        // Cheap host calls until SIGHUP comes (bit 0).
        "busy" => vec![
            new()
                .call(HostCall::TakeSignals, [0; 4])
                .step(op::UNLESS, [script_of(0), 1, 0, 0])
                .exit(0),
        ],
        other => panic!("no scenario {other}"),
    }
}

/// The child's side: not a test of its own.
#[test]
fn child() {
    let Ok(name) = std::env::var("BULLA_TINY") else {
        return;
    };
    let fuses = std::env::var_os("BULLA_TINY_FUSES").expect("the parent says where");
    let fuses = std::path::PathBuf::from(fuses);
    let machine = Emulated::new(Profile::named("full").unwrap(), &fuses).unwrap();
    let backend: Box<dyn Backend> = match std::env::var("BULLA_TINY_PLATFORM").as_deref() {
        Ok("double") => Box::new(Hardware::with(Double::new(Box::new(machine), true)).unwrap()),
        _ => Box::new(machine),
    };
    let mut options = Options::new(backend);
    options.stats = true;
    options.hostile = std::env::var("BULLA_TINY_HOSTILE")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let mut enclave = enclave(&scenario(&name));
    if name == "damaged" {
        enclave.runs[0].flags |= 2;
    }
    match launch(enclave, options) {
        Ok(finished) => {
            let stats = serde_json::to_string(&finished.stats).unwrap();
            eprintln!("stats {stats}");
            std::process::exit(i32::from(finished.status.code()));
        }
        Err(error) => {
            eprintln!("bulla: {error}");
            std::process::exit(200);
        }
    }
}

const PLATFORMS: [&str; 2] = ["emulated", "double"];

fn start(name: &str, platform: &str) -> Child {
    prepare(name, platform).spawn().unwrap()
}

thread_local! {
    /// Where this test's machine keeps its fuses; goes with its thread.
    static FUSES: tempfile::TempDir = tempfile::tempdir().unwrap();
}

fn prepare(name: &str, platform: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "tiny::child", "--nocapture", "--test-threads=1"])
        .env("BULLA_TINY", name)
        .env("BULLA_TINY_PLATFORM", platform)
        .env(
            "BULLA_TINY_FUSES",
            FUSES.with(|fuses| fuses.path().to_owned()),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // A group of its own, so that a test can look for what is left of it.
    command.process_group(0);
    command
}

/// Runs to the end, at most half a minute.
fn finish(mut child: Child) -> (ExitStatus, String, String) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("it hangs: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status, text(&output.stdout), text(&output.stderr))
}

fn stats(stderr: &str) -> Stats {
    let line = stderr.lines().find_map(|line| line.strip_prefix("stats "));
    serde_json::from_str(line.unwrap_or_else(|| panic!("no stats in {stderr}"))).unwrap()
}

#[test]
fn it_says_hello_and_exits() {
    for platform in PLATFORMS {
        let (status, stdout, stderr) = finish(start("hello", platform));
        assert_eq!(status.code(), Some(42), "{platform}: {stderr}");
        assert!(stdout.contains("hello\n"), "{stdout}");
        let stats = stats(&stderr);
        assert_eq!((stats.entries, stats.exits), (2, 2));
        assert_eq!(stats.host_calls["Write"], 1);
        assert_eq!(stats.bytes_out, 6);
        assert!(stats.phases.iter().any(|phase| phase.name == "add"));
        assert_eq!(
            stats.platform,
            if platform == "double" {
                "hardware"
            } else {
                platform
            }
        );
    }
}

#[test]
fn exceptions_are_brought_back() {
    for platform in PLATFORMS {
        let (status, _, stderr) = finish(start("fault", platform));
        assert_eq!(status.code(), Some(5), "{platform}: {stderr}");
        let stats = stats(&stderr);
        assert_eq!((stats.exceptions, stats.resumes), (1, 1));
    }
}

#[test]
fn threads_start_and_wake_each_other() {
    for platform in PLATFORMS {
        let (status, _, stderr) = finish(start("threads", platform));
        assert_eq!(status.code(), Some(6), "{platform}: {stderr}");
        assert_eq!(stats(&stderr).threads, 2);
    }
}

#[test]
fn a_running_thread_can_be_kicked() {
    for platform in PLATFORMS {
        let (status, _, stderr) = finish(start("kick", platform));
        assert_eq!(status.code(), Some(7), "{platform}: {stderr}");
        assert!(stats(&stderr).kicks >= 1);
    }
}

#[test]
fn signals_reach_a_running_and_a_waiting_thread() {
    for (name, code) in [("signal while running", 8), ("signal while waiting", 9)] {
        for platform in PLATFORMS {
            let mut child = start(name, platform);
            // It says so when it is there.
            let mut stdout = child.stdout.take().unwrap();
            let mut text = String::new();
            let mut byte = [0];
            while !text.ends_with("ready\n") {
                assert_eq!(
                    std::io::Read::read(&mut stdout, &mut byte).unwrap(),
                    1,
                    "{text}"
                );
                text.push(byte[0] as char);
            }
            let pid = child.id().to_string();
            assert!(
                Command::new("kill")
                    .args(["-TERM", &pid])
                    .status()
                    .unwrap()
                    .success()
            );
            let (status, _, stderr) = finish(child);
            assert_eq!(status.code(), Some(code), "{name}, {platform}: {stderr}");
        }
    }
}

#[test]
fn ends_have_the_right_codes() {
    let (status, _, stderr) = finish(start("panic", "emulated"));
    assert_eq!(status.code(), Some(125));
    assert!(
        stderr.contains("the enclave's runtime stopped: out of clay"),
        "{stderr}"
    );
    let (status, _, _) = finish(start("killed", "emulated"));
    assert_eq!(status.code(), Some(128 + 15));
    let (status, _, stderr) = finish(start("no such slot", "emulated"));
    assert_eq!(status.code(), Some(200));
    assert!(
        stderr.contains("thread slot 9 cannot be entered"),
        "{stderr}"
    );
    for platform in PLATFORMS {
        let (status, _, stderr) = finish(start("damaged", platform));
        assert_eq!(status.code(), Some(200));
        assert!(stderr.contains("EINIT"), "{stderr}");
    }
}

/// `cargo test --release -p bulla-loader busy -- --nocapture` shows what a host call costs.
#[test]
fn a_busy_enclave_is_served() {
    let child = start("busy", "emulated");
    std::thread::sleep(Duration::from_millis(500));
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-HUP", &pid])
            .status()
            .unwrap()
            .success()
    );
    let (status, _, stderr) = finish(child);
    assert_eq!(status.code(), Some(0), "{stderr}");
    let stats = stats(&stderr);
    let run = stats
        .phases
        .iter()
        .find(|phase| phase.name == "run")
        .unwrap();
    let each = run.milliseconds * 1e6 / stats.entries as f64;
    println!("{} entries, {each:.0} ns each\n{stats}", stats.entries);
    assert!(stats.entries > 1000);
}

#[test]
fn the_terminal_is_left_as_it_was() {
    let (mut master, mut slave) = (0, 0);
    // SAFETY: two descriptors to fill in, no name, default settings.
    let opened = unsafe {
        let none = std::ptr::null_mut::<u8>();
        libc::openpty(
            &mut master,
            &mut slave,
            none.cast(),
            none.cast(),
            none.cast(),
        )
    };
    assert_eq!(opened, 0);
    let settings = || {
        // SAFETY: all zeros is valid, and tcgetattr fills it in.
        let settings = unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(master, &mut settings), 0);
            settings
        };
        (settings.c_iflag, settings.c_oflag, settings.c_lflag)
    };
    let before = settings();
    assert_ne!(before.2 & libc::ECHO, 0);
    let mut command = prepare("raw terminal", "emulated");
    // SAFETY: openpty has just made this descriptor, and nobody else closes it.
    command.stdin(unsafe { OwnedFd::from_raw_fd(slave) });
    let (status, _, stderr) = finish(command.spawn().unwrap());
    assert_eq!(status.code(), Some(3), "{stderr}");
    assert_eq!(settings(), before);
    let calls = stats(&stderr).host_calls["Ioctl"];
    assert_eq!(calls, 2);
}

/// The tiny enclave believes everything, so it may end anyhow; the host's side must not crash.
#[test]
fn a_hostile_host_survives_itself() {
    for seed in 0..12u64 {
        let platform = PLATFORMS[seed as usize % 2];
        let name = ["busy", "kick", "threads"][seed as usize % 3];
        let mut command = prepare(name, platform);
        let mut child = command
            .env("BULLA_TINY_HOSTILE", seed.to_string())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(150));
        // Fails when it has ended already.
        let _ = child.kill();
        let (status, _, stderr) = finish(child);
        let signal = status.signal();
        assert!(
            signal.is_none_or(|signal| signal == libc::SIGKILL),
            "seed {seed}: {status}, {stderr}"
        );
    }
}

#[test]
fn killing_it_leaves_nothing_behind() {
    let mut child = start("busy", "emulated");
    std::thread::sleep(Duration::from_millis(300));
    let pid = child.id();
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    // Nobody is left in its process group.
    let left = Command::new("pgrep")
        .args(["-g", &pid.to_string()])
        .output();
    if let Ok(left) = left {
        assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    }
    std::io::stdout().flush().unwrap();
}
