//! Signatures that were right stay right: those over collateral and certificates are not computed
//! again for each quote.
//!
//! Whether a signature fits a key and a message never changes, so what is remembered is exactly that:
//! the SHA-256 of key, message and signature of each verification that *succeeded*. Everything else
//! (dates, revocation, which chain leads where, what the texts say) is looked at every time, by the
//! same code, and bytes that differ anywhere are verified anew. So no answer depends on what was
//! asked before; only the time that it takes does.
//!
//! Bounded: two generations of [`GENERATION`] each. A peer that floods it with genuine quotes only
//! makes others slower.

use std::collections::HashSet;
use std::sync::Mutex;

use dcap_qvl::config::{Config, CryptoProvider};
use dcap_qvl::crypto::RingCrypto;
use dcap_qvl::signature::DerSigEncoder;
use dcap_qvl::x509::X509CertBackend;
use ring::digest::{Context, SHA256};
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

/// Some 9 signatures belong to a quote, 7 of them to its platform.
const GENERATION: usize = 4096;

/// The verification library's configuration: its own parts, and a memory for signatures.
pub(crate) struct Remembering;

impl Config for Remembering {
    type X509 = X509CertBackend;
    type SigEncoder = DerSigEncoder;
    type Crypto = Remembering;
}

impl CryptoProvider for Remembering {
    fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
        &MEMORY
    }

    fn sha256(data: &[u8]) -> [u8; 32] {
        RingCrypto::sha256(data)
    }

    fn sha384(data: &[u8]) -> [u8; 48] {
        RingCrypto::sha384(data)
    }
}

static MEMORY: Memory = Memory {
    known: Mutex::new(None),
};

/// Which signatures were right.
#[derive(Debug)]
struct Memory {
    known: Mutex<Option<Generations>>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashSet<[u8; 32]>,
    old: HashSet<[u8; 32]>,
}

impl Generations {
    /// What is in use moves to the young, so it stays.
    fn knows(&mut self, digest: &[u8; 32]) -> bool {
        if self.young.contains(digest) {
            return true;
        }
        let known = self.old.contains(digest);
        if known {
            self.learn(*digest);
        }
        known
    }

    fn learn(&mut self, digest: [u8; 32]) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(digest);
    }
}

impl Memory {
    fn with<T>(&self, act: impl FnOnce(&mut Generations) -> T) -> T {
        let mut known = self.known.lock().unwrap_or_else(|poison| {
            // Whoever panicked may have left half of something: begin anew.
            let mut known = poison.into_inner();
            *known = None;
            known
        });
        act(known.get_or_insert_default())
    }
}

/// One digest for all three, each with its length, so that no bytes can move from one to another.
fn digest(parts: [&[u8]; 3]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

impl SignatureVerificationAlgorithm for Memory {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let digest = digest([public_key, message, signature]);
        if self.with(|known| known.knows(&digest)) {
            return Ok(());
        }
        RingCrypto::sig_algo().verify_signature(public_key, message, signature)?;
        self.with(|known| known.learn(digest));
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        RingCrypto::sig_algo().public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        RingCrypto::sig_algo().signature_alg_id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    #[test]
    fn only_what_was_right_is_remembered_and_only_as_a_whole() {
        let memory = Memory {
            known: Mutex::new(None),
        };
        let random = SystemRandom::new();
        let new_key = || {
            let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random);
            let key = key.unwrap();
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.as_ref(), &random)
                .unwrap()
        };
        let (key, other) = (new_key(), new_key());
        let public = key.public_key().as_ref();
        let signature = key.sign(&random, b"message").unwrap();
        let signature = signature.as_ref();
        for round in 0..2 {
            let right = memory.verify_signature(public, b"message", signature);
            assert!(right.is_ok(), "{round}");
            let altered = |at: usize| {
                let mut altered = signature.to_vec();
                altered[at] ^= 1;
                altered
            };
            let wrong = [
                memory.verify_signature(public, b"massage", signature),
                memory.verify_signature(public, b"message\0", signature),
                memory.verify_signature(public, b"messag", &[b"e", signature].concat()),
                memory.verify_signature(other.public_key().as_ref(), b"message", signature),
                memory.verify_signature(&public[1..], b"message", signature),
                memory.verify_signature(public, b"message", &altered(signature.len() - 1)),
                memory.verify_signature(public, b"message", &altered(8)),
                memory.verify_signature(public, b"message", b""),
            ];
            assert!(wrong.iter().all(Result::is_err), "{round}: {wrong:?}");
        }
        assert_eq!(memory.with(|known| known.young.len()), 1);
    }

    #[test]
    fn it_does_not_grow_and_keeps_what_is_in_use() {
        let mut known = Generations::default();
        let number = |n: usize| digest([&n.to_le_bytes(), b"", b""]);
        known.learn(number(0));
        for n in 1..10 * GENERATION {
            known.learn(number(n));
            assert!(n % 100 != 0 || known.knows(&number(0)), "{n}");
            assert!(known.young.len() + known.old.len() <= 2 * GENERATION);
        }
        assert!(!known.knows(&number(1)));
    }
}
