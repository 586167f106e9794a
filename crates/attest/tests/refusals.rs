//! Every way to fail, each against a peer that is accepted without it. Nothing may be accepted by
//! accident.

mod common;

use std::sync::Arc;

use bulla_attest::emulated::{Level, Parameters};
use bulla_attest::ratls::{Approver, Request, TlsIdentity, issue};
use bulla_attest::{
    Accept, AcceptedAdvisory, AcceptedStatus, Collateral, Disclosed, HexBytes, ImageDigest, Judge,
    NoSource, Policy, Status, Until,
};
use common::{CPU_SVN, IN_DATE, Machine, NOW, policy, real};

fn judge(policy: Policy, source: Option<Collateral>) -> Judge {
    Judge {
        policy,
        source: match source {
            Some(collateral) => Arc::new(collateral),
            None => Arc::new(NoSource),
        },
        disclosed: None,
    }
}

fn certificate(machine: &Machine) -> TlsIdentity {
    issue(machine, &Request::new(NOW)).unwrap()
}

/// Neither the verdict nor the approver may say yes.
fn refused(name: &str, judge: &Judge, der: &[u8], now: u64) -> String {
    if let Ok(judged) = judge.certificate(der, now) {
        assert!(!judged.verdict.trusted, "{name} was accepted");
        assert!(judged.verdict.failures().next().is_some(), "{name}");
        assert!(
            judged.verdict.to_string().ends_with("NOT TRUSTED\n"),
            "{name}"
        );
    }
    match judge.approve(der, now) {
        Ok(_) => panic!("{name} was approved"),
        Err(reason) => reason,
    }
}

#[test]
fn the_peer_of_the_other_tests_is_accepted() {
    let machine = Machine::usual();
    let identity = certificate(&machine);
    let judged = judge(policy(), None)
        .certificate(&identity.certificate, NOW)
        .unwrap();
    assert!(judged.verdict.trusted, "{}", judged.verdict);
    let approval = judge(policy(), None)
        .approve(&identity.certificate, NOW)
        .unwrap();
    assert_eq!(
        approval.until,
        NOW + 86_400 + 1,
        "no longer than the certificate"
    );
    // With Gramine's extension as well, and without collateral in the certificate.
    let request = Request {
        gramine: true,
        endorsements: false,
        ..Request::new(NOW)
    };
    let other = issue(&machine, &request).unwrap();
    let with_source = judge(policy(), Some(machine.collateral()));
    assert!(with_source.approve(&other.certificate, NOW).is_ok());
}

