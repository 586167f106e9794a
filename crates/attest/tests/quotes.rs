//! Real and emulated quotes: in date and not, taken apart, and at every TCB level.

mod common;

use bulla_attest::emulated::{Level, Parameters};
use bulla_attest::{
    Collateral, Evidence, Identity, Platform, Quote, Reason, Status, Tee, VerifyError, verify,
};
use common::{CPU_SVN, IN_DATE, Machine, NOW, real};

fn reason(result: Result<Evidence, VerifyError>) -> Reason {
    match result {
        Err(VerifyError::NotGenuine { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn real_quotes_verify_in_date() {
    let (quote, collateral) = real("sgx");
    let evidence = verify(&quote, &collateral, IN_DATE).unwrap();
    assert_eq!(
        (evidence.platform, evidence.tee),
        (Platform::Hardware, Tee::Sgx)
    );
    assert_eq!(
        evidence.tcb.status,
        Status::ConfigurationAndSwHardeningNeeded
    );
    assert!(
        evidence
            .tcb
            .advisories
            .contains(&"INTEL-SA-00615".to_string())
    );
    assert_eq!(evidence.machine.fmspc.to_string(), "00a067110000");
    assert!(evidence.collateral_until > IN_DATE);
    let (quote, collateral) = real("tdx");
    let evidence = verify(&quote, &collateral, IN_DATE).unwrap();
    assert_eq!(
        (evidence.platform, evidence.tee),
        (Platform::Hardware, Tee::Tdx)
    );
    assert_eq!(evidence.tcb.status, Status::UpToDate);
}

#[test]
fn real_quotes_fail_out_of_date() {
    for kind in ["sgx", "tdx"] {
        let (quote, collateral) = real(kind);
        let until = verify(&quote, &collateral, IN_DATE)
            .unwrap()
            .collateral_until;
        assert!(verify(&quote, &collateral, until - 1).is_ok());
        assert_eq!(
            reason(verify(&quote, &collateral, until + 1)),
            Reason::Expired,
            "{kind}"
        );
        for later in [
            until + 86_400,
            until + 3650 * 86_400,
            u64::MAX / 2,
            u64::MAX,
        ] {
            assert!(
                verify(&quote, &collateral, later).is_err(),
                "{kind} at {later}"
            );
        }
        let early = reason(verify(&quote, &collateral, IN_DATE - 60 * 86_400));
        assert_eq!(early, Reason::NotYetValid, "{kind}");
        assert!(verify(&quote, &collateral, 0).is_err());
    }
}

/// Every byte of a quote is signed, a signature, or a length: no flip goes unnoticed.
#[test]
fn no_bit_of_a_quote_can_be_flipped() {
    let emulated = Machine::usual();
    let report = emulated.report.to_bytes();
    let cases = [
        (real("sgx").0, real("sgx").1, IN_DATE),
        (
            emulated.enclave.quote(&report).unwrap(),
            emulated.collateral(),
            NOW,
        ),
    ];
    for (quote, collateral, now) in cases {
        let genuine = verify(&quote, &collateral, now).unwrap();
        let pem = quote
            .windows(5)
            .position(|window| window == b"-----")
            .unwrap();
        for index in 0..quote.len() {
            // Two bits of each byte that is dense; of the PEM text one of every third.
            let bits: &[u8] = if index < pem { &[0, 7] } else { &[0] };
            if index > pem && index % 3 != 0 {
                continue;
            }
            for bit in bits {
                let mut flipped = quote.clone();
                flipped[index] ^= 1 << bit;
                if let Ok(evidence) = verify(&flipped, &collateral, now) {
                    // White space and unused bits of base64 text mean nothing.
                    assert!(index >= pem, "byte {index}, bit {bit} was accepted");
                    assert_eq!(evidence, genuine, "byte {index}, bit {bit}");
                }
            }
        }
        for length in (0..quote.len()).step_by(37) {
            assert!(
                verify(&quote[..length], &collateral, now).is_err(),
                "{length} bytes"
            );
        }
        let padded = [&quote[..], &[0; 100]].concat();
        assert_eq!(verify(&padded, &collateral, now).unwrap(), genuine);
        let trailing = [&quote[..], &[0, 1]].concat();
        assert!(verify(&trailing, &collateral, now).is_err());
    }
}

/// Every field of the collateral, damaged in every way that a text can be.
#[test]
fn no_part_of_the_collateral_can_be_altered() {
    let (quote, collateral) = real("sgx");
    let genuine = verify(&quote, &collateral, IN_DATE).unwrap();
    let json: serde_json::Value = serde_json::from_str(&collateral.to_json()).unwrap();
    for (field, value) in json.as_object().unwrap() {
        let text = value.as_str().unwrap();
        for step in 0..40 {
            let at = text.len() * step / 40;
            let mut altered: Vec<char> = text.chars().collect();
            altered[at] = if altered[at] == '7' { '8' } else { '7' };
            let altered: String = altered.into_iter().collect();
            for value in [altered.as_str(), &text[..at]] {
                let mut changed = json.clone();
                changed[field] = value.into();
                let changed = serde_json::to_vec(&changed).unwrap();
                let Ok(changed) = Collateral::from_json(&changed) else {
                    continue;
                };
                if let Ok(evidence) = verify(&quote, &changed, IN_DATE) {
                    // The CRL issuer's chain is not needed: the CRL must be signed by the PCK's
                    // issuer. Behind the last certificate of a chain nothing counts.
                    let unused = field == "pck_crl_issuer_chain"
                        || at + 3 >= text.len()
                        || field.ends_with("_chain");
                    assert!(unused, "{field} at {at}");
                    assert_eq!(evidence, genuine);
                }
            }
        }
        let mut missing = json.clone();
        missing.as_object_mut().unwrap().remove(field);
        assert!(Collateral::from_json(&serde_json::to_vec(&missing).unwrap()).is_err());
    }
}

#[test]
fn collateral_of_another_platform_is_refused() {
    let (quote, collateral) = real("sgx");
    let (tdx_quote, tdx_collateral) = real("tdx");
    assert!(verify(&quote, &tdx_collateral, IN_DATE).is_err());
    assert!(verify(&tdx_quote, &collateral, IN_DATE).is_err());
    // Only the TCB info is the other's.
    let mixed = Collateral {
        tcb_info: tdx_collateral.tcb_info.clone(),
        tcb_info_signature: tdx_collateral.tcb_info_signature.clone(),
        tcb_info_issuer_chain: tdx_collateral.tcb_info_issuer_chain.clone(),
        ..collateral.clone()
    };
    assert_eq!(
        reason(verify(&quote, &mixed, IN_DATE)),
        Reason::OtherPlatform
    );
    // Two emulated machines.
    let (one, other) = (Machine::usual(), Machine::usual());
    let quote = one.enclave.quote(&one.report.to_bytes()).unwrap();
    assert!(verify(&quote, &other.collateral(), NOW).is_err());
}

#[test]
fn chains_in_another_order_change_nothing_or_fail() {
    let machine = Machine::usual();
    let quote = machine.enclave.quote(&machine.report.to_bytes()).unwrap();
    let genuine = verify(&quote, &machine.collateral(), NOW).unwrap();
    let split = |chain: &str| -> Vec<String> {
        let certificates = chain.split_inclusive("-----END CERTIFICATE-----\n");
        certificates.map(str::to_string).collect()
    };
    let chain = split(machine.provisioning.pck_chain());
    assert_eq!(chain.len(), 3);
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let text: String = order.iter().map(|index| chain[*index].as_str()).collect();
        let start = quote
            .windows(5)
            .position(|window| window == b"-----")
            .unwrap();
        let reordered = [&quote[..start], text.as_bytes()].concat();
        if let Ok(evidence) = verify(&reordered, &machine.collateral(), NOW) {
            assert_eq!(evidence, genuine, "{order:?}");
            assert_eq!(order[0], 0, "another leaf was accepted");
        }
    }
    for drop in 0..3 {
        let text: String = (0..3)
            .filter(|index| *index != drop)
            .map(|index| chain[index].as_str())
            .collect();
        let start = quote
            .windows(5)
            .position(|window| window == b"-----")
            .unwrap();
        let mut shorter = [&quote[..start], text.as_bytes()].concat();
        let removed = chain[drop].len() as u32;
        for at in [432, start - 4] {
            let length = u32::from_le_bytes(shorter[at..at + 4].try_into().unwrap());
            shorter[at..at + 4].copy_from_slice(&(length - removed).to_le_bytes());
        }
        assert!(Quote::decode(&shorter).is_ok(), "still a quote");
        assert!(
            verify(&shorter, &machine.collateral(), NOW).is_err(),
            "without {drop}"
        );
    }
    let collateral = machine.collateral();
    let mut signers = split(&collateral.tcb_info_issuer_chain);
    signers.reverse();
    let reversed = Collateral {
        tcb_info_issuer_chain: signers.concat(),
        ..collateral
    };
    assert!(verify(&quote, &reversed, NOW).is_err());
}

fn quoted(parameters: &Parameters) -> Result<Evidence, VerifyError> {
    let machine = Machine::new(parameters);
    let quote = machine.enclave.quote(&machine.report.to_bytes()).unwrap();
    verify(&quote, &machine.collateral(), NOW)
}

#[test]
fn expired_and_revoked_certificates_are_refused() {
    let usual = Parameters::new(CPU_SVN, NOW);
    assert_eq!(quoted(&usual).unwrap().platform, Platform::Emulated);
    let expired = Parameters {
        until: NOW - 1,
        ..usual.clone()
    };
    assert_eq!(reason(quoted(&expired)), Reason::Expired);
    let stale = Parameters {
        collateral_until: Some(NOW - 1),
        ..usual.clone()
    };
    assert_eq!(reason(quoted(&stale)), Reason::Expired);
    let future = Parameters {
        from: NOW + 60,
        ..usual.clone()
    };
    assert_eq!(reason(quoted(&future)), Reason::NotYetValid);
    let revoked = |change: fn(&mut Parameters)| {
        let mut parameters = usual.clone();
        change(&mut parameters);
        reason(quoted(&parameters))
    };
    assert_eq!(revoked(|p| p.revoke_pck = true), Reason::CertificateRevoked);
    assert_eq!(
        revoked(|p| p.revoke_pck_ca = true),
        Reason::CertificateRevoked
    );
    assert_eq!(
        revoked(|p| p.revoke_tcb_signing = true),
        Reason::CertificateRevoked
    );
}

#[test]
fn every_tcb_level_is_reported_as_it_is() {
    let usual = Parameters::new(CPU_SVN, NOW);
    let level = |components: [u8; 16], status| Level {
        components,
        pce_svn: 0,
        status,
        advisories: vec![format!("INTEL-SA-{}", status as u32)],
    };
    for status in [
        Status::UpToDate,
        Status::SwHardeningNeeded,
        Status::ConfigurationNeeded,
        Status::ConfigurationAndSwHardeningNeeded,
        Status::OutOfDate,
        Status::OutOfDateConfigurationNeeded,
    ] {
        let mut newer = CPU_SVN;
        newer[0] += 1;
        let levels = vec![level(newer, Status::UpToDate), level([0; 16], status)];
        let evidence = quoted(&Parameters {
            levels,
            ..usual.clone()
        })
        .unwrap();
        assert_eq!(evidence.tcb.status, status);
        assert_eq!(
            evidence.tcb.advisories,
            [format!("INTEL-SA-{}", status as u32)]
        );
    }
    let levels = vec![level([0; 16], Status::Revoked)];
    assert_eq!(
        reason(quoted(&Parameters {
            levels,
            ..usual.clone()
        })),
        Reason::TcbRevoked
    );
    let levels = vec![level([200; 16], Status::UpToDate)];
    assert_eq!(
        reason(quoted(&Parameters {
            levels,
            ..usual.clone()
        })),
        Reason::NoTcbLevel
    );
    let levels = vec![level([0; 16], Status::TdRelaunchAdvised)];
    assert!(
        quoted(&Parameters {
            levels,
            ..usual.clone()
        })
        .is_err()
    );

    let old = Parameters {
        qe_status: Status::OutOfDate,
        ..usual.clone()
    };
    assert_eq!(quoted(&old).unwrap().tcb.status, Status::OutOfDate);
    let revoked = Parameters {
        qe_status: Status::Revoked,
        ..usual
    };
    assert_eq!(reason(quoted(&revoked)), Reason::TcbRevoked);
}

#[test]
fn the_emulated_quoting_enclave_wants_reports_of_its_machine() {
    let machine = Machine::usual();
    let mut report = machine.report.to_bytes();
    report[420] ^= 1; // the MAC
    assert!(machine.enclave.quote(&report).is_err());
    assert!(machine.enclave.quote(&report[..431]).is_err());
    let quote = machine.enclave.quote(&machine.report.to_bytes()).unwrap();
    let (decoded, exact) = Quote::decode(&quote).unwrap();
    assert_eq!(exact, quote);
    let Identity::Enclave(enclave) = decoded.identity else {
        panic!()
    };
    assert_eq!(enclave.mrenclave.0, machine.report.mrenclave);
    assert_eq!(
        (enclave.isv_prod_id, enclave.isv_svn, enclave.debug),
        (7, 3, false)
    );
}

#[test]
fn one_chain_per_machine_is_made_and_kept() {
    use bulla_attest::emulated::Provisioning;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let one = std::thread::scope(|scope| {
        let open = || Provisioning::open(&state, CPU_SVN, NOW).unwrap();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        let all: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert!(all.iter().all(|one| one.pck_chain() == all[0].pck_chain()));
        all.into_iter().next().unwrap()
    });
    let again = Provisioning::open(&state, CPU_SVN, NOW + 5).unwrap();
    assert_eq!(again.pck_chain(), one.pck_chain());
    let file = std::fs::read_dir(&state).unwrap().next().unwrap().unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(file.path(), "{}").unwrap();
    let error = Provisioning::open(&state, CPU_SVN, NOW)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("damaged") && error.contains("delete it"),
        "{error}"
    );
}
