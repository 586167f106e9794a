//! Quotes: what the coordinator needs of attestation, behind traits, so that its rules can be
//! tested with any platform.

use crate::manifest::{Infrastructure, Package, SW_HARDENING_NEEDED, UP_TO_DATE};
use std::collections::BTreeMap;

/// What a verified quote says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    pub mr_enclave: [u8; 32],
    pub mr_signer: [u8; 32],
    pub product_id: u16,
    pub security_version: u16,
    pub debug: bool,
    pub report_data: [u8; 64],
    /// As Intel names it: `UpToDate`, `SWHardeningNeeded`, …
    pub tcb_status: String,
    pub advisories: Vec<String>,
    pub cpu_svn: [u8; 16],
    pub pce_svn: u16,
    pub qe_svn: u16,
    /// SHA-256 of the root that the platform's certificates lead to.
    pub root_hash: [u8; 32],
    /// What tells platforms apart, to revoke one (hex).
    pub platform: String,
    /// Signed by an emulated platform: nothing is kept secret there.
    pub emulated: bool,
}

/// Verifies quotes down to a root, without judging what is in them.
pub trait QuoteVerifier: Send + Sync {
    fn verify(&self, quote: &[u8]) -> Result<Evidence, String>;
}

/// Makes quotes of the coordinator itself.
pub trait QuoteIssuer: Send + Sync {
    fn issue(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, String>;
}

/// Where there is no platform: the quote is `null`, and clients must be told to go without.
pub struct NoPlatform;

impl QuoteIssuer for NoPlatform {
    fn issue(&self, _: &[u8; 64]) -> Result<Vec<u8>, String> {
        Err("the coordinator does not run in an enclave".to_owned())
    }
}

impl QuoteVerifier for NoPlatform {
    fn verify(&self, _: &[u8]) -> Result<Evidence, String> {
        Err("the coordinator has no means to verify quotes".to_owned())
    }
}

/// Open Enclave's evidence header: version 1, type 2 (SGX ECDSA), length.
const OE_HEADER: usize = 16;

/// The quote without Open Enclave's header, if it has one.
pub fn strip_oe_header(quote: &[u8]) -> Result<&[u8], String> {
    let Some((header, rest)) = quote.split_first_chunk::<OE_HEADER>() else {
        return Err("quote is too short".to_owned());
    };
    if header[..8] != [1, 0, 0, 0, 2, 0, 0, 0] {
        return Ok(quote);
    }
    let mut length = [0; 8];
    length.copy_from_slice(&header[8..]);
    usize::try_from(u64::from_le_bytes(length))
        .ok()
        .filter(|length| *length <= rest.len())
        .map(|length| &rest[..length])
        .ok_or_else(|| "quote is shorter than its header says".to_owned())
}

/// Adds Open Enclave's header, which MarbleRun's clients expect.
pub fn with_oe_header(quote: &[u8]) -> Vec<u8> {
    [
        &[1, 0, 0, 0, 2, 0, 0, 0],
        &(quote.len() as u64).to_le_bytes()[..],
        quote,
    ]
    .concat()
}

/// Whether a quote is of a package on an allowed infrastructure; the reason if not.
pub fn matches(
    evidence: &Evidence,
    package: &Package,
    infrastructures: &BTreeMap<String, Infrastructure>,
) -> Result<(), String> {
    if evidence.emulated && !package.insecure_allow_emulated {
        return Err(
            "the quote is of an emulated platform, which keeps nothing secret; the package does \
             not set InsecureAllowEmulated"
                .to_owned(),
        );
    }
    if evidence.debug != package.debug {
        return Err(match evidence.debug {
            true => "the enclave is in debug mode, the package is not".to_owned(),
            false => "the package is in debug mode, the enclave is not".to_owned(),
        });
    }
    let ids: Vec<&String> = std::iter::once(&package.unique_id)
        .chain(&package.unique_ids)
        .filter(|id| !id.is_empty())
        .collect();
    let mr_enclave = hex::encode(evidence.mr_enclave);
    if !ids.is_empty() && !ids.iter().any(|id| id.eq_ignore_ascii_case(&mr_enclave)) {
        return Err(format!(
            "UniqueID is {mr_enclave}, which the package does not list"
        ));
    }
    let mr_signer = hex::encode(evidence.mr_signer);
    if !package.signer_id.is_empty() && !package.signer_id.eq_ignore_ascii_case(&mr_signer) {
        return Err(format!("SignerID is {mr_signer}, not that of the package"));
    }
    if let Some(product) = package.product_id
        && product != u64::from(evidence.product_id)
    {
        return Err(format!(
            "ProductID is {}, not {product}",
            evidence.product_id
        ));
    }
    if let Some(version) = package.security_version
        && version > u32::from(evidence.security_version)
    {
        return Err(format!(
            "SecurityVersion is {}, below {version}",
            evidence.security_version
        ));
    }
    tcb(evidence, package)?;
    if infrastructures.is_empty() || infrastructures.values().any(|i| allows(i, evidence)) {
        return Ok(());
    }
    Err("the platform matches none of the manifest's infrastructures".to_owned())
}

fn tcb(evidence: &Evidence, package: &Package) -> Result<(), String> {
    let status = evidence.tcb_status.as_str();
    if status == UP_TO_DATE {
        return Ok(());
    }
    let accepted = match package.accepted_tcb_statuses.is_empty() {
        true => status == SW_HARDENING_NEEDED,
        false => package.accepted_tcb_statuses.iter().any(|s| s == status),
    };
    if !accepted {
        return Err(format!(
            "the TCB status is {status}, which the package does not accept"
        ));
    }
    if status == SW_HARDENING_NEEDED && !package.accepted_advisories.is_empty() {
        let refused: Vec<&str> = evidence
            .advisories
            .iter()
            .filter(|advisory| {
                !package
                    .accepted_advisories
                    .iter()
                    .any(|accepted| accepted.eq_ignore_ascii_case(advisory))
            })
            .map(String::as_str)
            .collect();
        if !refused.is_empty() {
            return Err(format!(
                "the package does not accept these advisories: {}",
                refused.join(", ")
            ));
        }
    }
    Ok(())
}

fn allows(infrastructure: &Infrastructure, evidence: &Evidence) -> bool {
    let cpu = &infrastructure.cpu_svn.0;
    // Security versions of CPU components are minima, byte by byte.
    let cpu_fits = cpu.is_empty()
        || cpu.len() == 16 && cpu.iter().zip(&evidence.cpu_svn).all(|(min, is)| is >= min);
    let root = &infrastructure.root_ca.0;
    let root_fits = root.is_empty()
        || crate::sha256(root) == evidence.root_hash
        || x509_parser::pem::parse_x509_pem(root)
            .is_ok_and(|(_, block)| crate::sha256(&block.contents) == evidence.root_hash);
    cpu_fits
        && root_fits
        && infrastructure
            .qe_svn
            .is_none_or(|min| evidence.qe_svn >= min)
        && infrastructure
            .pce_svn
            .is_none_or(|min| evidence.pce_svn >= min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> Evidence {
        Evidence {
            mr_enclave: [0xab; 32],
            mr_signer: [2; 32],
            product_id: 3,
            security_version: 4,
            debug: false,
            report_data: [0; 64],
            tcb_status: UP_TO_DATE.to_owned(),
            advisories: Vec::new(),
            cpu_svn: [5; 16],
            pce_svn: 10,
            qe_svn: 6,
            root_hash: crate::sha256(&[1, 2, 3]),
            platform: String::new(),
            emulated: false,
        }
    }

    fn by_signer() -> Package {
        Package {
            signer_id: "02".repeat(32),
            product_id: Some(3),
            security_version: Some(4),
            ..Package::default()
        }
    }

    fn check(evidence: &Evidence, package: &Package) -> Result<(), String> {
        matches(evidence, package, &BTreeMap::new())
    }

    #[test]
    fn identities_must_match() {
        let unique = |id: String| Package {
            unique_id: id,
            ..Package::default()
        };
        assert!(check(&evidence(), &unique("AB".repeat(32))).is_ok());
        assert!(check(&evidence(), &unique("ac".repeat(32))).is_err());
        let several = Package {
            unique_ids: vec!["00".repeat(32), "ab".repeat(32)],
            ..Package::default()
        };
        assert!(check(&evidence(), &several).is_ok());
        assert!(check(&evidence(), &by_signer()).is_ok());
        for package in [
            Package {
                signer_id: "03".repeat(32),
                ..by_signer()
            },
            Package {
                product_id: Some(2),
                ..by_signer()
            },
            Package {
                security_version: Some(5),
                ..by_signer()
            },
            Package {
                debug: true,
                ..by_signer()
            },
        ] {
            assert!(check(&evidence(), &package).is_err(), "{package:?}");
        }
        let older = Package {
            security_version: Some(1),
            ..by_signer()
        };
        assert!(
            check(&evidence(), &older).is_ok(),
            "the version is a minimum"
        );
        let debug = Evidence {
            debug: true,
            ..evidence()
        };
        assert!(check(&debug, &by_signer()).is_err());
        assert!(
            check(
                &debug,
                &Package {
                    debug: true,
                    ..by_signer()
                }
            )
            .is_ok()
        );
    }

    #[test]
    fn emulated_platforms_need_an_insecure_word() {
        let emulated = Evidence {
            emulated: true,
            ..evidence()
        };
        assert!(check(&emulated, &by_signer()).is_err());
        let package = Package {
            insecure_allow_emulated: true,
            ..by_signer()
        };
        assert!(check(&emulated, &package).is_ok());
    }

    #[test]
    fn tcb_statuses_and_advisories_follow_the_package() {
        let hardening = Evidence {
            tcb_status: SW_HARDENING_NEEDED.to_owned(),
            advisories: vec!["INTEL-SA-00334".to_owned(), "INTEL-SA-00615".to_owned()],
            ..evidence()
        };
        assert!(
            check(&hardening, &by_signer()).is_ok(),
            "accepted by default"
        );
        let accepting = |list: &[&str]| Package {
            accepted_advisories: list.iter().map(|s| (*s).to_owned()).collect(),
            ..by_signer()
        };
        assert!(check(&hardening, &accepting(&["INTEL-SA-00334"])).is_err());
        assert!(
            check(
                &hardening,
                &accepting(&["intel-sa-00334", "INTEL-SA-00615"])
            )
            .is_ok()
        );
        let outdated = Evidence {
            tcb_status: "OutOfDate".to_owned(),
            ..evidence()
        };
        assert!(check(&outdated, &by_signer()).is_err());
        let lenient = Package {
            accepted_tcb_statuses: vec!["OutOfDate".to_owned()],
            ..by_signer()
        };
        assert!(check(&outdated, &lenient).is_ok());
        assert!(
            check(&hardening, &lenient).is_err(),
            "the list replaces the default"
        );
    }

    #[test]
    fn infrastructures_are_enforced() {
        use crate::json::Bytes;
        let within = |infrastructure: Infrastructure| {
            matches(
                &evidence(),
                &by_signer(),
                &BTreeMap::from([("azure".to_owned(), infrastructure)]),
            )
            .is_ok()
        };
        assert!(within(Infrastructure::default()));
        assert!(within(Infrastructure {
            cpu_svn: Bytes(vec![5; 16]),
            ..Default::default()
        }));
        assert!(!within(Infrastructure {
            cpu_svn: Bytes(vec![6; 16]),
            ..Default::default()
        }));
        assert!(!within(Infrastructure {
            cpu_svn: Bytes(vec![1; 3]),
            ..Default::default()
        }));
        assert!(!within(Infrastructure {
            qe_svn: Some(7),
            ..Default::default()
        }));
        assert!(!within(Infrastructure {
            pce_svn: Some(11),
            ..Default::default()
        }));
        assert!(within(Infrastructure {
            root_ca: Bytes(vec![1, 2, 3]),
            ..Default::default()
        }));
        assert!(!within(Infrastructure {
            root_ca: Bytes(vec![1, 2]),
            ..Default::default()
        }));
    }

    #[test]
    fn the_open_enclave_header_comes_and_goes() {
        let quote = vec![3; 500];
        assert_eq!(strip_oe_header(&with_oe_header(&quote)).unwrap(), quote);
        assert_eq!(strip_oe_header(&quote).unwrap(), quote);
        assert!(strip_oe_header(&[1, 0]).is_err());
        let mut lying = with_oe_header(&quote);
        lying[15] = 0xff;
        assert!(strip_oe_header(&lying).is_err());
        lying.truncate(20);
        assert!(strip_oe_header(&lying).is_err());
    }
}