#[test]
fn policies_refuse() {
    let machine = Machine::usual();
    let der = certificate(&machine).certificate;
    let accept = |accept: Accept| Policy {
        accept: vec![accept],
        ..policy()
    };
    let none = Accept::default();
    let other = vec![HexBytes([9; 32])];
    let right = vec![HexBytes([0xe1; 32])];
    let signer = vec![HexBytes([0x51; 32])];
    let signed = Accept {
        mrsigner: signer.clone(),
        product_id: Some(7),
        min_svn: Some(3),
        ..none.clone()
    };
    assert!(
        judge(accept(signed.clone()), None)
            .approve(&der, NOW)
            .is_ok()
    );
    let cases: Vec<(&str, Policy)> = vec![
        ("empty policy", Policy::default()),
        (
            "no enclave",
            Policy {
                insecure_allow_emulated: true,
                ..Policy::default()
            },
        ),
        (
            "emulated",
            Policy {
                insecure_allow_emulated: false,
                ..policy()
            },
        ),
        ("other root", {
            let mut policy = policy();
            policy.platform.emulated_root = other.clone();
            policy
        }),
        (
            "other mrenclave",
            accept(Accept {
                mrenclave: other.clone(),
                ..none.clone()
            }),
        ),
        (
            "mrenclave and other signer",
            accept(Accept {
                mrenclave: right.clone(),
                mrsigner: other.clone(),
                ..none.clone()
            }),
        ),
        (
            "other signer",
            accept(Accept {
                mrsigner: other.clone(),
                ..signed.clone()
            }),
        ),
        (
            "other product",
            accept(Accept {
                product_id: Some(8),
                ..signed.clone()
            }),
        ),
        (
            "newer svn",
            accept(Accept {
                min_svn: Some(4),
                ..signed.clone()
            }),
        ),
        (
            "config id",
            accept(Accept {
                config_id: Some(HexBytes([1; 64])),
                ..signed.clone()
            }),
        ),
        (
            "rootfs not shown",
            accept(Accept {
                rootfs: right.clone(),
                ..none.clone()
            }),
        ),
        (
            "image not shown",
            accept(Accept {
                image: vec![ImageDigest([1; 32])],
                ..none.clone()
            }),
        ),
        (
            "a TDX machine",
            accept(Accept {
                mrtd: vec![HexBytes([0; 48])],
                ..none.clone()
            }),
        ),
        ("an entry without a pin", accept(none.clone())),
        ("evaluation number", {
            let mut policy = policy();
            policy.tcb.min_evaluation_number = Some(18);
            policy
        }),
        ("fmspc", {
            let mut p = policy();
            p.platform.fmspc = vec![HexBytes([1; 6])];
            p
        }),
        ("ppid", {
            let mut p = policy();
            p.platform.ppid = vec![HexBytes([1; 16])];
            p
        }),
        ("qe id", {
            let mut p = policy();
            p.platform.qe_id = vec![HexBytes([1; 16])];
            p
        }),
        ("hyper-threading", {
            let mut p = policy();
            p.platform.refuse_hyperthreading = true;
            p
        }),
    ];
    for (name, policy) in cases {
        refused(name, &judge(policy, None), &der, NOW);
    }
    // Files that were shown count only for the enclave that they were measured to, with the right
    // command, and if nothing else is open.
    let rule = Accept {
        rootfs: right.clone(),
        command: vec!["server".into()],
        open: vec!["environment MODE=x".into()],
        ..none.clone()
    };
    let good = Disclosed {
        mrenclaves: vec![HexBytes([0xe1; 32])],
        rootfs: right[0],
        command: vec!["server".into()],
        open: Vec::new(),
        image: None,
    };
    let shown = |accepted: &Accept, disclosed: Disclosed| Judge {
        disclosed: Some(disclosed),
        ..judge(accept(accepted.clone()), None)
    };
    let image = Accept {
        image: vec![ImageDigest([1; 32])],
        ..none.clone()
    };
    let with = |change: &dyn Fn(&mut Disclosed)| {
        let mut disclosed = good.clone();
        change(&mut disclosed);
        disclosed
    };
    let measured = with(&|shown| shown.image = Some(ImageDigest([1; 32]).to_string()));
    let known = with(&|shown| shown.open = vec!["environment MODE=x".into()]);
    for (rule, shown_here) in [(&rule, &good), (&rule, &known), (&image, &measured)] {
        let judge = shown(rule, shown_here.clone());
        assert!(judge.approve(&der, NOW).is_ok(), "{shown_here:?}");
    }
    let cases = [
        (
            "other files",
            &rule,
            with(&|shown| shown.rootfs = HexBytes([2; 32])),
        ),
        (
            "another command",
            &rule,
            with(&|shown| shown.command = vec!["sh".into()]),
        ),
        (
            "more arguments",
            &rule,
            with(&|shown| shown.command.push("-x".into())),
        ),
        ("no command", &rule, with(&|shown| shown.command.clear())),
        (
            "open",
            &rule,
            with(&|shown| shown.open = vec!["environment MODE=y".into()]),
        ),
        (
            "another enclave's",
            &rule,
            with(&|shown| shown.mrenclaves = other.clone()),
        ),
        ("nobody's", &rule, with(&|shown| shown.mrenclaves.clear())),
        ("image unknown", &image, good.clone()),
        (
            "another image",
            &image,
            with(&|shown| {
                shown.image = Some(ImageDigest([2; 32]).to_string());
            }),
        ),
        (
            "image of another enclave",
            &image,
            Disclosed {
                mrenclaves: other.clone(),
                ..measured.clone()
            },
        ),
    ];
    for (name, rule, disclosed) in cases {
        refused(name, &shown(rule, disclosed), &der, NOW);
    }
    // Even where the MRENCLAVE is pinned: something else was shown than what runs.
    let pinned = Judge {
        disclosed: Some(with(&|shown| shown.mrenclaves = other.clone())),
        ..judge(policy(), None)
    };
    refused("what was shown is not what runs", &pinned, &der, NOW);
}

