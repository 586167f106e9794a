//! EGETKEY (SDM 38.4) and the machine's emulated fuses.
//!
//! Every key is AES-128-CMAC, under a key from the fuses, over the SDM's key-dependency structure
//! (table 38-64). The fuses are 32 random bytes per machine in a file that only its owner reads:
//! emulated keys protect nothing from the host, but differ and persist as real ones do.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use aes::Aes128;
use cmac::{Cmac, KeyInit, Mac};

use super::enclave::Enclave;
use super::leaves::{Operands, Output};
use super::thread::Fault;
use crate::backend::Error;
use bulla_sgx::{Attributes, ErrorCode, KeyName, KeyRequest, TargetInfo, flags, key_policy};

/// The security version of the emulated CPU.
pub const CPU_SVN: [u8; 16] = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const FUSES_FILE: &str = "emulated-fuses";

/// What a machine's keys are derived from.
#[derive(Clone)]
pub struct Fuses {
    seal: [u8; 16],
    owner_epoch: [u8; 16],
}

impl Fuses {
    /// Reads the fuses in `directory`, or makes them.
    pub fn open(directory: &Path) -> Result<Fuses, Error> {
        let describe = |call| {
            move |error: io::Error| Error::System {
                call,
                errno: error.raw_os_error().unwrap_or(libc::EIO),
                reason: format!("the emulated machine's fuses in {}", directory.display()),
            }
        };
        let path = directory.join(FUSES_FILE);
        if let Err(error) = fs::metadata(&path) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(describe("stat")(error));
            }
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(describe("mkdir"))?;
            Self::make(directory, &path).map_err(describe("link"))?;
        }
        let mut bytes = [0; 32];
        fs::File::open(&path)
            .and_then(|mut file| file.read_exact(&mut bytes))
            .map_err(describe("read"))?;
        let (seal, owner_epoch) = bytes.split_at(16);
        let take = |half: &[u8]| half.first_chunk().copied().unwrap_or_default();
        Ok(Fuses {
            seal: take(seal),
            owner_epoch: take(owner_epoch),
        })
    }

    /// Writes a file of its own first and links it, so that of several processes one wins and
    /// nobody sees half a file.
    fn make(directory: &Path, path: &Path) -> io::Result<()> {
        let bytes: [u8; 32] = random();
        let unique = u64::from_le_bytes(random());
        let temporary = directory.join(format!(".{FUSES_FILE}.{unique:016x}"));
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(&bytes)?;
                file.sync_all()
            })?;
        let linked = fs::hard_link(&temporary, path);
        let _ = fs::remove_file(&temporary);
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// AES-CMAC over the dependencies of a key.
    fn derive(&self, dependencies: &Dependencies) -> [u8; 16] {
        mac(&self.seal, &dependencies.to_bytes(self))
    }

    /// The key with which the CPU MACs reports for `target`.
    pub fn report_key(&self, target: &TargetInfo, key_id: &[u8; 32]) -> [u8; 16] {
        self.derive(&Dependencies {
            attributes: target.attributes,
            mrenclave: target.mrenclave,
            key_id: *key_id,
            cpu_svn: CPU_SVN,
            misc_select: target.misc_select,
            config_id: target.config_id,
            config_svn: target.config_svn,
            ..Dependencies::new(KeyName::Report)
        })
    }
}

/// Random bytes from the kernel.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        // SAFETY: fills at most the rest of the array.
        let count = unsafe { libc::getrandom(bytes[filled..].as_mut_ptr().cast(), N - filled, 0) };
        filled += usize::try_from(count).unwrap_or(0);
    }
    bytes
}

