//! A test's enclave: the test itself plays the trusted side, slot by slot, over channels.

use std::io::PipeWriter;
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use bulla_abi::hostcall::{EnterReason, HostCall};
use bulla_abi::layout::{LayoutKind, SLOT_STRIDE, SLOTS_MAX, tcs_address};

use crate::backend::{Backend, EnterLeaf, Error, Features, Outcome, Registers};
use crate::descriptors::{Descriptors, Standard};
use crate::hostile::Hostile;
use crate::sys::area::Area;
use crate::sys::signal;
use crate::threads::{Engine, Slots};

type TestEnd = (
    Receiver<(EnterLeaf, Registers)>,
    Sender<(Outcome, Registers)>,
);

/// What the loader sends in, what comes out, and the ends that the test holds until it starts.
struct Port {
    entries: Mutex<Sender<(EnterLeaf, Registers)>>,
    exits: Mutex<Receiver<(Outcome, Registers)>>,
    test: Mutex<Option<TestEnd>>,
}

impl Port {
    fn new() -> Port {
        let (entries, inside) = channel();
        let (out, exits) = channel();
        Port {
            entries: Mutex::new(entries),
            exits: Mutex::new(exits),
            test: Mutex::new(Some((inside, out))),
        }
    }
}

/// A backend whose enclave is the test.
pub struct Fake {
    ports: Vec<Port>,
    pub committed: AtomicU64,
}

const SLOTS: u32 = 64;
/// Where `protect` fails.
pub const REFUSED: u64 = 0x1_0000;

impl Fake {
    pub fn new() -> Fake {
        Fake {
            ports: (0..SLOTS).map(|_| Port::new()).collect(),
            committed: AtomicU64::new(0),
        }
    }
}

/// The longest that a test waits for the host.
const SOON: Duration = Duration::from_secs(10);

impl Backend for &'static Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn features(&self) -> Features {
        Features {
            edmm: true,
            exinfo: true,
            rdtsc: true,
            kss: false,
            aex_notify: false,
            xfrm: 3,
        }
    }
    fn create(&self, _: &[u8; 4096]) -> Result<(), Error> {
        Ok(())
    }
    fn add_pages(&self, _: u64, _: &[u8], _: u64, _: bool) -> Result<(), Error> {
        Ok(())
    }
    fn add_zero_pages(&self, _: u64, _: u64, _: u64, _: bool) -> Result<(), Error> {
        Ok(())
    }
    fn init(&self, _: &[u8; 1808]) -> Result<(), Error> {
        Ok(())
    }
    fn mrenclave(&self) -> [u8; 32] {
        [0; 32]
    }
    fn prepare_thread(&self) -> Result<(), Error> {
        Ok(())
    }
    fn enter(&self, tcs: u64, leaf: EnterLeaf, registers: &mut Registers) -> Outcome {
        let index = (tcs - tcs_address(LayoutKind::Dynamic, 0)) / SLOT_STRIDE;
        let port = &self.ports[index as usize];
        let sent = port.entries.lock().unwrap().send((leaf, *registers));
        let exit = sent
            .ok()
            .and_then(|()| port.exits.lock().unwrap().recv().ok());
        let Some((outcome, out)) = exit else {
            // The test is over.
            loop {
                std::thread::park();
            }
        };
        *registers = out;
        outcome
    }
    unsafe fn kick_in_handler(&self, _: *mut std::ffi::c_void) -> bool {
        false
    }
    fn commit(&self, _: u64, len: u64, _: u64) -> Result<(), Error> {
        self.committed.fetch_add(len, Ordering::SeqCst);
        Ok(())
    }
    fn protect(&self, address: u64, _: u64, _: u64) -> Result<(), Error> {
        match address {
            REFUSED => Err(Error::Refused("a test's address".into())),
            _ => Ok(()),
        }
    }
    fn restrict(&self, _: u64, _: u64, _: u64) -> Result<(), Error> {
        Ok(())
    }
    fn modify_type(&self, _: u64, _: u64, _: u64) -> Result<(), Error> {
        Ok(())
    }
    fn remove(&self, _: u64, _: u64) -> Result<(), Error> {
        Ok(())
    }
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// A fresh engine. Only the common one ([`engine`]) gets signals.
pub fn new_engine() -> (&'static Engine, &'static Fake) {
    engine_with([0, 1, 2], None)
}

/// A fresh engine whose standard input is a pipe, and that pipe's other end.
pub fn engine_with_input() -> (&'static Engine, &'static Fake, PipeWriter) {
    // Interruptions need the handlers.
    engine();
    let (reader, writer) = std::io::pipe().unwrap();
    let (engine, fake) = engine_with([reader.into_raw_fd(), 1, 2], None);
    (engine, fake, writer)
}

/// A fresh engine that lies.
pub fn engine_with_hostile(seed: u64) -> (&'static Engine, &'static Fake) {
    engine();
    engine_with([0, 1, 2], Some(Hostile::new(seed)))
}

