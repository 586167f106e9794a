//! That the list of ways to fail is complete: every row that a verdict can have fails alone in some case
//! here, every date that has an end is passed alone, every status is accepted by its own name only.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use bulla_attest::coordinator::Shown;
use bulla_attest::emulated::{Level, Parameters, Part};
use bulla_attest::ratls::{Approver, Attester, Request, TlsIdentity, issue};
use bulla_attest::{
    AcceptedAdvisory, AcceptedStatus, Collateral, Disclosed, HexBytes, Judge, NoSource, Policy,
    Reason, Status, Until, Verdict, VerifyError, sha256, verify,
};
use common::{CPU_SVN, Machine, NOW, policy};

fn judge(policy: Policy) -> Judge {
    Judge {
        policy,
        source: Arc::new(NoSource),
        disclosed: None,
    }
}

fn certificate(machine: &dyn Attester) -> TlsIdentity {
    issue(machine, &Request::new(NOW)).unwrap()
}

fn failing(judge: &Judge, der: &[u8]) -> (Verdict, Vec<&'static str>) {
    let verdict = judge.certificate(der, NOW).unwrap().verdict;
    let failing: Vec<_> = verdict.failures().map(|check| check.check).collect();
    assert_eq!(verdict.trusted, failing.is_empty());
    assert_eq!(judge.approve(der, NOW).is_ok(), failing.is_empty());
    (verdict, failing)
}

/// The names of all rows, from the sources: a new one has no case below until somebody writes it.
fn rows() -> BTreeSet<&'static str> {
    [
        include_str!("../src/approve.rs"),
        include_str!("../src/coordinator.rs"),
        include_str!("../src/policy.rs"),
        include_str!("../src/verdict.rs"),
    ]
    .into_iter()
    .flat_map(|source| source.split("#[cfg(test)]").next())
    .flat_map(|source| source.split("check: \"").skip(1))
    .chain(include_str!("../src/policy.rs").split(" pin(\"").skip(1))
    .filter_map(|rest| rest.split('"').next())
    .collect()
}

/// Somebody else's quote in an own certificate.
struct Thief(Vec<u8>, Collateral);

impl Attester for Thief {
    fn quote(&self, _: &[u8; 64]) -> std::io::Result<Vec<u8>> {
        Ok(self.0.clone())
    }

    fn collateral(&self) -> Option<Collateral> {
        Some(self.1.clone())
    }
}

