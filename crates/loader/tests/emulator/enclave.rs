//! Building the hand-made enclave, and looking into it from outside (it is emulated).

use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bulla_image::{Date, Description, SigningKey};
use bulla_loader::backend::emulated::{Emulated, Profile};
use bulla_loader::backend::{Backend, EnterLeaf, Error, Outcome, Registers};
use bulla_sgx::{Attributes, Measurement, SecInfo, Secs, SigStruct, Tcs, flags, misc};
use tempfile::TempDir;

use crate::code;

pub const PAGE: u64 = 4096;
/// The size of the static layout, so that there is a hole for the gates.
pub const SIZE: u64 = 1 << 36;
const RUNTIME: u64 = SIZE - (16 << 30);
pub const CODE: u64 = RUNTIME;
/// Thread slots, 256 KiB apart; in each: stack, guard, area (GS), TCS, SSA.
const SLOTS: u64 = RUNTIME + (256 << 20);
const STACK_SIZE: u64 = 4 * PAGE;
pub const SSA_PAGES: u64 = 4;
pub const NSSA: u64 = 3;
/// Two writable data pages, then one that can only be read.
pub const DATA: u64 = 0x20_0000;
/// An address range for pages that are committed later.
pub const FRESH: u64 = 0x4000_0000;

/// Sixteen writable pages whose content is [`CONSTANTS`].
pub const CONSTANT: u64 = 0x40_0000;
/// Whole pages of this program's file, which the emulator need not copy.
pub static CONSTANTS: &Constants = &Constants([0xc5; 16 * 4096]);
#[repr(C, align(4096))]
pub struct Constants(pub [u8; 16 * 4096]);

/// One enclave at a time: the gate table tells threads apart by parts of their GS base.
static ONE: Mutex<()> = Mutex::new(());

pub struct TestEnclave {
    pub platform: Emulated,
    pub base: u64,
    /// What a verifier would compute.
    pub measurement: Measurement,
    _one: MutexGuard<'static, ()>,
}

/// How an enclave differs from the usual one.
#[derive(Clone)]
pub struct Options {
    pub profile: Profile,
    pub base: u64,
    pub attributes: u64,
    pub xfrm: u64,
    pub threads: u64,
    pub nssa: u64,
    pub key: &'static str,
    pub data: u8,
    pub isv_svn: u16,
    pub isv_prod_id: u16,
    pub config_id: [u8; 64],
    pub directory: std::path::PathBuf,
    /// TCS.FLAGS of all threads.
    pub tcs_flags: u64,
}

pub const SIGNER_A: &str = include_str!("signer-a.pem");
pub const SIGNER_B: &str = include_str!("signer-b.pem");

thread_local! {
    /// This test's machines by name; they go with its thread.
    static MACHINES: RefCell<HashMap<String, TempDir>> = RefCell::new(HashMap::new());
}

/// A directory for the fuses of a machine.
pub fn fuses(name: &str) -> std::path::PathBuf {
    MACHINES.with_borrow_mut(|machines| {
        let machine = machines
            .entry(name.to_owned())
            .or_insert_with(|| tempfile::tempdir().unwrap());
        machine.path().join("fuses")
    })
}

impl Options {
    pub fn new(profile: Profile) -> Options {
        let kss = if profile.features.kss { flags::KSS } else { 0 };
        Options {
            profile,
            base: SIZE,
            attributes: flags::MODE64BIT | kss,
            xfrm: profile.features().xfrm,
            threads: 2,
            nssa: NSSA,
            key: SIGNER_A,
            data: 0x5a,
            isv_svn: 2,
            isv_prod_id: 7,
            config_id: [0; 64],
            directory: fuses("common"),
            tcs_flags: 0,
        }
    }
}

pub fn secs(options: &Options) -> Secs {
    Secs {
        size: SIZE,
        base_addr: options.base,
        ssa_frame_size: SSA_PAGES as u32,
        misc_select: if options.profile.features.exinfo {
            misc::EXINFO
        } else {
            0
        },
        cet_leg_bitmap_offset: 0,
        cet_attributes: 0,
        attributes: Attributes {
            flags: options.attributes,
            xfrm: options.xfrm,
        },
        mrenclave: [0; 32],
        mrsigner: [0; 32],
        config_id: options.config_id,
        isv_prod_id: 0,
        isv_svn: 0,
        config_svn: 0,
    }
}

