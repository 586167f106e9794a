//! The provisioning chain: made once per machine, kept beside the emulated fuses.
//!
//! ```text
//! root CA ─┬─ PCK processor CA ── PCK (per machine, with the SGX extensions)
//!          └─ TCB signing ── TCB info, QE identity        CRLs of the root and of the PCK CA
//! ```

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension,
    DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevocationReason, RevokedCertParams, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;

use super::{PCE_SVN, QE_SVN, quoting_enclave_report};
use crate::collateral::{Collateral, date};
use crate::verify::{EMULATED_ROOT_NAME, Status};

const FILE: &str = "emulated-provisioning.json";
const VERSION: u32 = 1;
/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Why there is no provisioning chain.
#[derive(Debug, Error)]
pub enum ProvisioningError {
    #[error("cannot {what} {}: {source}; set BULLA_STATE to a directory of yours", path.display())]
    Files {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is damaged ({reason}); delete it, and a new emulated platform is made", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("the emulated provisioning chain cannot be made: {0}")]
    Make(String),
}

impl From<rcgen::Error> for ProvisioningError {
    fn from(error: rcgen::Error) -> Self {
        ProvisioningError::Make(error.to_string())
    }
}

/// A TCB level of the emulated platform.
#[derive(Clone, Debug)]
pub struct Level {
    /// Least SVN of each of the 16 components.
    pub components: [u8; 16],
    pub pce_svn: u16,
    pub status: Status,
    pub advisories: Vec<String>,
}

/// What has dates of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Root,
    PckCa,
    Pck,
    TcbSigning,
    RootRevocations,
    PckRevocations,
    TcbInfo,
    QeIdentity,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 8] = [
        Part::Root,
        Part::PckCa,
        Part::Pck,
        Part::TcbSigning,
        Part::RootRevocations,
        Part::PckRevocations,
        Part::TcbInfo,
        Part::QeIdentity,
    ];
}

/// What the chain says. [`Parameters::new`] is the platform that the product makes; tests make
/// others.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// CPUSVN that the PCK certificate states.
    pub cpu_svn: [u8; 16],
    /// Beginning and end of everything, seconds since 1970.
    pub from: u64,
    pub until: u64,
    /// End of TCB info, QE identity and CRLs, where it differs.
    pub collateral_until: Option<u64>,
    /// A part that begins and ends at other times than the rest.
    pub other_dates: Option<(Part, u64, u64)>,
    pub levels: Vec<Level>,
    pub qe_status: Status,
    pub qe_advisories: Vec<String>,
    /// Put the PCK, the PCK CA or the TCB signing certificate on a revocation list.
    pub revoke_pck: bool,
    pub revoke_pck_ca: bool,
    pub revoke_tcb_signing: bool,
    pub evaluation_number: u32,
}

impl Parameters {
    /// A platform at the newest level, from a day before `now` for twenty years.
    pub fn new(cpu_svn: [u8; 16], now: u64) -> Parameters {
        const DAY: u64 = 86_400;
        Parameters {
            cpu_svn,
            from: now.saturating_sub(DAY),
            until: now + 20 * 365 * DAY,
            collateral_until: None,
            other_dates: None,
            levels: vec![Level {
                components: cpu_svn,
                pce_svn: PCE_SVN,
                status: Status::UpToDate,
                advisories: Vec::new(),
            }],
            qe_status: Status::UpToDate,
            qe_advisories: Vec::new(),
            revoke_pck: false,
            revoke_pck_ca: false,
            revoke_tcb_signing: false,
            evaluation_number: 17,
        }
    }

    /// With the dates of this part.
    fn of(&self, part: Part) -> Parameters {
        match self.other_dates {
            Some((other, from, until)) if other == part => Parameters {
                from,
                until,
                collateral_until: None,
                ..self.clone()
            },
            _ => self.clone(),
        }
    }
}

/// An emulated platform's chain and keys.
#[derive(Serialize, Deserialize)]
pub struct Provisioning {
    version: u32,
    /// PKCS #8, in hexadecimal.
    #[serde(with = "hex")]
    pub(super) pck_key: Vec<u8>,
    #[serde(with = "hex")]
    pub(super) attestation_key: Vec<u8>,
    #[serde(with = "hex")]
    pub(super) cpu_svn: Vec<u8>,
    #[serde(with = "hex")]
    pub(super) qe_id: Vec<u8>,
    /// PEM, leaf first.
    pub(super) pck_chain: String,
    collateral: Collateral,
}

