//! Evidence bundles: written whole or not at all, and judged again to the same rows, years later.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bulla_attest::bundle::{BundleError, Origin, replay, write};
use bulla_attest::ratls::{Request, issue};
use bulla_attest::{Disclosed, HexBytes, Judge, Judged, Policy};
use common::{IN_DATE, Machine, NOW, policy, real};

fn judge(policy: &str, disclosed: Option<Disclosed>) -> Judge {
    Judge {
        policy: Policy::from_toml(policy.as_bytes()).unwrap(),
        source: Arc::new(real("sgx").1),
        disclosed,
    }
}

/// Accepts the real quote, with one of its advisories too few.
const POLICY: &str = "insecure_any_enclave = true\n\
    [tcb]\n\
    accept = [{status = \"ConfigurationAndSWHardeningNeeded\", until = \"2026-01-01\"}]\n\
    advisories = [{id = \"INTEL-SA-00615\", until = \"2026-01-01\"}]\n";

fn real_judged() -> Judged {
    judge(POLICY, None)
        .quote(&real("sgx").0, None, IN_DATE)
        .unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// This bundle was written by a version of 2026. Whatever changes, it must be judged to the same rows:
/// if it is not, the bundles that people keep are worth nothing any more.
#[test]
fn a_bundle_of_2026_is_judged_the_same() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundle-2026");
    let verdict = replay(&kept).unwrap();
    assert!(!verdict.trusted);
    assert_eq!(verdict.at, IN_DATE);
    let recorded = fs::read_to_string(kept.join("verdict.json")).unwrap();
    let recorded: serde_json::Value = serde_json::from_str(&recorded).unwrap();
    let rows = recorded["checks"].as_array().unwrap();
    assert_eq!(rows.len(), verdict.checks.len());
    for (row, check) in rows.iter().zip(&verdict.checks) {
        assert_eq!(row["check"], check.check);
        assert_eq!(row["value"], check.value);
        assert_eq!(row["rule"], check.rule);
        assert_eq!(row["pass"], check.pass);
    }
}