/// The description of an enclave with this measurement.
pub fn description(options: &Options, mrenclave: [u8; 32]) -> Description {
    let secs = secs(options);
    Description {
        mrenclave,
        date: Date::new(2026, 11, 23).unwrap(),
        vendor: 0,
        sw_defined: 0,
        isv_prod_id: options.isv_prod_id,
        isv_svn: options.isv_svn,
        isv_family_id: [0; 16],
        isv_ext_prod_id: [0; 16],
        attributes: secs.attributes,
        attribute_mask: Attributes {
            flags: !0,
            xfrm: !0,
        },
        misc_select: secs.misc_select,
        misc_mask: !0,
    }
}

pub fn signed(options: &Options, mrenclave: [u8; 32]) -> SigStruct {
    let key = SigningKey::from_pem(options.key).unwrap();
    description(options, mrenclave).sign(&key).unwrap()
}

impl TestEnclave {
    pub fn new(profile: Profile) -> TestEnclave {
        Self::with(Options::new(profile))
    }

    /// Built and initialised; this thread is prepared.
    pub fn with(options: Options) -> TestEnclave {
        let enclave = Self::built(&options);
        let sigstruct = signed(&options, enclave.measurement.clone().finish());
        enclave.platform.init(&sigstruct.to_bytes()).unwrap();
        assert_eq!(
            enclave.platform.mrenclave(),
            enclave.measurement.clone().finish()
        );
        enclave.platform.prepare_thread().unwrap();
        enclave
    }