impl Provisioning {
    /// Reads the chain in `directory`, or makes it.
    pub fn open(directory: &Path, cpu_svn: [u8; 16], now: u64) -> Result<Self, ProvisioningError> {
        let path = directory.join(FILE);
        match fs::metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = Provisioning::make(&Parameters::new(cpu_svn, now))?;
                made.keep(directory, &path)?;
            }
            Err(source) => return Err(files("read", &path)(source)),
        }
        let damaged = |reason: String| ProvisioningError::Damaged {
            path: path.clone(),
            reason,
        };
        let size = fs::metadata(&path).map_err(files("read", &path))?.len();
        if size > FILE_MAX {
            return Err(damaged(format!("it has {size} bytes")));
        }
        let bytes = fs::read(&path).map_err(files("read", &path))?;
        let read: Provisioning =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if read.version != VERSION {
            return Err(damaged(format!("version {}", read.version)));
        }
        Ok(read)
    }

    /// The chain of the platform in `directory`, if there is one.
    pub fn existing(directory: &Path) -> Option<Self> {
        let path = directory.join(FILE);
        fs::metadata(&path).ok()?;
        Provisioning::open(directory, [0; 16], 0).ok()
    }

    /// Makes a chain.
    pub fn make(parameters: &Parameters) -> Result<Self, ProvisioningError> {
        let random = SystemRandom::new();
        let root = Authority::root(&parameters.of(Part::Root))?;
        let pck_ca = root.intermediate(
            "Bulla Emulated SGX PCK Processor CA",
            2,
            &parameters.of(Part::PckCa),
        )?;
        let tcb_key = KeyPair::generate()?;
        let of_signer = parameters.of(Part::TcbSigning);
        let tcb_signing = certificate("Bulla Emulated SGX TCB Signing", 3, &of_signer)
            .signed_by(&tcb_key, &root.issuer())?;
        let pck_key = KeyPair::generate()?;
        let mut params = certificate(
            "Bulla Emulated SGX PCK Certificate",
            4,
            &parameters.of(Part::Pck),
        );
        let ppid: [u8; 16] = random_bytes(&random)?;
        let qe_id: [u8; 16] = random_bytes(&random)?;
        params.custom_extensions = vec![CustomExtension::from_oid_content(
            &[1, 2, 840, 113_741, 1, 13, 1],
            sgx_extension(&ppid, &parameters.cpu_svn),
        )];
        let pck = params.signed_by(&pck_key, &pck_ca.issuer())?;

        let sign = |text: &str| sign(&tcb_key.serialize_der(), text.as_bytes());
        let tcb_info = tcb_info(&parameters.of(Part::TcbInfo));
        let qe_identity = qe_identity(&parameters.of(Part::QeIdentity));
        let revoked = [
            (parameters.revoke_pck_ca, 2),
            (parameters.revoke_tcb_signing, 3),
        ];
        let issuer_chain = format!("{}{}", tcb_signing.pem(), root.pem);
        let collateral = Collateral {
            pck_crl_issuer_chain: format!("{}{}", pck_ca.pem, root.pem),
            root_ca_crl: root.revocations(&revoked, &parameters.of(Part::RootRevocations))?,
            pck_crl: pck_ca.revocations(
                &[(parameters.revoke_pck, 4)],
                &parameters.of(Part::PckRevocations),
            )?,
            tcb_info_issuer_chain: issuer_chain.clone(),
            tcb_info_signature: sign(&tcb_info)?,
            tcb_info,
            qe_identity_issuer_chain: issuer_chain,
            qe_identity_signature: sign(&qe_identity)?,
            qe_identity,
        };
        Ok(Provisioning {
            version: VERSION,
            pck_key: pck_key.serialize_der(),
            attestation_key: KeyPair::generate()?.serialize_der(),
            cpu_svn: parameters.cpu_svn.to_vec(),
            qe_id: qe_id.to_vec(),
            pck_chain: format!("{}{}{}", pck.pem(), pck_ca.pem, root.pem),
            collateral,
        })
    }

    /// What a verifier needs beside a quote of this platform.
    pub fn collateral(&self) -> &Collateral {
        &self.collateral
    }

    /// The PCK certificate chain, PEM.
    pub fn pck_chain(&self) -> &str {
        &self.pck_chain
    }

    /// Writes a file of its own first and links it, so that of several processes one wins and
    /// nobody sees half a file.
    fn keep(&self, directory: &Path, path: &Path) -> Result<(), ProvisioningError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(files("make", directory))?;
        let unique = u64::from_le_bytes(random_bytes(&SystemRandom::new())?);
        let temporary = directory.join(format!(".{FILE}.{unique:016x}"));
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| ProvisioningError::Make(error.to_string()))?;
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            })
            .and_then(|()| fs::hard_link(&temporary, path));
        let _ = fs::remove_file(&temporary);
        match written {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(files("write", path)(error))
            }
            _ => Ok(()),
        }
    }
}

