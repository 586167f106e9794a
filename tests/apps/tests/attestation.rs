//! Attestation from inside: /dev/attestation, quotes that `bulla verify` accepts, and keys.

use bulla_test_apps::{Program, Side, bulla, sides};
use std::fs;
use std::process::{Command, Output};

fn in_enclave(script: &str) -> String {
    let finished = Program::new("busybox", &["/bin/sh", "-c", script]).run(Side::Enclave);
    assert_eq!(finished.code, Some(0), "{finished}");
    finished.stdout
}

fn verify(arguments: &[&str]) -> Output {
    let output = Command::new("timeout")
        .arg("60")
        .arg(bulla())
        .arg("verify")
        .args(arguments)
        .output();
    output.unwrap_or_else(|error| panic!("cannot start bulla: {error}"))
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(u8::is_ascii_hexdigit)
        .map(|digit| (digit as char).to_digit(16).unwrap() as u8)
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

const HEX: &str = "od -An -v -tx1";

#[test]
fn the_files_hold_what_gramine_says() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let out = in_enclave(
        "cd /dev/attestation; cat attestation_type; echo; ls; ls keys
         wc -c < my_target_info; wc -c < report; wc -c < user_report_data
         cat my_target_info > target_info; cmp my_target_info target_info && echo same
         echo -n hello > user_report_data; dd if=report bs=1 skip=320 count=6 2>/dev/null | od -An -c
         wc -c < keys/_sgx_mrenclave
         cmp -s keys/_sgx_mrenclave keys/_sgx_mrsigner || echo differ
         (echo x > report) 2>/dev/null || echo read-only
         (echo x > keys/_sgx_mrsigner) 2>/dev/null || echo read-only
         (echo -n short > keys/mine) 2>/dev/null || echo short
         echo -n 0123456789abcdef > keys/mine; cat keys/mine; echo
         sh -c 'od -An -tx1 -N1 user_report_data'",
    );
    let lines: Vec<&str> = out.lines().map(str::trim).collect();
    let expected = [
        "dcap",
        "attestation_type",
        "collateral",
        "keys",
        "my_target_info",
        "quote",
        "report",
        "target_info",
        "user_report_data",
        "_sgx_mrenclave",
        "_sgx_mrsigner",
        "512",
        "432",
        "64",
        "same",
        r"h   e   l   l   o  \0",
        "16",
        "differ",
        "read-only",
        "read-only",
        "short",
        "0123456789abcdef",
        "00",
    ];
    assert_eq!(lines, expected, "{out}");
}

#[test]
fn sealing_keys_stay_the_same_and_follow_the_enclave() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let key = |script: &str| {
        in_enclave(&format!(
            "{HEX} /dev/attestation/keys/_sgx_mrenclave {script}"
        ))
    };
    let (one, again, other) = (key(""), key(""), key("; true"));
    assert_eq!(unhex(&one).len(), 16);
    assert_eq!(one, again);
    assert_ne!(one, other, "another command is another enclave");
    let signer = |script: &str| {
        in_enclave(&format!(
            "{HEX} /dev/attestation/keys/_sgx_mrsigner {script}"
        ))
    };
    assert_eq!(signer(""), signer("; true"));
}

#[test]
fn a_quote_is_verified_and_its_bundle_replayed() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let out = in_enclave(&format!(
        "echo -n nonce > /dev/attestation/user_report_data; {HEX} /dev/attestation/quote"
    ));
    let quote = unhex(&out);
    fs::write(path("quote"), &quote).unwrap();
    assert_eq!(&quote[48 + 320..48 + 325], b"nonce");
    let mrenclave: String = quote[48 + 64..48 + 96]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();

    let policy = |emulated: bool, mrenclave: &str| {
        let text = format!(
            "insecure_allow_emulated = {emulated}\n[[accept]]\nmrenclave = \"{mrenclave}\"\n"
        );
        fs::write(path("policy.toml"), text).unwrap();
    };
    let judge = |more: &[&str]| {
        let (quote, policy) = (path("quote"), path("policy.toml"));
        let words = [&[&quote[..], "--offline", "--policy", &policy], more].concat();
        verify(&words)
    };
    policy(true, &mrenclave);
    let output = judge(&["--bundle", &path("bundle")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains("emulated") && text.contains("TRUSTED"),
        "{text}"
    );
    let replayed = verify(&["--replay", &path("bundle")]);
    assert_eq!(replayed.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&replayed.stdout), text);
    // A bundle whose verdict was turned round is no evidence.
    let verdict = fs::read_to_string(path("bundle/verdict.json")).unwrap();
    fs::write(
        path("bundle/verdict.json"),
        verdict.replace("\"trusted\": true", "\"trusted\": false"),
    )
    .unwrap();
    assert_eq!(
        verify(&["--replay", &path("bundle")]).status.code(),
        Some(3)
    );

    policy(false, &mrenclave);
    assert_eq!(judge(&[]).status.code(), Some(1), "emulated");
    policy(true, &"00".repeat(32));
    let output = judge(&["--json"]);
    assert_eq!(output.status.code(), Some(1), "another enclave");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"trusted\": false"));
    assert_eq!(
        verify(&[&path("quote"), "--offline"]).status.code(),
        Some(1),
        "no policy"
    );
    policy(true, &mrenclave);
    let mut altered = quote.clone();
    altered[48 + 64] ^= 1;
    fs::write(path("quote"), &altered).unwrap();
    assert_eq!(judge(&[]).status.code(), Some(1), "an altered quote");
    fs::write(path("quote"), b"no quote").unwrap();
    assert_eq!(judge(&[]).status.code(), Some(3));
    assert_eq!(verify(&["https://127.0.0.1:1"]).status.code(), Some(2));
}
