//! That the list of errors is complete: each kind that the verifiers know has a case here that leads to it,
//! and each is a refusal. A new kind does not compile until somebody adds its case.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use bulla_attest::emulated::{Level, Parameters};
use bulla_attest::ratls::{
    Approver, CertificateEvidence, ENDORSEMENTS_OID, EVIDENCE_OID, EvidenceError, GRAMINE_OID,
    Request, issue,
};
use bulla_attest::{
    Certificate, CertificateError, CertificateUnjudged, Collateral, CollateralError, Judge,
    NoSource, Policy, PolicyError, Quote, QuoteError, Reason, Status, Unjudged, VerifyError,
    verify,
};
use common::{CPU_SVN, IN_DATE, Machine, NOW, policy, real};
use rcgen::{CertificateParams, CustomExtension, KeyPair};

/// Names the kinds of an error, and all that there are.
macro_rules! kinds {
    ($function:ident, $type:ty, $all:ident, $($name:literal: $pattern:pat),+ $(,)?) => {
        fn $function(error: &$type) -> &'static str {
            match error { $($pattern => $name),+ }
        }
        const $all: &[&str] = &[$($name),+];
    };
}

kinds!(of_reason, Reason, REASONS,
    "expired": Reason::Expired,
    "not yet valid": Reason::NotYetValid,
    "certificate revoked": Reason::CertificateRevoked,
    "TCB revoked": Reason::TcbRevoked,
    "chain": Reason::UntrustedChain,
    "signature": Reason::WrongSignature,
    "quoting enclave": Reason::QuotingEnclave,
    "other platform": Reason::OtherPlatform,
    "no TCB level": Reason::NoTcbLevel,
    "unsupported": Reason::Unsupported,
    "malformed collateral": Reason::MalformedCollateral,
    // What the verification library may say in a later version.
    "other": Reason::Other,
);
kinds!(of_evidence, EvidenceError, EVIDENCE,
    "too large": EvidenceError::Certificate(CertificateError::TooLarge(_)),
    "no certificate": EvidenceError::Certificate(CertificateError::Malformed(_)),
    "repeated": EvidenceError::Certificate(CertificateError::Repeated(_)),
    "collateral too large": EvidenceError::Collateral(CollateralError::TooLarge(_)),
    // Endorsements are not JSON; what is wrong with them is "malformed".
    "collateral": EvidenceError::Collateral(CollateralError::Malformed(_)),
    "none": EvidenceError::None,
    "malformed": EvidenceError::Malformed(_),
    "other kind": EvidenceError::OtherKind(_),
    "key": EvidenceError::WrongKey(_),
    "signature": EvidenceError::WrongSignature,
    "other issuer": EvidenceError::OtherIssuer(_),
    "expired": EvidenceError::Expired(_),
    "not yet valid": EvidenceError::NotYetValid(_),
    "nonce": EvidenceError::WrongNonce,
);
kinds!(of_quote, QuoteError, QUOTES,
    "too large": QuoteError::TooLarge(_),
    "malformed": QuoteError::Malformed(_),
    "trailing": QuoteError::Trailing(_),
);
kinds!(of_policy, PolicyError, POLICIES,
    "too large": PolicyError::TooLarge(_),
    "not text": PolicyError::NotText,
    "malformed": PolicyError::Malformed(_),
);

fn set<'a>(names: &[&'a str], but: &[&str]) -> BTreeSet<&'a str> {
    let names = names.iter().copied();
    names.filter(|name| !but.contains(name)).collect()
}

fn altered<const N: usize>(bytes: &[u8], places: [usize; N]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for place in places {
        bytes[place] ^= 0x10;
    }
    bytes
}

/// A judge that accepts anything that is genuine.
fn generous(collateral: Collateral) -> Judge {
    let mut policy = Policy {
        insecure_any_enclave: true,
        insecure_allow_debug: true,
        insecure_allow_emulated: true,
        ..Policy::default()
    };
    policy.tcb.insecure_any_advisory = true;
    policy.tcb.accept = Status::ALL
        .into_iter()
        .filter(|status| *status != Status::Revoked)
        .map(|status| bulla_attest::AcceptedStatus {
            status,
            until: None,
        })
        .collect();
    Judge {
        policy,
        source: Arc::new(collateral),
        disclosed: None,
    }
}