    /// Only created.
    pub fn created(options: &Options) -> Result<TestEnclave, Error> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let platform = Emulated::new(options.profile, &options.directory)?;
        let secs = secs(options);
        platform.create(&secs.to_bytes())?;
        Ok(TestEnclave {
            platform,
            base: options.base,
            measurement: Measurement::ecreate(secs.ssa_frame_size, secs.size),
            _one: one,
        })
    }

    /// With all pages, before EINIT.
    pub fn built(options: &Options) -> TestEnclave {
        let mut enclave = Self::created(options).unwrap();
        let mut code = code::bytes().to_vec();
        code.resize(code.len().next_multiple_of(4096), 0);
        enclave.add(CODE, &code, SecInfo::regular(5));
        for slot in 0..options.threads {
            let start = SLOTS + slot * (256 << 10);
            enclave.add(start, &[0; STACK_SIZE as usize], SecInfo::regular(3));
            enclave.add(start + STACK_SIZE + PAGE, &[0; 4096], SecInfo::regular(3));
            let ssa = start + 0x2_0000;
            enclave.add(
                ssa,
                &vec![0; (options.nssa * SSA_PAGES * PAGE) as usize],
                SecInfo::regular(3),
            );
            let tcs = Tcs {
                flags: options.tcs_flags,
                ..Self::tcs_page(slot, options.nssa)
            };
            enclave.add(start + 0x3_0000, &tcs.to_bytes(), SecInfo::tcs());
        }
        enclave.add(DATA, &[options.data; 2 * 4096], SecInfo::regular(3));
        enclave.add(DATA + 2 * PAGE, &[options.data; 4096], SecInfo::regular(1));
        enclave.add(CONSTANT, &CONSTANTS.0, SecInfo::regular(3));
        enclave
    }

    pub fn tcs_page(slot: u64, nssa: u64) -> Tcs {
        let start = SLOTS + slot * (256 << 10);
        Tcs {
            flags: 0,
            ossa: start + 0x2_0000,
            cssa: 0,
            nssa: nssa as u32,
            oentry: CODE,
            ofs_base: start + STACK_SIZE + PAGE,
            ogs_base: start + STACK_SIZE + PAGE,
            fs_limit: 0xfff,
            gs_limit: 0xfff,
        }
    }

    fn add(&mut self, offset: u64, data: &[u8], info: SecInfo) {
        self.platform
            .add_pages(self.base + offset, data, info.0, true)
            .unwrap();
        for (index, page) in data.chunks_exact(4096).enumerate() {
            let page = page.try_into().unwrap();
            self.measurement
                .page(offset + index as u64 * PAGE, info, page);
        }
    }

    pub fn tcs(&self, slot: u64) -> u64 {
        self.base + SLOTS + slot * (256 << 10) + 0x3_0000
    }

    pub fn area(&self, slot: u64) -> u64 {
        self.base + SLOTS + slot * (256 << 10) + STACK_SIZE + PAGE
    }

    pub fn ssa(&self, slot: u64, frame: u64) -> u64 {
        self.base + SLOTS + slot * (256 << 10) + 0x2_0000 + frame * SSA_PAGES * PAGE
    }

    /// GPRSGX of a frame.
    pub fn gprs(&self, slot: u64, frame: u64) -> u64 {
        self.ssa(slot, frame) + SSA_PAGES * PAGE - 184
    }

    pub fn data(&self) -> u64 {
        self.base + DATA
    }

    pub fn fresh(&self) -> u64 {
        self.base + FRESH
    }

    /// Enters slot `slot` and runs the snippet at offset `snippet`.
    pub fn run(&self, slot: u64, snippet: u64, arguments: [u64; 4]) -> (Outcome, u64, u64) {
        let [rsi, rdx, r8, r9] = arguments;
        let mut registers = Registers {
            rdi: (self.base + CODE).wrapping_add(snippet),
            rsi,
            rdx,
            r8,
            r9,
        };
        let outcome = self
            .platform
            .enter(self.tcs(slot), EnterLeaf::Eenter, &mut registers);
        (outcome, registers.rdi, registers.rsi)
    }

    /// Runs a snippet that must come back; returns RAX and RDX.
    pub fn call(&self, snippet: u64, arguments: [u64; 4]) -> (u64, u64) {
        let (outcome, a, b) = self.run(0, snippet, arguments);
        assert_eq!(outcome, Outcome::Exit);
        (a, b)
    }

    /// Runs a snippet that must fault; returns vector, error code, address. The state is left in
    /// SSA 0; [`Self::skip`] goes on.
    pub fn fault(&self, snippet: u64, arguments: [u64; 4]) -> (u16, u16, u64) {
        match self.run(0, snippet, arguments) {
            (
                Outcome::Exception {
                    vector,
                    error_code,
                    address,
                    ..
                },
                ..,
            ) => (vector, error_code, address),
            other => panic!("no fault but {other:?}"),
        }
    }

    /// ERESUME of slot 0 after moving its RIP on by `bytes`.
    pub fn skip(&self, bytes: u64) -> (Outcome, u64, u64) {
        let rip = self.gprs(0, 0) + 136;
        self.poke(rip, self.peek(rip) + bytes);
        self.resume()
    }

    pub fn resume(&self) -> (Outcome, u64, u64) {
        let mut registers = Registers::default();
        let outcome = self
            .platform
            .enter(self.tcs(0), EnterLeaf::Eresume, &mut registers);
        (outcome, registers.rdi, registers.rsi)
    }

    /// A word of enclave memory.
    pub fn peek(&self, address: u64) -> u64 {
        // SAFETY: tests ask for readable enclave pages.
        unsafe { ptr::read_volatile(address as *const u64) }
    }

    pub fn poke(&self, address: u64, value: u64) {
        // SAFETY: tests ask for writable enclave pages that no compiled code uses.
        unsafe { ptr::write_volatile(address as *mut u64, value) }
    }

    /// A SECINFO with these flags in the data page.
    pub fn secinfo(&self, flags: u64) -> u64 {
        let address = self.data() + 0x400;
        self.poke(address, flags);
        for word in 1..8 {
            self.poke(address + 8 * word, 0);
        }
        address
    }

    /// ENCLU in the enclave; RAX and RFLAGS.
    pub fn enclu(&self, leaf: u64, rbx: u64, rcx: u64, rdx: u64) -> (u64, u64) {
        self.call(code::at::do_enclu(), [leaf, rbx, rcx, rdx])
    }

    /// The vector of the fault that an ENCLU raises, and the page.
    pub fn enclu_fault(&self, leaf: u64, rbx: u64, rcx: u64, rdx: u64) -> (u16, u64) {
        let (vector, _, address) = self.fault(code::at::do_enclu(), [leaf, rbx, rcx, rdx]);
        let (outcome, ..) = self.skip(3);
        assert_eq!(outcome, Outcome::Exit);
        (vector, address)
    }

    pub fn counter(&self, name: &str) -> u64 {
        let all = self.platform.counters();
        all.into_iter().find(|(known, _)| *known == name).unwrap().1
    }
}
