//! MRENCLAVE and SIGSTRUCT against an independent implementation, Fortanix' `sgxs-tools`.

mod common;

use bulla_abi::layout::LayoutKind;
use bulla_image::{
    Date, Description, EnclaveImage, Options, PublicKey, SigStruct, SigningKey, layout, write_sgxs,
};
use bulla_sgx::Attributes;
use common::{openssl_key, programs, run, sgxs_tools, temporary};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

fn image(kind: LayoutKind) -> EnclaveImage {
    let config = common::config(16 << 20, 9);
    let programs = programs();
    layout(
        &programs.bootstrap,
        &programs.runtime,
        &config,
        kind,
        &Options::default(),
    )
    .unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_sigstruct(path: &Path) -> SigStruct {
    SigStruct::from_bytes(&fs::read(path).unwrap().try_into().unwrap()).unwrap()
}

fn agrees(kind: LayoutKind) {
    let tools = sgxs_tools();
    let folder = temporary(&format!("sgxs-{}", kind.name()));
    let key_path = openssl_key(&folder);
    let key = SigningKey::read(&key_path).unwrap();
    let image = image(kind);
    let stream = folder.join("enclave.sgxs");
    write_sgxs(&image, &mut File::create(&stream).unwrap()).unwrap();

    // The stream is canonical, and has the pages and the permissions that we meant.
    let listing = run(Command::new(tools.join("sgxs-info"))
        .arg("list-pages")
        .arg(&stream));
    let size = kind.elrange_size();
    assert!(
        listing.starts_with(&format!("ECREATE size={size:#x} ssaframesize=4\n")),
        "{listing}"
    );
    assert_eq!(listing.lines().count() as u64, 1 + image.pages());
    let measured = listing
        .lines()
        .filter(|line| line.ends_with("measured=all"))
        .count();
    assert_eq!(measured as u64, image.measured_pages());
    let tcs = listing
        .lines()
        .filter(|line| line.contains("pagetype=1 "))
        .count();
    assert_eq!(tcs as u32, image.boot.slots);

    // Their signature is ours, byte for byte: measurement, fields, q1 and q2.
    let description = Description {
        sw_defined: 0x1234,
        isv_prod_id: 7,
        isv_svn: 11,
        misc_select: 0,
        misc_mask: !1,
        attributes: Attributes {
            flags: 0x84,
            xfrm: 7,
        },
        attribute_mask: Attributes {
            flags: !0,
            xfrm: !4,
        },
        isv_ext_prod_id: 0xabcdef_u128.to_le_bytes(),
        ..Description::of(&image, Date::new(2026, 11, 23).unwrap())
    };
    let description = Description {
        attributes: description.attributes.masked(&description.attribute_mask),
        ..description
    };
    let ours = description.sign(&key).unwrap();
    let sign = |output: &Path| {
        let mut command = Command::new(tools.join("sgxs-sign"));
        command.args([
            "--date",
            "20261123",
            "--swdefined",
            "0x1234",
            "-p",
            "7",
            "-v",
            "11",
        ]);
        command.args(["-m", "0/1", "-a", "0x84/0", "-x", "3/4"]);
        command.args(["--isvextprodid", "0xabcdef"]);
        command.arg("--key").arg(&key_path);
        (command, output.to_owned())
    };
    // `--isvextprodid` of the tool reads decimal or hexadecimal.
    let (mut command, theirs_path) = sign(&folder.join("theirs.sig"));
    let said = run(command.arg(&stream).arg(&theirs_path));
    assert_eq!(
        said.trim(),
        format!("ENCLAVEHASH: {} (OK)", hex(&image.mrenclave))
    );
    let theirs = read_sigstruct(&theirs_path);
    theirs.verify().unwrap();
    assert_eq!(theirs.enclave_hash, image.mrenclave);
    assert_eq!(theirs.mrsigner(), key.public().mrsigner());
    assert_eq!(theirs, ours);

    // They accept our signature; and not when a bit of it differs.
    let public_path = folder.join("public.pem");
    fs::write(&public_path, key.public().to_pem().unwrap()).unwrap();
    let verify = |sigstruct: &[u8]| {
        let (mut command, path) = sign(&folder.join("ours.sig"));
        fs::write(&path, sigstruct).unwrap();
        command
            .arg("--resign-verify")
            .arg(&public_path)
            .arg(&stream)
            .arg(&path);
        command.output().unwrap().status.success()
    };
    let mut bytes = ours.to_bytes();
    assert!(verify(&bytes));
    bytes[600] ^= 1;
    assert!(!verify(&bytes));
}

#[test]
fn dynamic_layout_agrees() {
    agrees(LayoutKind::Dynamic);
}

#[test]
fn static_layout_agrees() {
    agrees(LayoutKind::Static);
}

#[test]
fn two_step_signing_with_openssl() {
    let folder = temporary("two-step");
    let key_path = openssl_key(&folder);
    let public_path = folder.join("public.pem");
    let mut openssl = Command::new("openssl");
    run(openssl
        .args(["rsa", "-pubout", "-in"])
        .arg(&key_path)
        .arg("-out")
        .arg(&public_path));
    let description = Description::of(&image(LayoutKind::Dynamic), Date::from_unix(0));
    let message = folder.join("message");
    fs::write(&message, description.unsigned().unwrap().signed_bytes()).unwrap();
    let signature = folder.join("signature");
    let mut openssl = Command::new("openssl");
    openssl
        .args(["dgst", "-sha256", "-sign"])
        .arg(&key_path)
        .arg("-out")
        .arg(&signature);
    run(openssl.arg(&message));

    let public = PublicKey::read(&public_path).unwrap();
    let mut signature = fs::read(&signature).unwrap();
    let signed = description.attach(&public, &signature).unwrap();
    let key = SigningKey::read(&key_path).unwrap();
    assert_eq!(signed, description.sign(&key).unwrap());
    assert_eq!(signed.mrsigner(), public.mrsigner());

    signature[100] ^= 1;
    assert!(description.attach(&public, &signature).is_err());
    assert!(description.attach(&public, &signature[1..]).is_err());
}