#[test]
fn each_reason_why_a_quote_is_not_genuine() {
    let (quote, collateral) = real("sgx");
    let (_, of_tdx) = real("tdx");
    let emulated = |change: &dyn Fn(&mut Parameters)| {
        let mut parameters = Parameters::new(CPU_SVN, NOW);
        change(&mut parameters);
        let machine = Machine::new(&parameters);
        let quote = machine.enclave.quote(&machine.report.to_bytes()).unwrap();
        (quote, machine.collateral(), NOW)
    };
    let level = |components, status| {
        move |parameters: &mut Parameters| {
            parameters.levels = vec![Level {
                components,
                pce_svn: 0,
                status,
                advisories: Vec::new(),
            }];
        }
    };
    let (usual, usual_collateral, _) = emulated(&|_| ());
    let (_, stranger, _) = emulated(&|_| ());
    let with = |change: &dyn Fn(&mut Collateral)| {
        let mut collateral = collateral.clone();
        change(&mut collateral);
        collateral
    };
    // Where the signature of the quote and the authentication data of the quoting enclave are.
    let (signature, authentication) = (432 + 4, 432 + 4 + 64 + 64 + 384 + 64 + 2);
    let cases = [
        (quote.clone(), collateral.clone(), IN_DATE + 3000 * 86_400),
        (quote.clone(), collateral.clone(), IN_DATE - 3000 * 86_400),
        emulated(&|parameters| parameters.revoke_pck = true),
        emulated(&level([0; 16], Status::Revoked)),
        emulated(&level([200; 16], Status::UpToDate)),
        (usual, stranger, NOW),
        (quote.clone(), usual_collateral, IN_DATE),
        (altered(&quote, [signature]), collateral.clone(), IN_DATE),
        (
            altered(&quote, [authentication]),
            collateral.clone(),
            IN_DATE,
        ),
        (
            quote.clone(),
            with(&|mixed| {
                mixed.tcb_info = of_tdx.tcb_info.clone();
                mixed.tcb_info_signature = of_tdx.tcb_info_signature.clone();
            }),
            IN_DATE,
        ),
        // The vendor of the quoting enclave.
        (altered(&quote, [12]), collateral.clone(), IN_DATE),
        (
            quote.clone(),
            with(&|broken| broken.tcb_info = "{}".into()),
            IN_DATE,
        ),
    ];
    let mut covered = BTreeSet::new();
    for (quote, collateral, now) in cases {
        match verify(&quote, &collateral, now) {
            Err(VerifyError::NotGenuine { reason, detail }) => {
                println!("{}: {detail}", of_reason(&reason));
                assert!(!reason.meaning().is_empty() && !reason.remedy().is_empty());
                covered.insert(of_reason(&reason));
            }
            other => panic!("{other:?}"),
        }
        let verdict = generous(collateral)
            .quote(&quote, None, now)
            .unwrap()
            .verdict;
        assert!(!verdict.trusted, "{verdict}");
        assert!(verdict.until <= now);
    }
    assert_eq!(covered, set(REASONS, &["other"]));
    assert!(
        generous(collateral.clone())
            .quote(&quote, None, IN_DATE)
            .unwrap()
            .verdict
            .trusted
    );
    // Collateral that is none at all.
    let large = with(&|large| large.tcb_info = " ".repeat(3 << 20));
    assert!(matches!(
        verify(&quote, &large, IN_DATE),
        Err(VerifyError::Collateral(CollateralError::TooLarge(_)))
    ));
    let verdict = generous(large)
        .quote(&quote, None, IN_DATE)
        .unwrap()
        .verdict;
    assert!(!verdict.trusted);
    assert!(matches!(
        Collateral::from_json(b"{"),
        Err(CollateralError::Malformed(_))
    ));
}

#[test]
fn each_reason_why_bytes_are_no_quote_or_policy() {
    let (quote, collateral) = real("sgx");
    let mut covered = BTreeSet::new();
    let nonzero = [&quote[..], &[0; 8], &[1]].concat();
    for bytes in [&vec![3; 70_000][..], &quote[..600], b"", &nonzero] {
        let error = Quote::decode(bytes).unwrap_err();
        covered.insert(of_quote(&error));
        assert!(matches!(
            verify(bytes, &collateral, IN_DATE),
            Err(VerifyError::Quote(_))
        ));
        let judged = generous(collateral.clone()).quote(bytes, None, IN_DATE);
        assert!(matches!(judged, Err(Unjudged::BadInput(_))));
    }
    assert_eq!(covered, set(QUOTES, &[]));
    let none = Judge {
        source: Arc::new(NoSource),
        ..generous(collateral)
    };
    let judged = none.quote(&quote, None, IN_DATE);
    assert!(matches!(judged, Err(Unjudged::Unreachable(_))));
    let policies = [&vec![b' '; 2 << 20][..], &[0xff], b"x"];
    let covered: BTreeSet<_> = policies
        .map(|bytes| of_policy(&Policy::from_toml(bytes).unwrap_err()))
        .into();
    assert_eq!(covered, set(POLICIES, &[]));
}

/// A certificate with any extensions, in date.
fn made(key: &KeyPair, issuer: Option<&str>, extensions: &[(&[u64], Vec<u8>)]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    let moment = |seconds: u64| time::OffsetDateTime::from_unix_timestamp(seconds as i64).unwrap();
    params.not_before = moment(NOW - 60);
    params.not_after = moment(NOW + 60);
    params.custom_extensions = extensions
        .iter()
        .map(|(oid, content)| CustomExtension::from_oid_content(oid, content.clone()))
        .collect();
    let Some(issuer) = issuer else {
        return params.self_signed(key).unwrap().der().to_vec();
    };
    let mut authority = CertificateParams::default();
    authority
        .distinguished_name
        .push(rcgen::DnType::CommonName, issuer);
    let issuer = rcgen::Issuer::new(authority, KeyPair::generate().unwrap());
    params.signed_by(key, &issuer).unwrap().der().to_vec()
}

