//! Key files as OpenSSL writes them, and keys that SGX cannot use.

mod common;

use bulla_image::{KeyError, PublicKey, SigningKey};
use common::{openssl_key, run, temporary};
use std::process::Command;

#[test]
fn both_forms_of_private_keys_and_of_public_keys() {
    let folder = temporary("keys");
    let key_path = openssl_key(&folder);
    let key = SigningKey::read(&key_path).unwrap();
    let openssl = |arguments: &[&str]| {
        run(Command::new("openssl")
            .args(arguments)
            .arg("-in")
            .arg(&key_path))
    };
    let pkcs1 = SigningKey::from_pem(&openssl(&["rsa", "-traditional"])).unwrap();
    let pkcs8 = SigningKey::from_pem(&openssl(&["pkcs8", "-topk8", "-nocrypt"])).unwrap();
    assert_eq!(pkcs1.public(), key.public());
    assert_eq!(pkcs8.public(), key.public());
    let spki = PublicKey::from_pem(&openssl(&["rsa", "-pubout"])).unwrap();
    let plain = PublicKey::from_pem(&openssl(&["rsa", "-RSAPublicKey_out"])).unwrap();
    assert_eq!(spki, key.public());
    assert_eq!(plain, key.public());
    assert_eq!(PublicKey::from_pem(&spki.to_pem().unwrap()).unwrap(), spki);
    let again = SigningKey::from_pem(&key.to_pem().unwrap()).unwrap();
    assert_eq!(again.public(), key.public());
}

#[test]
fn unsuitable_keys_are_refused_with_the_remedy() {
    let generate = |arguments: &[&str]| run(Command::new("openssl").arg("genrsa").args(arguments));
    let error = SigningKey::from_pem(&generate(&["-3", "2048"])).unwrap_err();
    assert!(matches!(error, KeyError::Size(2048)));
    assert!(error.to_string().contains("openssl genrsa -3 3072"));
    let error = SigningKey::from_pem(&generate(&["-f4", "3072"])).unwrap_err();
    assert!(matches!(error, KeyError::Exponent));
    assert!(error.to_string().contains("openssl genrsa -3 3072"));
    let error = SigningKey::from_pem(&generate(&["-3", "-aes128", "-passout", "pass:x", "3072"]));
    assert!(matches!(error.unwrap_err(), KeyError::Encrypted));
    assert!(matches!(
        SigningKey::from_pem("nonsense"),
        Err(KeyError::Format(_))
    ));
    let missing = SigningKey::read("/nonexistent".as_ref()).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent"));
}

#[test]
fn a_generated_key_signs_for_openssl() {
    let key = SigningKey::generate().unwrap();
    let pem = key.to_pem().unwrap();
    let path = temporary("generated").join("key.pem");
    std::fs::write(&path, &pem).unwrap();
    run(Command::new("openssl")
        .args(["rsa", "-check", "-noout", "-in"])
        .arg(&path));
    assert_eq!(SigningKey::from_pem(&pem).unwrap().public(), key.public());
}