#[test]
fn debug_enclaves_are_refused() {
    let mut machine = Machine::usual();
    machine.report.attributes.flags |= bulla_sgx::flags::DEBUG;
    let der = certificate(&machine).certificate;
    refused("debug", &judge(policy(), None), &der, NOW);
    let allowing = Policy {
        insecure_allow_debug: true,
        ..policy()
    };
    assert!(judge(allowing, None).approve(&der, NOW).is_ok());
}

#[test]
fn certificates_refuse() {
    let machine = Machine::usual();
    let identity = certificate(&machine);
    let der = &identity.certificate;
    let judge = judge(policy(), None);
    let reason = refused("expired", &judge, der, NOW + 86_401);
    assert!(reason.contains("expired"), "{reason}");
    refused("from the future", &judge, der, NOW - 3600);
    for length in [0, 1, 100, der.len() / 2, der.len() - 1] {
        refused("cut off", &judge, &der[..length], NOW);
    }
    refused("trailing", &judge, &[&der[..], &[0]].concat(), NOW);
    // Any altered byte breaks the certificate's own signature, or its encoding.
    for index in (0..der.len()).step_by(61) {
        let mut altered = der.clone();
        altered[index] ^= 0x10;
        refused(&format!("byte {index}"), &judge, &altered, NOW);
    }
    let plain = rcgen::generate_simple_self_signed(vec!["a.example".into()]).unwrap();
    let reason = refused("unattested", &judge, plain.cert.der(), NOW);
    assert!(reason.contains("no quote"), "{reason}");
    // A genuine quote over other report data: what a thief can put into his own certificate.
    struct Thief(Vec<u8>, Collateral);
    impl bulla_attest::ratls::Attester for Thief {
        fn quote(&self, _: &[u8; 64]) -> std::io::Result<Vec<u8>> {
            Ok(self.0.clone())
        }
        fn collateral(&self) -> Option<Collateral> {
            Some(self.1.clone())
        }
    }
    let stolen = machine.enclave.quote(&machine.report.to_bytes()).unwrap();
    let thief = Thief(stolen, machine.collateral());
    for gramine in [false, true] {
        let request = Request {
            gramine,
            ..Request::new(NOW)
        };
        let forged = issue(&thief, &request).unwrap();
        let reason = refused("wrong quote", &judge, &forged.certificate, NOW);
        assert!(reason.contains("another key"), "{reason}");
    }
    let garbage = issue(
        &Thief(vec![3; 3000], machine.collateral()),
        &Request::new(NOW),
    )
    .unwrap();
    refused("garbage for a quote", &judge, &garbage.certificate, NOW);
    let huge = issue(
        &Thief(vec![3; 100_000], machine.collateral()),
        &Request::new(NOW),
    )
    .unwrap();
    refused("a huge quote", &judge, &huge.certificate, NOW);
    // No collateral from anywhere.
    let request = Request {
        endorsements: false,
        ..Request::new(NOW)
    };
    let bare = issue(&machine, &request).unwrap();
    refused("no collateral", &judge, &bare.certificate, NOW);
    // Another machine's collateral.
    let other = Machine::usual().collateral();
    refused(
        "other collateral",
        &self::judge(policy(), Some(other)),
        &bare.certificate,
        NOW,
    );
}