#[test]
fn each_reason_why_a_certificate_is_refused() {
    let machine = Machine::usual();
    let identity = issue(&machine, &Request::new(NOW)).unwrap();
    let good = &identity.certificate;
    let decoded = Certificate::decode(good).unwrap();
    let own = |oid| decoded.extension(oid).unwrap().unwrap().to_vec();
    let (evidence, endorsements) = (own(EVIDENCE_OID), own(ENDORSEMENTS_OID));
    let arcs = |oid: &str| -> Vec<u64> { oid.split('.').map(|arc| arc.parse().unwrap()).collect() };
    let here = arcs(&EVIDENCE_OID.to_string());
    let there = arcs(&ENDORSEMENTS_OID.to_string());
    let gramine = arcs(&GRAMINE_OID.to_string());
    let key = KeyPair::try_from(identity.key.as_slice()).unwrap();
    let other_key = KeyPair::generate().unwrap();
    let with = |extensions: &[(&[u64], Vec<u8>)]| made(&key, None, extensions);
    let judge = Judge {
        policy: policy(),
        source: Arc::new(NoSource),
        disclosed: None,
    };
    // What the cases below begin with is approved.
    let plain = [
        (&here[..], evidence.clone()),
        (&there[..], endorsements.clone()),
    ];
    judge.approve(&with(&plain), NOW).unwrap();
    // CBOR: tag 60000 is d9 ea60.
    assert_eq!(evidence[..3], [0xd9, 0xea, 0x60]);
    let other_kind = altered(&evidence, [2]);
    let cut = evidence[..evidence.len() - 1].to_vec();
    let mut wrong = good.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let cases: [(&str, Vec<u8>, u64); 14] = [
        ("too large", vec![0x30; 300 << 10], NOW),
        ("no certificate", good[..good.len() - 1].to_vec(), NOW),
        ("no certificate", Vec::new(), NOW),
        (
            "repeated",
            with(&[(&here, evidence.clone()), (&here, evidence.clone())]),
            NOW,
        ),
        ("none", with(&[]), NOW),
        ("malformed", with(&[(&here, cut)]), NOW),
        (
            "malformed",
            with(&[(&here, evidence.clone()), (&there, vec![0xa0])]),
            NOW,
        ),
        ("malformed", with(&[(&gramine, vec![3; 70_000])]), NOW),
        ("other kind", with(&[(&here, other_kind)]), NOW),
        ("key", made(&other_key, None, &plain), NOW),
        ("signature", wrong, NOW),
        ("other issuer", made(&key, Some("Somebody"), &plain), NOW),
        ("expired", good.clone(), NOW + 90_000),
        ("not yet valid", good.clone(), NOW - 90_000),
    ];
    let mut covered = BTreeSet::new();
    for (name, der, now) in cases {
        let error = CertificateEvidence::of_certificate(&der, now).unwrap_err();
        assert_eq!(of_evidence(&error), name, "{error}");
        assert!(!error.to_string().is_empty());
        covered.insert(name);
        assert!(matches!(
            judge.certificate(&der, now),
            Err(CertificateUnjudged::Refused(_))
        ));
        assert!(judge.approve(&der, now).is_err(), "{name}");
    }
    // Nonces are checked by those who sent one.
    let found = CertificateEvidence::of_certificate(good, NOW).unwrap();
    let request = Request {
        nonce: Some(vec![1; 32]),
        ..Request::new(NOW)
    };
    let fresh = issue(&machine, &request).unwrap();
    let fresh = CertificateEvidence::of_certificate(&fresh.certificate, NOW).unwrap();
    assert!(fresh.check_nonce(&[1; 32]).is_ok());
    for (evidence, nonce) in [(&found, &[1; 32][..]), (&fresh, &[2; 32]), (&fresh, &[])] {
        let error = evidence.check_nonce(nonce).unwrap_err();
        covered.insert(of_evidence(&error));
    }
    // A quote over other data is found out once the quote is verified.
    let stolen = machine.enclave.quote(&machine.report.to_bytes()).unwrap();
    let thief = CertificateEvidence::of_certificate(&with(&[(&gramine, stolen.clone())]), NOW);
    let identity = Quote::decode(&stolen).unwrap().0.identity;
    let error = thief.unwrap().check_binding(&identity).unwrap_err();
    assert_eq!(of_evidence(&error), "key");
    // A certificate that is small enough cannot bring collateral that is too large.
    assert_eq!(
        covered,
        set(EVIDENCE, &["collateral", "collateral too large"])
    );
}