fn files(what: &'static str, path: &Path) -> impl Fn(io::Error) -> ProvisioningError {
    let path = path.to_owned();
    move |source| ProvisioningError::Files {
        what,
        path: path.clone(),
        source,
    }
}

fn random_bytes<const N: usize>(random: &SystemRandom) -> Result<[u8; N], ProvisioningError> {
    let mut bytes = [0; N];
    random
        .fill(&mut bytes)
        .map_err(|_| ProvisioningError::Make("no random numbers".into()))?;
    Ok(bytes)
}

/// ECDSA P-256, r ‖ s.
pub(super) fn sign(pkcs8: &[u8], data: &[u8]) -> Result<Vec<u8>, ProvisioningError> {
    let failed = |_| ProvisioningError::Make("signing failed".into());
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
        .map_err(|error| ProvisioningError::Make(format!("a key is damaged: {error}")))?;
    Ok(key.sign(&random, data).map_err(failed)?.as_ref().to_vec())
}

/// A certificate authority.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl Authority {
    fn root(parameters: &Parameters) -> Result<Authority, ProvisioningError> {
        let key = KeyPair::generate()?;
        let params = authority(
            EMULATED_ROOT_NAME,
            1,
            BasicConstraints::Constrained(1),
            parameters,
        );
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { params, key, pem })
    }

    fn intermediate(
        &self,
        name: &str,
        serial: u64,
        parameters: &Parameters,
    ) -> Result<Authority, ProvisioningError> {
        let key = KeyPair::generate()?;
        let params = authority(name, serial, BasicConstraints::Constrained(0), parameters);
        let pem = params.signed_by(&key, &self.issuer())?.pem();
        Ok(Authority { params, key, pem })
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// A CRL with those serial numbers that are marked.
    fn revocations(
        &self,
        serials: &[(bool, u64)],
        parameters: &Parameters,
    ) -> Result<Vec<u8>, ProvisioningError> {
        let revoked_certs = serials
            .iter()
            .filter(|(revoked, _)| *revoked)
            .map(|(_, serial)| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: moment(parameters.from),
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            })
            .collect();
        let list = CertificateRevocationListParams {
            this_update: moment(parameters.from),
            next_update: moment(parameters.collateral_until.unwrap_or(parameters.until)),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer())?.der().to_vec())
    }
}