#[test]
fn every_row_of_the_verdict_is_compared() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path().join("evidence");
    write(&at, &real_judged(), &Origin::File, POLICY, None).unwrap();
    let verdict = replay(&at).unwrap();
    assert_eq!(verdict, real_judged().verdict);
    let recorded: serde_json::Value =
        serde_json::from_slice(&fs::read(at.join("verdict.json")).unwrap()).unwrap();
    let altered = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut copy = recorded.clone();
        change(&mut copy);
        fs::write(at.join("verdict.json"), copy.to_string()).unwrap();
        replay(&at)
    };
    let is_refused = |change: &dyn Fn(&mut serde_json::Value), what: &str| {
        let error = altered(change).unwrap_err();
        assert!(matches!(error, BundleError::Differs { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
    };
    for index in 0..verdict.checks.len() {
        for (field, value) in [
            ("check", "x".into()),
            ("value", "x".into()),
            ("rule", "x".into()),
            ("pass", (!verdict.checks[index].pass).into()),
        ] {
            let value: serde_json::Value = value;
            is_refused(
                &|copy| copy["checks"][index][field] = value.clone(),
                "the row",
            );
        }
        // Explanations may be worded in another way.
        for field in ["meaning", "remedy"] {
            altered(&|copy| copy["checks"][index][field] = "other words".into()).unwrap();
        }
    }
    is_refused(&|copy| copy["trusted"] = true.into(), "trusted");
    is_refused(&|copy| copy["until"] = 5.into(), "until");
    is_refused(
        &|copy| drop(copy["checks"].as_array_mut().unwrap().pop()),
        "number of rows",
    );
    let fields = recorded["evidence"].as_object().unwrap();
    for name in fields.keys() {
        is_refused(&|copy| copy["evidence"][name] = "x".into(), name);
    }
    is_refused(
        &|copy| copy["evidence"] = serde_json::Value::Null,
        "evidence",
    );
    // Another time is another verdict, or says so.
    assert!(altered(&|copy| copy["at"] = (IN_DATE + 1).into()).is_ok_and(|v| v.at == IN_DATE + 1));
    is_refused(
        &|copy| copy["at"] = (IN_DATE + 1000 * 86_400).into(),
        "until",
    );
    assert!(altered(&|copy| copy["at"] = "then".into()).is_err());
    assert!(altered(&|copy| *copy = 5.into()).is_err());
}

#[test]
fn what_a_quote_came_in_is_judged_again_too() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path().join("evidence");
    let machine = Machine::usual();
    let identity = issue(&machine, &Request::new(NOW)).unwrap();
    let text = "insecure_allow_emulated = true\n[[accept]]\nmrenclave = \"".to_string()
        + &"e1".repeat(32)
        + "\"\n";
    assert_eq!(Policy::from_toml(text.as_bytes()).unwrap(), policy());
    let shown = Disclosed {
        mrenclaves: vec![HexBytes([0xe1; 32])],
        rootfs: HexBytes([1; 32]),
        command: vec!["server".into()],
        open: vec!["user web".into()],
        image: None,
    };
    let judge = judge(&text, Some(shown.clone()));
    let judge = Judge {
        source: Arc::new(bulla_attest::NoSource),
        ..judge
    };
    let judged = judge.certificate(&identity.certificate, NOW).unwrap();
    assert!(judged.verdict.trusted, "{}", judged.verdict);
    let origin = Origin::Certificate(identity.certificate.clone());
    write(&at, &judged, &origin, &text, Some(&shown)).unwrap();
    assert_eq!(replay(&at).unwrap(), judged.verdict);
    assert_eq!(
        names(&at),
        [
            "certificate.pem",
            "collateral.json",
            "configuration.json",
            "policy.toml",
            "quote.bin",
            "verdict.json"
        ]
    );
    // The quote that is kept beside the certificate is the certificate's.
    let quote = fs::read(at.join("quote.bin")).unwrap();
    fs::write(at.join("quote.bin"), real("sgx").0).unwrap();
    assert!(matches!(replay(&at), Err(BundleError::Judge(_))));
    fs::write(at.join("quote.bin"), quote).unwrap();
    // Each file is needed, and each must be what it was.
    for name in names(&at) {
        let path = at.join(&name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, b"").unwrap();
        // An empty policy is one, and refuses.
        assert!(replay(&at).is_err(), "{name} is empty");
        fs::write(&path, vec![b' '; 5 << 20]).unwrap();
        assert!(replay(&at).is_err(), "{name} is huge");
        fs::remove_file(&path).unwrap();
        assert!(replay(&at).is_err(), "{name} is missing");
        fs::write(&path, bytes).unwrap();
    }
    assert!(replay(&at).is_ok());
    // Another bundle in its place has nothing of it left.
    fs::write(at.join("notes.txt"), "mine").unwrap();
    write(&at, &real_judged(), &Origin::File, POLICY, None).unwrap();
    let expected = [
        "collateral.json",
        "notes.txt",
        "policy.toml",
        "quote.bin",
        "verdict.json",
    ];
    assert_eq!(names(&at), expected);
    assert_eq!(replay(&at).unwrap(), real_judged().verdict);
}

#[test]
fn nothing_half_written_is_left() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path().join("evidence");
    let judged = real_judged();
    let write = |at: &Path| write(at, &judged, &Origin::File, POLICY, None);
    // In the way of one of its files: the old bundle is there, or nothing.
    fs::write(&at, "a file").unwrap();
    let error = write(&at).unwrap_err();
    assert!(error.to_string().contains("cannot be written"), "{error}");
    assert_eq!(fs::read(&at).unwrap(), b"a file");
    fs::remove_file(&at).unwrap();
    write(&at).unwrap();
    let staging = at.join(format!(".writing-{}", std::process::id()));
    fs::write(&staging, "in the way").unwrap();
    assert!(write(&at).is_err());
    assert_eq!(replay(&at).unwrap(), judged.verdict);
    fs::remove_file(&staging).unwrap();
    write(&at).unwrap();
    assert_eq!(names(&at).len(), 4);
}
