//! Whether a quote is genuine: signatures, chains, revocation and dates, up to a root.
//!
//! The work is `dcap-qvl`'s, for hardware and emulated platforms alike; only the root differs. A
//! quote is hardware's if and only if everything verified under Intel's root, which is built in.
//! What the genuine quote is worth is [`crate::Policy`]'s to say: debug enclaves, TCB levels that
//! are not up to date and emulated platforms pass here.

use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{Policy as LibraryPolicy, QuoteClaims, TcbStatus};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bytes::{HexBytes, sha256};
use crate::certificate;
use crate::collateral::{Collateral, CollateralError, date};
use crate::quote::{Identity, Quote, QuoteError, Tee};
use crate::remember::Remembering;

/// Intel's SGX provisioning root, which signs for every SGX and TDX platform.
pub static INTEL_ROOT: &[u8] = include_bytes!("../roots/intel-sgx-root-ca.der");

/// What an emulated platform's root calls itself. Only a marker to choose the root by: under
/// whatever root that is not Intel's, the platform counts as emulated.
pub const EMULATED_ROOT_NAME: &str = "Bulla Emulated SGX Root CA";

/// Which platform signed a quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// A CPU that Intel vouches for.
    Hardware,
    /// Software that anyone can run: proves nothing.
    Emulated,
}

/// Why a quote is not genuine, or cannot be shown to be. All of them are refusals.
#[derive(Debug, Error)]
pub enum VerifyError {
    #[error(transparent)]
    Quote(#[from] QuoteError),
    #[error(transparent)]
    Collateral(#[from] CollateralError),
    /// Something failed to verify.
    #[error("{reason} ({detail})")]
    NotGenuine { reason: Reason, detail: String },
}

/// What did not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A date of the collateral or a certificate has passed.
    Expired,
    /// A date has not come yet.
    NotYetValid,
    /// A certificate is on a revocation list.
    CertificateRevoked,
    /// Intel has revoked the platform's TCB level.
    TcbRevoked,
    /// A chain does not lead to the root.
    UntrustedChain,
    /// A signature over the quote or its collateral is wrong.
    WrongSignature,
    /// The quoting enclave is not the one that the platform's maker vouches for.
    QuotingEnclave,
    /// The collateral is another platform's.
    OtherPlatform,
    /// The platform is older than every TCB level.
    NoTcbLevel,
    /// The quote is of a kind that is not supported.
    Unsupported,
    /// The collateral cannot be understood.
    MalformedCollateral,
    /// Another check of the verification library.
    Other,
}

impl Reason {
    /// What it means.
    pub fn meaning(self) -> &'static str {
        match self {
            Reason::Expired => "the statements about the platform are too old to rely on",
            Reason::NotYetValid => "the statements about the platform are from the future",
            Reason::CertificateRevoked => "a key of this platform is known to be compromised",
            Reason::TcbRevoked => "this platform's security version is known to be broken",
            Reason::UntrustedChain => "the platform's keys are not certified by the trusted root",
            Reason::WrongSignature => "the quote or its collateral was altered or forged",
            Reason::QuotingEnclave => "the quote was not signed by a genuine quoting enclave",
            Reason::OtherPlatform => "the collateral does not belong to the quote",
            Reason::NoTcbLevel => "the platform's firmware is older than all that is known of it",
            Reason::Unsupported => "this kind of quote cannot be verified",
            Reason::MalformedCollateral => "the collateral is damaged",
            Reason::Other => "the quote could not be shown to be genuine",
        }
    }

    /// What to do.
    pub fn remedy(self) -> &'static str {
        match self {
            Reason::Expired => {
                "fetch fresh collateral (delete the cached or saved one), and check this machine's clock"
            }
            Reason::NotYetValid => "check this machine's clock",
            Reason::CertificateRevoked => "do not use this machine; ask who runs it",
            Reason::TcbRevoked => "do not use this machine until its firmware is updated",
            Reason::UntrustedChain => {
                "use a production SGX machine; for an emulated one set insecure_allow_emulated"
            }
            Reason::WrongSignature | Reason::QuotingEnclave => "do not trust this peer",
            Reason::OtherPlatform => "fetch the collateral for this quote's FMSPC and CA",
            Reason::NoTcbLevel => "update the machine's BIOS and microcode",
            Reason::Unsupported => "make a DCAP quote (ECDSA, version 3 for SGX)",
            Reason::MalformedCollateral => "fetch the collateral again",
            Reason::Other => "see the detail; do not trust this peer",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::Expired => "expired",
            Reason::NotYetValid => "not valid yet",
            Reason::CertificateRevoked => "certificate revoked",
            Reason::TcbRevoked => "TCB level revoked",
            Reason::UntrustedChain => "untrusted certificate chain",
            Reason::WrongSignature => "wrong signature",
            Reason::QuotingEnclave => "wrong quoting enclave",
            Reason::OtherPlatform => "collateral of another platform",
            Reason::NoTcbLevel => "no TCB level matches",
            Reason::Unsupported => "unsupported quote",
            Reason::MalformedCollateral => "malformed collateral",
            Reason::Other => "not genuine",
        })
    }
}