/// AES-128-CMAC.
pub fn mac(key: &[u8; 16], data: &[u8]) -> [u8; 16] {
    let mut mac = Cmac::<Aes128>::new(key.into());
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// The SDM's KEY_DEPENDENCIES.
struct Dependencies {
    name: KeyName,
    owner_epoch: bool,
    isv_prod_id: u16,
    isv_svn: u16,
    isv_family_id: [u8; 16],
    isv_ext_prod_id: [u8; 16],
    attributes: Attributes,
    attribute_mask: Attributes,
    mrenclave: [u8; 32],
    mrsigner: [u8; 32],
    key_id: [u8; 32],
    cpu_svn: [u8; 16],
    misc_select: u32,
    misc_mask: u32,
    key_policy: u16,
    config_id: [u8; 64],
    config_svn: u16,
}

impl Dependencies {
    fn new(name: KeyName) -> Dependencies {
        let none = Attributes { flags: 0, xfrm: 0 };
        Dependencies {
            name,
            owner_epoch: true,
            isv_prod_id: 0,
            isv_svn: 0,
            isv_family_id: [0; 16],
            isv_ext_prod_id: [0; 16],
            attributes: none,
            attribute_mask: none,
            mrenclave: [0; 32],
            mrsigner: [0; 32],
            key_id: [0; 32],
            cpu_svn: [0; 16],
            misc_select: 0,
            misc_mask: 0,
            key_policy: 0,
            config_id: [0; 64],
            config_svn: 0,
        }
    }

    fn to_bytes(&self, fuses: &Fuses) -> Vec<u8> {
        let mut out = Vec::with_capacity(320);
        out.extend((self.name as u16).to_le_bytes());
        out.extend(self.isv_prod_id.to_le_bytes());
        out.extend(self.isv_svn.to_le_bytes());
        out.extend(self.isv_family_id);
        out.extend(self.isv_ext_prod_id);
        out.extend(if self.owner_epoch {
            fuses.owner_epoch
        } else {
            [0; 16]
        });
        out.extend(self.attributes.to_bytes());
        out.extend(self.attribute_mask.to_bytes());
        out.extend(self.mrenclave);
        out.extend(self.mrsigner);
        out.extend(self.key_id);
        out.extend(self.cpu_svn);
        out.extend(self.misc_select.to_le_bytes());
        out.extend(self.misc_mask.to_le_bytes());
        out.extend(self.key_policy.to_le_bytes());
        out.extend(self.config_id);
        out.extend(self.config_svn.to_le_bytes());
        out
    }
}

/// KEYPOLICY bits that need KSS.
const KSS_POLICIES: u16 = key_policy::NO_ISV_PROD_ID
    | key_policy::CONFIG_ID
    | key_policy::ISV_FAMILY_ID
    | key_policy::ISV_EXT_PROD_ID;
const KNOWN_POLICIES: u16 = key_policy::MRENCLAVE | key_policy::MRSIGNER | KSS_POLICIES;

/// EGETKEY: RBX = KEYREQUEST, RCX = where the key goes.
pub fn egetkey(enclave: &Enclave, operands: Operands) -> Result<Output, Fault> {
    if operands.rbx & 511 != 0 || operands.rcx & 15 != 0 {
        return Err(Fault::GP);
    }
    enclave.check_access(operands.rbx, KeyRequest::SIZE as u64, 1)?;
    enclave.check_access(operands.rcx, 16, 2)?;
    // SAFETY: readable as just checked; the enclave's own threads may change it meanwhile, which
    // only makes the copy odd.
    let bytes = unsafe { (operands.rbx as *const [u8; KeyRequest::SIZE]).read_volatile() };
    let request = KeyRequest::from_bytes(&bytes).ok_or(Fault::GP)?;
    let kss = enclave.secs.attributes.flags & flags::KSS != 0;
    if request.key_policy & !KNOWN_POLICIES != 0
        || (!kss && request.key_policy & KSS_POLICIES != 0)
        || request.cet_attributes_mask != 0
    {
        return Err(Fault::GP);
    }
    match key(enclave, &request) {
        Ok(key) => {
            // SAFETY: writable as just checked.
            unsafe { (operands.rcx as *mut [u8; 16]).write_volatile(key) };
            Ok(Output::DONE)
        }
        Err(code) => Ok(Output::error(code)),
    }
}

/// Whether a requested CPUSVN is beyond the platform's. Real ones have components; ours are
/// compared byte by byte.
fn beyond(requested: &[u8; 16]) -> bool {
    requested
        .iter()
        .zip(CPU_SVN)
        .any(|(requested, current)| *requested > current)
}

fn key(enclave: &Enclave, request: &KeyRequest) -> Result<[u8; 16], ErrorCode> {
    let Some(identity) = enclave.identity.get() else {
        return Err(ErrorCode::InvalidAttribute);
    };
    let secs = &enclave.secs;
    let own = enclave.attributes();
    let has = |policy| request.key_policy & policy != 0;
    let check_versions = || {
        if beyond(&request.cpu_svn) {
            return Err(ErrorCode::InvalidCpusvn);
        }
        if request.isv_svn > identity.isv_svn || request.config_svn > secs.config_svn {
            return Err(ErrorCode::InvalidIsvsvn);
        }
        Ok(())
    };
    let need = |attribute| {
        if own.flags & attribute == 0 {
            Err(ErrorCode::InvalidAttribute)
        } else {
            Ok(())
        }
    };
    // INIT and DEBUG are always part of a key.
    let mask = Attributes {
        flags: request.attribute_mask.flags | flags::INIT | flags::DEBUG,
        xfrm: request.attribute_mask.xfrm,
    };
    let masked = own.masked(&mask);
    let misc_select = request.misc_mask & secs.misc_select;
    let common = |name| Dependencies {
        isv_prod_id: identity.isv_prod_id,
        isv_svn: request.isv_svn,
        attributes: masked,
        cpu_svn: request.cpu_svn,
        misc_select,
        misc_mask: !request.misc_mask,
        ..Dependencies::new(name)
    };
    let dependencies = match request.key_name {
        name if name == KeyName::Seal as u16 => {
            check_versions()?;
            let all = common(KeyName::Seal);
            Dependencies {
                isv_prod_id: if has(key_policy::NO_ISV_PROD_ID) {
                    0
                } else {
                    all.isv_prod_id
                },
                isv_family_id: only(has(key_policy::ISV_FAMILY_ID), identity.isv_family_id),
                isv_ext_prod_id: only(has(key_policy::ISV_EXT_PROD_ID), identity.isv_ext_prod_id),
                attribute_mask: request.attribute_mask,
                mrenclave: only(has(key_policy::MRENCLAVE), identity.mrenclave),
                mrsigner: only(has(key_policy::MRSIGNER), identity.mrsigner),
                key_id: request.key_id,
                key_policy: request.key_policy,
                config_id: only(has(key_policy::CONFIG_ID), secs.config_id),
                config_svn: if has(key_policy::CONFIG_ID) {
                    request.config_svn
                } else {
                    0
                },
                ..all
            }
        }
        name if name == KeyName::Report as u16 => {
            return Ok(enclave
                .fuses
                .report_key(&enclave.target_info(), &request.key_id));
        }
        name if name == KeyName::Einittoken as u16 => {
            need(flags::EINITTOKEN_KEY)?;
            check_versions()?;
            Dependencies {
                mrsigner: identity.mrsigner,
                key_id: request.key_id,
                ..common(KeyName::Einittoken)
            }
        }
        name if name == KeyName::Provision as u16 => {
            need(flags::PROVISION_KEY)?;
            check_versions()?;
            Dependencies {
                owner_epoch: false,
                attribute_mask: request.attribute_mask,
                mrsigner: identity.mrsigner,
                ..common(KeyName::Provision)
            }
        }
        name if name == KeyName::ProvisionSeal as u16 => {
            need(flags::PROVISION_KEY)?;
            check_versions()?;
            Dependencies {
                owner_epoch: false,
                attribute_mask: request.attribute_mask,
                mrsigner: identity.mrsigner,
                isv_family_id: only(has(key_policy::ISV_FAMILY_ID), identity.isv_family_id),
                isv_ext_prod_id: only(has(key_policy::ISV_EXT_PROD_ID), identity.isv_ext_prod_id),
                key_policy: request.key_policy,
                config_id: only(has(key_policy::CONFIG_ID), secs.config_id),
                config_svn: if has(key_policy::CONFIG_ID) {
                    request.config_svn
                } else {
                    0
                },
                ..common(KeyName::ProvisionSeal)
            }
        }
        _ => return Err(ErrorCode::InvalidKeyname),
    };
    Ok(enclave.fuses.derive(&dependencies))
}

/// A field that takes part only under a policy.
fn only<const N: usize>(takes_part: bool, field: [u8; N]) -> [u8; N] {
    if takes_part { field } else { [0; N] }
}