#[test]
fn each_row_can_fail_alone() {
    let machine = Machine::usual();
    let der = certificate(&machine).certificate;
    let with = |change: fn(&mut Policy)| {
        let mut policy = policy();
        change(&mut policy);
        policy
    };
    assert!(failing(&judge(policy()), &der).1.is_empty());
    let mut covered = BTreeSet::new();
    let mut expect = |row: &'static str, judge: &Judge, der: &[u8]| {
        assert_eq!(failing(judge, der).1, [row]);
        covered.insert(row);
    };
    type Change = fn(&mut Policy);
    let by_policy: [(&str, Change); 9] = [
        ("platform", |p| p.insecure_allow_emulated = false),
        ("platform", |p| {
            p.platform.emulated_root = vec![HexBytes([1; 32])];
        }),
        ("enclave", |p| p.accept.clear()),
        ("evaluation number", |p| {
            p.tcb.min_evaluation_number = Some(18);
        }),
        ("fmspc", |p| p.platform.fmspc = vec![HexBytes([1; 6])]),
        ("ppid", |p| p.platform.ppid = vec![HexBytes([1; 16])]),
        ("qe id", |p| p.platform.qe_id = vec![HexBytes([1; 16])]),
        ("hyper-threading", |p| {
            p.platform.refuse_hyperthreading = true;
        }),
        ("enclave", |p| {
            p.accept[0].config_id = Some(HexBytes([1; 64]));
        }),
    ];
    for (row, change) in by_policy {
        expect(row, &judge(with(change)), &der);
    }
    let mut debug = Machine::usual();
    debug.report.attributes.flags |= bulla_sgx::flags::DEBUG;
    expect("debug", &judge(policy()), &certificate(&debug).certificate);
    let level = |status, advisories: &[&str]| {
        let level = Level {
            components: [0; 16],
            pce_svn: 0,
            status,
            advisories: advisories.iter().map(ToString::to_string).collect(),
        };
        certificate(&Machine::new(&Parameters {
            levels: vec![level],
            ..Parameters::new(CPU_SVN, NOW)
        }))
        .certificate
    };
    let old = level(Status::OutOfDate, &[]);
    expect("tcb status", &judge(policy()), &old);
    let advised = level(Status::UpToDate, &["INTEL-SA-00615"]);
    expect("advisory", &judge(policy()), &advised);
    let mut shown = judge(policy());
    shown.disclosed = Some(Disclosed {
        mrenclaves: vec![HexBytes([2; 32])],
        rootfs: HexBytes([1; 32]),
        command: Vec::new(),
        open: Vec::new(),
        image: None,
    });
    expect("configuration", &shown, &der);
    let stolen = machine.enclave.quote(&machine.report.to_bytes()).unwrap();
    let thief = certificate(&Thief(stolen, machine.collateral())).certificate;
    expect("key", &judge(policy()), &thief);
    // What is not genuine vouches for no key either: these two go together.
    let revoked = level(Status::Revoked, &[]);
    assert_eq!(failing(&judge(policy()), &revoked).1, ["key", "quote"]);
    covered.insert("quote");
    // A certificate without a quote has one row, which says no.
    let unattested = Verdict::unattested("it carries no quote".into(), NOW);
    assert!(!unattested.trusted);
    covered.extend(unattested.failures().map(|check| check.check));
    // A coordinator's root and nonce are quoted, and the connection is with a key of its chain.
    let (leaf, root) = (vec![1; 20], vec![2; 20]);
    let pem = |der: &[u8]| {
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            BASE64_STANDARD.encode(der)
        )
    };
    let shown = Shown {
        nonce: vec![7; 32],
        connection: leaf.clone(),
        chain: pem(&leaf) + &pem(&root),
    };
    let mut report_data = [0; 64];
    report_data[..32].copy_from_slice(&sha256(&[&root, &shown.nonce]));
    let quote = Attester::quote(&machine, &report_data).unwrap();
    let source = Judge {
        source: Arc::new(machine.collateral()),
        ..judge(policy())
    };
    let mut said = |shown: &Shown, quote: &[u8]| {
        let verdict = shown.judge(&source, quote, NOW).unwrap().verdict;
        let failing: Vec<_> = verdict.failures().map(|check| check.check).collect();
        assert_eq!(verdict.trusted, failing.is_empty());
        covered.extend(&failing);
        failing
    };
    assert!(said(&shown, &quote).is_empty());
    let changed = |change: fn(&mut Shown)| {
        let mut shown = shown.clone();
        change(&mut shown);
        shown
    };
    let bound = ["root certificate"];
    assert_eq!(said(&changed(|shown| shown.nonce[0] = 8), &quote), bound);
    assert_eq!(said(&changed(|shown| shown.nonce.clear()), &quote), bound);
    // Another root behind the quoted one.
    let other = Shown {
        chain: shown.chain.clone() + &pem(&[9; 20]),
        ..shown.clone()
    };
    assert_eq!(said(&other, &quote), bound);
    report_data[63] = 1;
    let more = Attester::quote(&machine, &report_data).unwrap();
    assert_eq!(said(&shown, &more), bound);
    let connection = changed(|shown| shown.connection = vec![3; 20]);
    assert_eq!(said(&connection, &quote), ["connection"]);
    let nobody = changed(|shown| shown.connection.clear());
    assert_eq!(said(&nobody, &quote), ["connection"]);
    for chain in ["", "no PEM", "-----BEGIN CERTIFICATE-----\n*"] {
        let none = Shown {
            chain: chain.into(),
            ..shown.clone()
        };
        assert!(none.judge(&source, &quote, NOW).is_err(), "{chain}");
    }
    assert_eq!(covered, rows());
}