fn engine_with(standard: [i32; 3], hostile: Option<Hostile>) -> (&'static Engine, &'static Fake) {
    let fake: &'static Fake = Box::leak(Box::new(Fake::new()));
    static MADE: Descriptors = Descriptors::new();
    static READ_ONLY: Descriptors = Descriptors::new();
    let engine = Box::leak(Box::new(Engine {
        kind: LayoutKind::Dynamic,
        backend: Box::new(fake),
        slots: Box::leak(Box::new(Slots::new())),
        made: &MADE,
        standard: Standard::new(standard),
        quoter: None,
        volumes: Vec::new(),
        directories: Vec::new(),
        read_only: &READ_ONLY,
        execs: None,
        debugger: None,
        hostile,
        log_level: 3,
        rdtsc: false,
        boot: AtomicU64::new(0xb007),
        first_entry: AtomicU64::new(0),
        ending: AtomicBool::new(false),
        end: Mutex::new(None),
    }));
    (engine, fake)
}

/// The engine that all tests share, with a supervisor.
pub fn engine() -> (&'static Engine, &'static Fake) {
    static COMMON: OnceLock<(&'static Engine, &'static Fake)> = OnceLock::new();
    *COMMON.get_or_init(|| {
        let (engine, fake) = new_engine();
        let (ready, wait) = channel();
        std::thread::spawn(move || {
            signal::install(engine, false).unwrap();
            ready.send(()).unwrap();
            loop {
                signal::supervise(3_600_000_000_000);
                engine.kick_again();
            }
        });
        wait.recv().unwrap();
        (engine, fake)
    })
}

/// The trusted side of one slot.
pub struct Inside {
    pub engine: &'static Engine,
    pub index: u64,
    entries: Receiver<(EnterLeaf, Registers)>,
    exits: Sender<(Outcome, Registers)>,
}

impl Inside {
    /// Starts a slot that no other test uses.
    pub fn fresh() -> Inside {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let (engine, fake) = engine();
        Inside::start(engine, fake, NEXT.fetch_add(1, Ordering::SeqCst))
    }

    pub fn start(engine: &'static Engine, fake: &'static Fake, index: u32) -> Inside {
        let inside = Inside::start_raw(engine, fake, index);
        inside.started();
        inside
    }

    /// Slot 0, which is told where the boot parameters are.
    pub fn start_first(engine: &'static Engine, fake: &'static Fake, boot: u64) -> Inside {
        let inside = Inside::start_raw(engine, fake, 0);
        let (_, registers) = inside.entry();
        assert_eq!(registers.rdx, boot);
        inside
    }

    fn start_raw(engine: &'static Engine, fake: &'static Fake, index: u32) -> Inside {
        assert!(index < SLOTS && SLOTS <= SLOTS_MAX);
        let mut test = fake.ports[index as usize].test.lock().unwrap();
        let (entries, exits) = test.take().expect("one test per slot");
        let inside = Inside {
            engine,
            index: u64::from(index),
            entries,
            exits,
        };
        engine.start(u64::from(index)).unwrap();
        inside
    }

    /// The next entry, which must come soon.
    pub fn entry(&self) -> (EnterLeaf, Registers) {
        self.entries
            .recv_timeout(SOON)
            .expect("the host did not enter")
    }

    pub fn started(&self) {
        let (leaf, registers) = self.entry();
        assert_eq!(leaf, EnterLeaf::Eenter);
        assert_eq!(registers.rdi, EnterReason::Start as u64);
        assert_eq!(registers.rsi, self.area().address());
    }

    pub fn area(&self) -> &'static Area {
        let mut used = self.engine.slots.used();
        &used
            .find(|slot| u64::from(slot.index) == self.index)
            .unwrap()
            .area
    }

    /// EEXIT with a host call.
    pub fn exit(&self, call: HostCall, arguments: [u64; 4]) {
        let [rsi, rdx, r8, r9] = arguments;
        let registers = Registers {
            rdi: call as u64,
            rsi,
            rdx,
            r8,
            r9,
        };
        self.exits.send((Outcome::Exit, registers)).unwrap();
    }

    pub fn exception(&self, leaf: u32) {
        let outcome = Outcome::Exception {
            leaf,
            vector: 14,
            error_code: 6,
            address: 0x1234_5000,
        };
        self.exits.send((outcome, Registers::default())).unwrap();
    }

    /// The result of the host call made before.
    pub fn returned(&self) -> i64 {
        self.try_returned(SOON).expect("the host did not enter")
    }

    /// The same, or nothing when it takes longer than `limit`.
    pub fn try_returned(&self, limit: Duration) -> Option<i64> {
        let (leaf, registers) = self.entries.recv_timeout(limit).ok()?;
        assert_eq!(leaf, EnterLeaf::Eenter);
        assert_eq!(registers.rdi, EnterReason::Return as u64);
        Some(registers.rsi as i64)
    }

    /// A whole host call.
    pub fn call(&self, call: HostCall, arguments: [u64; 4]) -> i64 {
        self.exit(call, arguments);
        self.try_returned(SOON)
            .unwrap_or_else(|| panic!("{call:?} {arguments:x?} does not return"))
    }

    pub fn put(&self, offset: u64, bytes: &[u8]) {
        self.area()
            .data(offset, bytes.len() as u64)
            .unwrap()
            .put(0, bytes);
    }

    pub fn get(&self, offset: u64, len: u64) -> Vec<u8> {
        self.area().data(offset, len).unwrap().to_vec()
    }

    /// Changes the wait word, as a waker in the enclave does.
    pub fn bump(&self) -> u32 {
        self.area().wait_word().fetch_add(1, Ordering::SeqCst) + 1
    }
}
