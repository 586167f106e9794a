//! Keys that sign enclaves: RSA, 3072 bits, exponent 3, as SIGSTRUCT demands.

use rsa::pkcs1::{DecodeRsaPrivateKey, DecodeRsaPublicKey};
use rsa::pkcs8::{
    DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding,
};
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, pkcs1v15};
use sha2::{Digest, Sha256};
use std::path::Path;

const BITS: usize = 3072;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    #[error("cannot read the key file {path}: {error}")]
    Read { path: String, error: std::io::Error },
    #[error(
        "the key file is encrypted: decrypt it with `openssl rsa -in KEY -out PLAIN`, or sign \
        in two steps"
    )]
    Encrypted,
    #[error("the key file {path}: {error}")]
    InFile { path: String, error: Box<KeyError> },
    #[error("not an RSA key in PEM form ({0}); make one with `openssl genrsa -3 3072`")]
    Format(String),
    #[error("the key has {0} bits, SGX demands 3072; make one with `openssl genrsa -3 3072`")]
    Size(u32),
    #[error(
        "the key's public exponent is not 3, as SGX demands; make one with \
        `openssl genrsa -3 3072`"
    )]
    Exponent,
    #[error("no key could be generated: {0}")]
    Generate(String),
    #[error("the key cannot sign: {0}")]
    Sign(String),
}

impl KeyError {
    /// The same, naming the file: who gave several must know which.
    fn of_file(self, path: &Path) -> KeyError {
        KeyError::InFile {
            path: path.display().to_string(),
            error: Box::new(self),
        }
    }
}

/// A key that signs enclaves. Wiped from memory when dropped.
#[derive(Clone)]
pub struct SigningKey(rsa::PrivateKey);

/// The public half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    modulus: [u8; 384],
}

fn format_error(error: impl ToString) -> KeyError {
    KeyError::Format(error.to_string())
}

/// The modulus, little endian, of a key that has the right size and exponent.
fn checked_modulus(key: &impl PublicKeyParts) -> Result<[u8; 384], KeyError> {
    let bits = key.n().as_ref().bit_width();
    if bits as usize != BITS {
        return Err(KeyError::Size(bits));
    }
    if key.e() != &BoxedUint::from(3u64) {
        return Err(KeyError::Exponent);
    }
    let mut modulus: [u8; 384] = key
        .n_bytes()
        .as_ref()
        .try_into()
        .map_err(|_| KeyError::Size(bits))?;
    modulus.reverse();
    Ok(modulus)
}

fn read(path: &Path) -> Result<String, KeyError> {
    std::fs::read_to_string(path).map_err(|error| KeyError::Read {
        path: path.display().to_string(),
        error,
    })
}

impl SigningKey {
    /// Reads a PEM file, PKCS #1 or PKCS #8.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::from_pem(&read(path)?).map_err(|error| error.of_file(path))
    }

    /// Reads PEM text, PKCS #1 or PKCS #8.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if pem.contains("ENCRYPTED") {
            return Err(KeyError::Encrypted);
        }
        let key = if pem.contains("BEGIN RSA PRIVATE KEY") {
            rsa::PrivateKey::from_pkcs1_pem(pem).map_err(format_error)?
        } else {
            rsa::PrivateKey::from_pkcs8_pem(pem).map_err(format_error)?
        };
        checked_modulus(&key)?;
        key.validate().map_err(format_error)?;
        Ok(Self(key))
    }

    /// A fresh key, for development: takes seconds without optimisation.
    pub fn generate() -> Result<Self, KeyError> {
        let mut random = rsa::rand_core::UnwrapErr(getrandom::SysRng);
        let key = rsa::PrivateKey::new_with_exp(&mut random, BITS, BoxedUint::from(3u64))
            .map_err(|error| KeyError::Generate(error.to_string()))?;
        checked_modulus(&key)?;
        Ok(Self(key))
    }

    /// PEM text (PKCS #8). Keep it secret.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF).map_err(format_error)?;
        Ok(pem.to_string())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let modulus = checked_modulus(&self.0).expect("a SigningKey was checked when it was made");
        PublicKey { modulus }
    }

    /// PKCS #1 v1.5 signature over the SHA-256 of `bytes`, big endian as usual.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<[u8; 384], KeyError> {
        use rsa::signature::{SignatureEncoding, Signer};
        let key = pkcs1v15::SigningKey::<Sha256>::new(self.0.clone());
        let signature = key
            .try_sign(bytes)
            .map_err(|error| KeyError::Sign(error.to_string()))?;
        let signature = signature.to_vec();
        signature
            .as_slice()
            .try_into()
            .map_err(|_| KeyError::Sign("wrong length".into()))
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public()).finish()
    }
}

impl PublicKey {
    /// Reads a PEM file: SubjectPublicKeyInfo or PKCS #1.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::from_pem(&read(path)?).map_err(|error| error.of_file(path))
    }

    /// Reads PEM text: SubjectPublicKeyInfo or PKCS #1.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let key = if pem.contains("BEGIN RSA PUBLIC KEY") {
            rsa::PublicKey::from_pkcs1_pem(pem).map_err(format_error)?
        } else {
            rsa::PublicKey::from_public_key_pem(pem).map_err(format_error)?
        };
        Ok(Self {
            modulus: checked_modulus(&key)?,
        })
    }

    /// Stands in until a key is known.
    pub const EMPTY: PublicKey = PublicKey { modulus: [0; 384] };

    /// Reads DER: SubjectPublicKeyInfo or PKCS #1.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let key = rsa::PublicKey::from_public_key_der(der)
            .or_else(|_| rsa::PublicKey::from_pkcs1_der(der))
            .map_err(format_error)?;
        Ok(Self {
            modulus: checked_modulus(&key)?,
        })
    }

    /// PEM text (SubjectPublicKeyInfo).
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let mut big_endian = self.modulus;
        big_endian.reverse();
        let modulus = BoxedUint::from_be_slice(&big_endian, BITS as u32).map_err(format_error)?;
        let key = rsa::PublicKey::new(modulus, BoxedUint::from(3u64)).map_err(format_error)?;
        key.to_public_key_pem(LineEnding::LF).map_err(format_error)
    }

    /// The modulus, little endian as in SIGSTRUCT.
    pub fn modulus(&self) -> &[u8; 384] {
        &self.modulus
    }

    /// MRSIGNER of what this key signs.
    pub fn mrsigner(&self) -> [u8; 32] {
        Sha256::digest(self.modulus).into()
    }
}