fn moment(seconds: u64) -> OffsetDateTime {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn certificate(name: &str, serial: u64, parameters: &Parameters) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject.push(DnType::OrganizationName, "Bulla (emulated: proves nothing)");
    params.distinguished_name = subject;
    params.serial_number = Some(SerialNumber::from(serial));
    params.not_before = moment(parameters.from);
    params.not_after = moment(parameters.until);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn authority(
    name: &str,
    serial: u64,
    constraints: BasicConstraints,
    parameters: &Parameters,
) -> CertificateParams {
    let mut params = certificate(name, serial, parameters);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The FMSPC of emulated platforms, which no real one has.
const FMSPC: [u8; 6] = [0xb0, 0x11, 0xae, 0, 0, 0];
const PCE_ID: [u8; 2] = [0, 0];

/// The SGX extension of a PCK certificate (Intel, "SGX PCK Certificate and CRL Profile").
fn sgx_extension(ppid: &[u8; 16], cpu_svn: &[u8; 16]) -> Vec<u8> {
    const OCTETS: u8 = 0x04;
    const INTEGER: u8 = 0x02;
    const ENUMERATED: u8 = 0x0a;
    let field = |suffix: &[u8], value: Vec<u8>| {
        // 1.2.840.113741.1.13.1, then the suffix.
        let oid = [
            &[0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01],
            suffix,
        ]
        .concat();
        sequence(&[tlv(0x06, &oid), value])
    };
    let integer = |number: u16| {
        let bytes = number.to_be_bytes();
        let first = usize::from(bytes[0] == 0);
        // A leading zero keeps it positive.
        let sign: &[u8] = if bytes[first] >= 0x80 { &[0] } else { &[] };
        tlv(INTEGER, &[sign, &bytes[first..]].concat())
    };
    let mut tcb: Vec<Vec<u8>> = (1u8..)
        .zip(cpu_svn)
        .map(|(component, svn)| field(&[2, component], integer(u16::from(*svn))))
        .collect();
    tcb.push(field(&[2, 17], integer(PCE_SVN)));
    tcb.push(field(&[2, 18], tlv(OCTETS, cpu_svn)));
    sequence(&[
        field(&[1], tlv(OCTETS, ppid)),
        field(&[2], sequence(&tcb)),
        field(&[3], tlv(OCTETS, &PCE_ID)),
        field(&[4], tlv(OCTETS, &FMSPC)),
        field(&[5], tlv(ENUMERATED, &[0])),
    ])
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// DER: tag, length, value; values are shorter than 64 KiB.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len();
    let mut out = vec![tag];
    match length {
        0..0x80 => out.push(length as u8),
        0x80..0x100 => out.extend([0x81, length as u8]),
        _ => {
            out.push(0x82);
            out.extend((length as u16).to_be_bytes());
        }
    }
    out.extend(value);
    out
}

fn dates(parameters: &Parameters) -> serde_json::Value {
    serde_json::json!({
        "issueDate": date(parameters.from),
        "nextUpdate": date(parameters.collateral_until.unwrap_or(parameters.until)),
    })
}

/// An object with the fields of several.
fn merged(parts: &[serde_json::Value]) -> String {
    let fields = parts
        .iter()
        .filter_map(serde_json::Value::as_object)
        .flatten();
    let object: serde_json::Map<_, _> = fields
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    serde_json::Value::Object(object).to_string()
}

fn tcb_info(parameters: &Parameters) -> String {
    let level_date = date(parameters.from);
    let levels: Vec<_> = parameters
        .levels
        .iter()
        .map(|level| {
            let components: Vec<_> = level
                .components
                .iter()
                .map(|svn| serde_json::json!({ "svn": svn }))
                .collect();
            serde_json::json!({
                "tcb": { "sgxtcbcomponents": components, "pcesvn": level.pce_svn },
                "tcbDate": level_date,
                "tcbStatus": level.status,
                "advisoryIDs": level.advisories,
            })
        })
        .collect();
    let rest = serde_json::json!({
        "id": "SGX",
        "version": 3,
        "fmspc": hex::encode_upper(FMSPC),
        "pceId": hex::encode_upper(PCE_ID),
        "tcbType": 0,
        "tcbEvaluationDataNumber": parameters.evaluation_number,
        "tcbLevels": levels,
    });
    merged(&[dates(parameters), rest])
}

fn qe_identity(parameters: &Parameters) -> String {
    let enclave = quoting_enclave_report(parameters.cpu_svn, [0; 64]);
    let rest = serde_json::json!({
        "id": "QE",
        "version": 2,
        "tcbEvaluationDataNumber": parameters.evaluation_number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex::encode_upper(enclave.mrsigner),
        "isvprodid": enclave.isv_prod_id,
        "tcbLevels": [{
            "tcb": { "isvsvn": QE_SVN },
            "tcbDate": date(parameters.from),
            "tcbStatus": parameters.qe_status,
            "advisoryIDs": parameters.qe_advisories,
        }],
    });
    merged(&[dates(parameters), rest])
}