/// Sorts the library's message. Only words for people depend on it: every message is a refusal.
fn classify(message: &str) -> Reason {
    let has = |words: &str| message.contains(words);
    if has("TCB status is invalid: Revoked") {
        Reason::TcbRevoked
    } else if has("CertRevoked") {
        Reason::CertificateRevoked
    } else if has("issue date is in the future") || has("CertNotValidYet") {
        Reason::NotYetValid
    } else if has("expired") || has("Expired") {
        Reason::Expired
    } else if has("Unsupported QE Identity") {
        Reason::OtherPlatform
    } else if has("Unsupported") || has("must have version") || has("Unknown QE vendor") {
        Reason::Unsupported
    } else if ["ignature is invalid", "InvalidSignature", "Intel extension"]
        .into_iter()
        .any(has)
    {
        Reason::WrongSignature
    } else if has("QE report hash mismatch")
        || has("MRSIGNER")
        || has("ISVPRODID")
        || has("QE Identity")
        || has("QE ")
        || has("miscselect")
    {
        Reason::QuotingEnclave
    } else if has("Fmspc mismatch") || has("PCE ID") || has("non-SGX TCB") || has("non-TDX TCB") {
        Reason::OtherPlatform
    } else if has("No matching TCB level") || has("below minimum required") {
        Reason::NoTcbLevel
    } else if has("certificate chain")
        || has("UnknownIssuer")
        || has("Certificate chain is too short")
        || has("root")
    {
        Reason::UntrustedChain
    } else if has("Failed to") {
        Reason::MalformedCollateral
    } else {
        Reason::Other
    }
}

/// The library's messages hold times as `UnixTime(1814400000)`.
fn with_dates(message: &str) -> String {
    let mut parts = message.split("UnixTime(");
    let mut text = parts.next().unwrap_or_default().to_string();
    for part in parts {
        match part.split_once(')') {
            Some((seconds, rest)) if seconds.parse::<u64>().is_ok() => {
                text += &date(seconds.parse().unwrap_or_default());
                text += rest;
            }
            _ => {
                text += "UnixTime(";
                text += part;
            }
        }
    }
    text
}

/// A TCB status; see [`crate::words`] for what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    UpToDate,
    #[serde(rename = "SWHardeningNeeded")]
    SwHardeningNeeded,
    ConfigurationNeeded,
    #[serde(rename = "ConfigurationAndSWHardeningNeeded")]
    ConfigurationAndSwHardeningNeeded,
    OutOfDate,
    OutOfDateConfigurationNeeded,
    #[serde(rename = "TDRelaunchAdvised")]
    TdRelaunchAdvised,
    #[serde(rename = "TDRelaunchAdvisedConfigurationNeeded")]
    TdRelaunchAdvisedConfigurationNeeded,
    Revoked,
}

impl Status {
    /// All of them.
    pub const ALL: [Status; 9] = [
        Status::UpToDate,
        Status::SwHardeningNeeded,
        Status::ConfigurationNeeded,
        Status::ConfigurationAndSwHardeningNeeded,
        Status::OutOfDate,
        Status::OutOfDateConfigurationNeeded,
        Status::TdRelaunchAdvised,
        Status::TdRelaunchAdvisedConfigurationNeeded,
        Status::Revoked,
    ];