/// Each certificate, list and statement has dates of its own, and one that is out of date is enough.
#[test]
fn each_date_counts() {
    let usual = Parameters::new(CPU_SVN, NOW);
    let (from, until) = (usual.from, usual.until);
    for part in Part::ALL {
        let reason = |from, until| {
            let machine = Machine::new(&Parameters {
                other_dates: Some((part, from, until)),
                ..usual.clone()
            });
            let der = certificate(&machine).certificate;
            let approved = judge(policy()).approve(&der, NOW).is_ok();
            let quote = machine.enclave.quote(&machine.report.to_bytes()).unwrap();
            let verified = verify(&quote, &machine.collateral(), NOW);
            assert_eq!(approved, verified.is_ok(), "{part:?}");
            verified.map_err(|error| match error {
                VerifyError::NotGenuine { reason, .. } => reason,
                other => panic!("{part:?}: {other}"),
            })
        };
        assert!(reason(from, until).is_ok(), "{part:?}");
        assert_eq!(
            reason(from, NOW - 1).err(),
            Some(Reason::Expired),
            "{part:?}"
        );
        assert_eq!(
            reason(NOW + 1, until).err(),
            Some(Reason::NotYetValid),
            "{part:?}"
        );
        // And the verdict does not outlast the first of them.
        assert_eq!(
            reason(from, NOW + 7).unwrap().collateral_until,
            NOW + 7,
            "{part:?}"
        );
    }
}

/// A status or an advisory that is accepted says nothing of any other.
#[test]
fn each_status_is_accepted_by_its_own_name() {
    let policies: Vec<(Status, Policy)> = Status::ALL
        .into_iter()
        .map(|status| {
            let mut policy = policy();
            policy.tcb.accept = vec![AcceptedStatus {
                status,
                until: None,
            }];
            policy.tcb.advisories = vec![AcceptedAdvisory {
                id: "INTEL-SA-00615".into(),
                until: None,
            }];
            (status, policy)
        })
        .collect();
    for status in Status::ALL {
        for of_quoting_enclave in [false, true] {
            let advisories = vec!["INTEL-SA-00615".to_string()];
            let mut parameters = Parameters::new(CPU_SVN, NOW);
            if of_quoting_enclave {
                parameters.qe_status = status;
                parameters.qe_advisories = advisories;
            } else {
                parameters.levels = vec![Level {
                    components: [0; 16],
                    pce_svn: 0,
                    status,
                    advisories,
                }];
            }
            let der = certificate(&Machine::new(&parameters)).certificate;
            for (accepted, policy) in &policies {
                let approved = judge(policy.clone()).approve(&der, NOW).is_ok();
                // The last two are of TDX machines, and no SGX platform can have them; quoting enclaves
                // need no hardening.
                let never = match status {
                    Status::SwHardeningNeeded | Status::ConfigurationAndSwHardeningNeeded => {
                        of_quoting_enclave
                    }
                    Status::Revoked
                    | Status::TdRelaunchAdvised
                    | Status::TdRelaunchAdvisedConfigurationNeeded => true,
                    _ => false,
                };
                let expected = !never && (status == Status::UpToDate || status == *accepted);
                assert_eq!(approved, expected, "{status}, {accepted} is accepted");
                let mut ended = policy.clone();
                ended.tcb.accept[0].until = Some(Until(NOW));
                ended.tcb.advisories[0].until = Some(Until(NOW));
                assert!(judge(ended).approve(&der, NOW).is_err());
                let mut other = policy.clone();
                other.tcb.advisories[0].id = "INTEL-SA-0061".into();
                assert!(judge(other).approve(&der, NOW).is_err());
            }
        }
    }
}