#[test]
fn platforms_refuse() {
    let usual = Parameters::new(CPU_SVN, NOW);
    let at = |status, advisories: &[&str]| Parameters {
        levels: vec![Level {
            components: [0; 16],
            pce_svn: 0,
            status,
            advisories: advisories.iter().map(ToString::to_string).collect(),
        }],
        ..usual.clone()
    };
    let cases = [
        (
            "expired chain",
            Parameters {
                until: NOW - 1,
                ..usual.clone()
            },
        ),
        (
            "expired collateral",
            Parameters {
                collateral_until: Some(NOW - 1),
                ..usual.clone()
            },
        ),
        (
            "future chain",
            Parameters {
                from: NOW + 1,
                ..usual.clone()
            },
        ),
        (
            "revoked PCK",
            Parameters {
                revoke_pck: true,
                ..usual.clone()
            },
        ),
        (
            "revoked CA",
            Parameters {
                revoke_pck_ca: true,
                ..usual.clone()
            },
        ),
        (
            "revoked signer",
            Parameters {
                revoke_tcb_signing: true,
                ..usual.clone()
            },
        ),
        ("revoked level", at(Status::Revoked, &[])),
        ("software hardening", at(Status::SwHardeningNeeded, &[])),
        ("configuration", at(Status::ConfigurationNeeded, &[])),
        ("both", at(Status::ConfigurationAndSwHardeningNeeded, &[])),
        ("out of date", at(Status::OutOfDate, &[])),
        (
            "out of date and configuration",
            at(Status::OutOfDateConfigurationNeeded, &[]),
        ),
        ("advisory", at(Status::UpToDate, &["INTEL-SA-00334"])),
        (
            "old quoting enclave",
            Parameters {
                qe_status: Status::OutOfDate,
                ..usual.clone()
            },
        ),
        (
            "quoting enclave's advisory",
            Parameters {
                qe_advisories: vec!["INTEL-SA-00615".into()],
                ..usual.clone()
            },
        ),
    ];
    for (name, parameters) in cases {
        let machine = Machine::new(&parameters);
        refused(
            name,
            &judge(policy(), None),
            &certificate(&machine).certificate,
            NOW,
        );
    }
    // An acceptance ends when it says.
    let machine = Machine::new(&at(Status::OutOfDate, &["INTEL-SA-00615"]));
    let der = certificate(&machine).certificate;
    let accepting = |until: u64, advisory: u64| {
        let mut policy = policy();
        policy.tcb.accept = vec![AcceptedStatus {
            status: Status::OutOfDate,
            until: Some(Until(until)),
        }];
        policy.tcb.advisories = vec![AcceptedAdvisory {
            id: "INTEL-SA-00615".into(),
            until: Some(Until(advisory)),
        }];
        judge(policy, None)
    };
    let approval = accepting(NOW + 10, NOW + 20).approve(&der, NOW).unwrap();
    assert_eq!(
        approval.until,
        NOW + 10,
        "remembered no longer than it is accepted"
    );
    refused(
        "status no longer accepted",
        &accepting(NOW, NOW + 20),
        &der,
        NOW,
    );
    refused(
        "advisory no longer accepted",
        &accepting(NOW + 10, NOW),
        &der,
        NOW,
    );
}