    /// Intel's name.
    pub fn name(self) -> &'static str {
        match self {
            Status::UpToDate => "UpToDate",
            Status::SwHardeningNeeded => "SWHardeningNeeded",
            Status::ConfigurationNeeded => "ConfigurationNeeded",
            Status::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Status::OutOfDate => "OutOfDate",
            Status::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Status::TdRelaunchAdvised => "TDRelaunchAdvised",
            Status::TdRelaunchAdvisedConfigurationNeeded => "TDRelaunchAdvisedConfigurationNeeded",
            Status::Revoked => "Revoked",
        }
    }

    /// The status of this name.
    pub fn of_name(name: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.name() == name)
    }

    /// The status of a platform whose quoting enclave has another one: what is wrong with either is
    /// wrong with both. (Intel's own rules, which the library follows, let a quoting enclave that
    /// needs a configuration pass for one that is up to date.)
    fn with_quoting_enclave(self, other: Status) -> Status {
        use Status::*;
        if self == other || other == UpToDate {
            return self;
        }
        if self == Revoked || other == Revoked {
            return Revoked;
        }
        let either = |statuses: &[Status]| statuses.contains(&self) || statuses.contains(&other);
        let is_old = either(&[OutOfDate, OutOfDateConfigurationNeeded]);
        let needs_configuration = either(&[
            ConfigurationNeeded,
            ConfigurationAndSwHardeningNeeded,
            OutOfDateConfigurationNeeded,
            TdRelaunchAdvisedConfigurationNeeded,
        ]);
        let needs_relaunch = either(&[TdRelaunchAdvised, TdRelaunchAdvisedConfigurationNeeded]);
        let needs_hardening = either(&[SwHardeningNeeded, ConfigurationAndSwHardeningNeeded]);
        match (is_old, needs_configuration) {
            (true, true) => OutOfDateConfigurationNeeded,
            (true, false) => OutOfDate,
            (false, true) if needs_relaunch => TdRelaunchAdvisedConfigurationNeeded,
            (false, true) if needs_hardening => ConfigurationAndSwHardeningNeeded,
            (false, true) => ConfigurationNeeded,
            (false, false) if needs_relaunch => TdRelaunchAdvised,
            (false, false) if needs_hardening => SwHardeningNeeded,
            (false, false) => UpToDate,
        }
    }

    fn of_library(status: TcbStatus) -> Status {
        match status {
            TcbStatus::UpToDate => Status::UpToDate,
            TcbStatus::SWHardeningNeeded => Status::SwHardeningNeeded,
            TcbStatus::ConfigurationNeeded => Status::ConfigurationNeeded,
            TcbStatus::ConfigurationAndSWHardeningNeeded => {
                Status::ConfigurationAndSwHardeningNeeded
            }
            TcbStatus::OutOfDate => Status::OutOfDate,
            TcbStatus::OutOfDateConfigurationNeeded => Status::OutOfDateConfigurationNeeded,
            TcbStatus::TDRelaunchAdvised => Status::TdRelaunchAdvised,
            TcbStatus::TDRelaunchAdvisedConfigurationNeeded => {
                Status::TdRelaunchAdvisedConfigurationNeeded
            }
            TcbStatus::Revoked => Status::Revoked,
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How current a platform is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tcb {
    /// Platform and quoting enclave together.
    pub status: Status,
    pub platform_status: Status,
    pub quoting_enclave_status: Status,
    /// Advisories that concern the platform or its quoting enclave at their present level.
    pub advisories: Vec<String>,
    /// Date of the platform's level, seconds since 1970.
    pub level_date: u64,
    pub evaluation_number: u32,
}

/// Which machine it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    pub fmspc: HexBytes<6>,
    /// Platform provisioning id.
    pub ppid: String,
    /// The quoting enclave's id of this platform.
    pub qe_id: HexBytes<16>,
    pub platform_instance_id: Option<HexBytes<16>>,
    pub pce_svn: u16,
    /// Hyper-threading, where the certificate says.
    pub hyperthreading: Option<bool>,
}

/// A genuine quote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    pub platform: Platform,
    pub tee: Tee,
    pub identity: Identity,
    pub tcb: Tcb,
    pub machine: Machine,
    /// SHA-256 of the root certificate.
    pub root: HexBytes<32>,
    /// Until when the collateral is good, seconds since 1970.
    pub collateral_until: u64,
}

/// Everything passes: deciding is our policy's.
struct Unjudged;

impl LibraryPolicy for Unjudged {
    fn validate(&self, _: &QuoteClaims) -> Result<(), anyhow::Error> {
        Ok(())
    }
}

/// Verifies a quote at a time (seconds since 1970).
pub fn verify(quote: &[u8], collateral: &Collateral, now: u64) -> Result<Evidence, VerifyError> {
    let (decoded, exact) = Quote::decode(quote)?;
    collateral.check()?;
    let (platform, root) = choose_root(&decoded);
    let not_genuine = |detail: String| VerifyError::NotGenuine {
        reason: classify(&detail),
        detail: with_dates(&detail),
    };
    let claims = QuoteVerifier::<Remembering>::new_with_config(root.to_vec())
        .allow_debug(true)
        .verify_with_policy(exact, collateral.to_library(), now, &Unjudged)
        .map_err(|error| not_genuine(format!("{error:#}")))?;
    // The library looks at most dates itself, and not at those of the root.
    if claims.latest_issue_date > now {
        return Err(not_genuine(format!(
            "the issue date is in the future: a part of chain or collateral is good from {} on",
            date(claims.latest_issue_date)
        )));
    }
    if claims.earliest_expiration_date < now {
        return Err(not_genuine(format!(
            "a part of chain or collateral expired on {}",
            date(claims.earliest_expiration_date)
        )));
    }
    check_pce(collateral, &claims).map_err(not_genuine)?;
    let quoting_enclave_status = Status::of_library(claims.qe.tcb_level.tcb_status);
    let status = Status::of_library(claims.tcb.status).with_quoting_enclave(quoting_enclave_status);
    if status == Status::Revoked {
        return Err(not_genuine("TCB status is invalid: Revoked".into()));
    }
    let pck = &claims.platform.pck;
    Ok(Evidence {
        platform,
        tee: decoded.tee,
        tcb: Tcb {
            status,
            platform_status: Status::of_library(claims.platform.tcb_level.tcb_status),
            quoting_enclave_status,
            advisories: claims.tcb.advisory_ids.clone(),
            level_date: claims.platform.tcb_date_tag,
            evaluation_number: claims.tcb.eval_data_number,
        },
        machine: Machine {
            fmspc: HexBytes(pck.fmspc),
            ppid: hex::encode(&pck.ppid),
            qe_id: HexBytes(decoded.qe_id),
            platform_instance_id: pck.platform_instance_id.map(HexBytes),
            pce_svn: pck.pce_svn,
            hyperthreading: match pck.smt_enabled {
                dcap_qvl::PckCertFlag::True => Some(true),
                dcap_qvl::PckCertFlag::False => Some(false),
                dcap_qvl::PckCertFlag::Undefined => None,
            },
        },
        root: HexBytes(sha256(&[root])),
        collateral_until: claims.earliest_expiration_date,
        identity: decoded.identity,
    })
}

/// Intel's root, unless the quote's chain ends in an emulated one.
fn choose_root(quote: &Quote) -> (Platform, &[u8]) {
    match quote.certificates.last() {
        Some(last)
            if last != INTEL_ROOT && certificate::is_root_named(last, EMULATED_ROOT_NAME) =>
        {
            (Platform::Emulated, last)
        }
        _ => (Platform::Hardware, INTEL_ROOT),
    }
}

/// The TCB info must be for the PCE that certified the quoting enclave, which the library leaves
/// out.
fn check_pce(collateral: &Collateral, claims: &QuoteClaims) -> Result<(), String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Pce {
        pce_id: String,
    }
    let info: Pce = serde_json::from_str(&collateral.tcb_info)
        .map_err(|error| format!("Failed to decode TcbInfo: {error}"))?;
    let certified = hex::encode(&claims.platform.pck.pce_id);
    if info.pce_id.eq_ignore_ascii_case(&certified) {
        Ok(())
    } else {
        Err(format!("PCE ID mismatch: {} and {certified}", info.pce_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_messages_are_dates() {
        let message = "CrlExpired { time: UnixTime(1814400000), next_update: UnixTime(0) }";
        assert_eq!(
            with_dates(message),
            "CrlExpired { time: 2027-07-01T00:00:00Z, next_update: 1970-01-01T00:00:00Z }"
        );
        for odd in ["", "UnixTime(", "UnixTime(x)", "UnixTime(1"] {
            assert_eq!(with_dates(odd), odd);
        }
    }

    #[test]
    fn a_quoting_enclave_never_improves_a_platform() {
        use Status::*;
        for platform in Status::ALL {
            for quoting_enclave in Status::ALL {
                let both = platform.with_quoting_enclave(quoting_enclave);
                let pair = (platform, quoting_enclave);
                assert_eq!(both == UpToDate, pair == (UpToDate, UpToDate), "{pair:?}");
                assert_eq!(
                    both == Revoked,
                    platform == Revoked || quoting_enclave == Revoked,
                    "{pair:?}"
                );
            }
            assert_eq!(platform.with_quoting_enclave(UpToDate), platform);
            assert_eq!(UpToDate.with_quoting_enclave(platform), platform);
        }
        for (platform, quoting_enclave, both) in [
            (SwHardeningNeeded, OutOfDate, OutOfDate),
            (ConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (OutOfDate, ConfigurationNeeded, OutOfDateConfigurationNeeded),
            (
                SwHardeningNeeded,
                ConfigurationNeeded,
                ConfigurationAndSwHardeningNeeded,
            ),
            (TdRelaunchAdvised, OutOfDate, OutOfDate),
        ] {
            assert_eq!(platform.with_quoting_enclave(quoting_enclave), both);
        }
    }
}