#[test]
fn hardware_passes_for_itself_only() {
    let (quote, collateral) = real("sgx");
    let mut accepting = Policy {
        insecure_any_enclave: true,
        ..Policy::default()
    };
    accepting.tcb.insecure_any_advisory = true;
    accepting.tcb.accept = vec![AcceptedStatus {
        status: Status::ConfigurationAndSwHardeningNeeded,
        until: None,
    }];
    let verdict = |policy: &Policy, now| {
        let judge = judge(policy.clone(), Some(collateral.clone()));
        judge.quote(&quote, None, now).map(|judged| judged.verdict)
    };
    let trusted = verdict(&accepting, IN_DATE).unwrap();
    assert_eq!(
        trusted.trusted,
        !trusted.evidence.as_ref().unwrap().identity.debug(),
        "{trusted}"
    );
    for policy in [
        Policy {
            insecure_any_enclave: false,
            ..accepting.clone()
        },
        Policy {
            tcb: Default::default(),
            ..accepting.clone()
        },
        policy(),
    ] {
        assert!(!verdict(&policy, IN_DATE).unwrap().trusted);
    }
    assert!(!verdict(&accepting, IN_DATE + 400 * 86_400).unwrap().trusted);
    // TDX, and a policy for enclaves.
    let (quote, collateral) = real("tdx");
    let judge = judge(policy(), Some(collateral));
    assert!(!judge.quote(&quote, None, IN_DATE).unwrap().verdict.trusted);
}

#[test]
fn policies_that_would_surprise_are_no_policies() {
    let bad = [
        "mrenclave = \"00\"",
        "[[accept]]",
        "[[accept]]\nmrenclave = []",
        "[[accept]]\nmrenclave = \"zz\"",
        "[[accept]]\nmrenclav = \"00\"",
        "[[accept]]\nmrsigner = \"5151515151515151515151515151515151515151515151515151515151515151\"",
        "[tcb]\naccept = [{status = \"Revoked\"}]",
        "[tcb]\naccept = [{status = \"Fine\"}]",
        "[tcb]\naccept = [{status = \"OutOfDate\", until = \"soon\"}]",
        "[tcb]\naccept = [{status = \"OutOfDate\", untill = \"2027-01-01\"}]",
        "insecure_allow_debug = \"yes\"",
        "[platform]\nfmspc = []",
    ];
    for text in bad {
        assert!(Policy::from_toml(text.as_bytes()).is_err(), "{text}");
    }
    // One line that says where, and what was probably meant.
    let pin = "e1".repeat(32);
    for (text, line, words) in [
        (
            "[[accept]]\nmrenclav = \"00\"",
            "line 2",
            "did you mean `mrenclave`?",
        ),
        ("\n\n[tbc]", "line 3", "did you mean `tcb`?"),
        (
            "[tcb]\naccept = [{status = \"SwHardeningNeeded\"}]",
            "line 2",
            "did you mean `SWHardeningNeeded`?",
        ),
        (
            "[tcb]\nadvisories = [{id = \"INTEL-SA-00615\", untl = \"2027-01-01\"}]",
            "line 2",
            "did you mean `until`?",
        ),
        (
            "insecure_allow_emulatd = true",
            "line 1",
            "did you mean `insecure_allow_emulated`?",
        ),
        (
            "[tcb]\nadvisories = [{id = \"INTEL-SA-615\"}]",
            "",
            "\"INTEL-SA-615\" is no advisory's number",
        ),
        (
            "[tcb]\nadvisories = [{id = \"SA-00615\"}]",
            "",
            "write it as in \"INTEL-SA-00615\"",
        ),
        ("x = ", "line 1", ""),
        (
            &format!("[[accept]]\nmrenclave = \"{pin}\"\nname = 5"),
            "line 3",
            "string",
        ),
    ] {
        let error = Policy::from_toml(text.as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains(line) && error.contains(words),
            "{text}: {error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert!(Policy::from_toml(&[0xff]).is_err());
    assert!(Policy::from_toml(&vec![b' '; 2 << 20]).is_err());
    let good = "[[accept]]\nname = \"db\"\nmrenclave = \"e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1\"\n\
        [tcb]\naccept = [{status = \"SWHardeningNeeded\", until = \"2027-01-31\"}]\n";
    let policy = Policy::from_toml(good.as_bytes()).unwrap();
    assert_eq!(policy.tcb.accept[0].until, Some(Until(1_801_353_600)));
    assert_eq!(Policy::from_toml(b"").unwrap(), Policy::default());
}
