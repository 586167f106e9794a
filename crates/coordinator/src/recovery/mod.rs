//! Getting the data key back from people, when the machine that could unseal it is gone.
//!
//! One recovery key: it gets the data key. Several, all needed: XOR shares. Several, some needed:
//! Shamir shares. Each goes to its key with RSA-OAEP-SHA256. What the holders need later
//! ([`Plan`]) is kept in the clear beside the state, and authenticated with it.

pub mod shamir;

use crate::json::Bytes;
use crate::manifest::Manifest;
use crate::seal::Key;
use getrandom::SysRng;
use rsa::pkcs8::{DecodePublicKey, EncodePublicKey};
use rsa::{Oaep, Pkcs1v15Sign, PrivateKey, PublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// Bits of the key that secrets are uploaded under.
const EPHEMERAL_BITS: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    #[error("recovery key {0} cannot be used")]
    Key(String),
    #[error("cannot make recovery secrets: {0}")]
    Random(String),
    #[error("the state has no recovery keys: set a new manifest")]
    NoKeys,
    #[error("the recovery secret cannot be decrypted with the coordinator's current public key")]
    Decrypt,
    #[error("the signature of the recovery secret fits none of the manifest's recovery keys")]
    Signature,
    #[error("recovery key {0} has been used already")]
    Repeated(String),
    #[error("this is not the recovery secret of key {0}")]
    WrongSecret(String),
    #[error("the recovery secrets do not give the key of this state; start again")]
    Combine,
}

/// How the data key was shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scheme {
    None,
    Single,
    Xor,
    Shamir,
}

/// What recovery needs to know, and may be read by anyone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub scheme: Scheme,
    pub needed: usize,
    /// Name to key and the hash of its share. Shares have 256 random bits: the hash tells nothing.
    pub holders: BTreeMap<String, Holder>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Holder {
    /// PKIX DER.
    pub public_key: Bytes,
    pub share_hash: Bytes,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            scheme: Scheme::None,
            needed: 0,
            holders: BTreeMap::new(),
        }
    }
}

/// Shares a data key among a manifest's recovery keys: the plan, and each holder's encrypted share.
pub fn share(
    manifest: &Manifest,
    key: &Key,
) -> Result<(Plan, BTreeMap<String, Vec<u8>>), RecoveryError> {
    let count = manifest.recovery_keys.len();
    let threshold = match manifest.config.recovery_threshold as usize {
        0 => count,
        threshold => threshold,
    };
    let scheme = match count {
        0 => return Ok((Plan::default(), BTreeMap::new())),
        1 => Scheme::Single,
        _ if threshold == count => Scheme::Xor,
        _ => Scheme::Shamir,
    };
    let random = |error: getrandom::Error| RecoveryError::Random(error.to_string());
    let mut shares = match scheme {
        Scheme::Xor => xor_split(key, count).map_err(random)?,
        Scheme::Shamir => shamir::split(&key.0, count as u8, threshold as u8).map_err(random)?,
        Scheme::Single | Scheme::None => vec![key.0.to_vec()],
    };
    let mut plan = Plan {
        scheme,
        needed: threshold,
        holders: BTreeMap::new(),
    };
    let mut secrets = BTreeMap::new();
    for ((name, pem), share) in manifest.recovery_keys.iter().zip(&shares) {
        let wrong = || RecoveryError::Key(name.clone());
        let public = crate::manifest::recovery_key(pem).map_err(|_| wrong())?;
        let encrypted = public
            .encrypt(&mut SysRng, Oaep::<Sha256>::new(), share)
            .map_err(|_| wrong())?;
        let der = public.to_public_key_der().map_err(|_| wrong())?;
        plan.holders.insert(
            name.clone(),
            Holder {
                public_key: Bytes(der.into_vec()),
                share_hash: Bytes(Sha256::digest(share).to_vec()),
            },
        );
        secrets.insert(name.clone(), encrypted);
    }
    shares.zeroize();
    Ok((plan, secrets))
}

fn xor_split(key: &Key, count: usize) -> Result<Vec<Vec<u8>>, getrandom::Error> {
    let mut last = key.0.to_vec();
    let mut shares = Vec::with_capacity(count);
    for _ in 1..count {
        let mut share = vec![0; last.len()];
        getrandom::fill(&mut share)?;
        last.iter_mut().zip(&share).for_each(|(a, b)| *a ^= b);
        shares.push(share);
    }
    shares.push(last);
    Ok(shares)
}

/// A recovery under way.
pub struct Recovery {
    plan: Plan,
    /// Made in the background: a key of this size takes seconds.
    ephemeral: Arc<OnceLock<Result<PrivateKey, RecoveryError>>>,
    given: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

fn make_ephemeral() -> Result<PrivateKey, RecoveryError> {
    PrivateKey::new(&mut SysRng, EPHEMERAL_BITS)
        .map_err(|error| RecoveryError::Random(error.to_string()))
}

/// What an upload led to.
pub enum Progress {
    Remaining(usize),
    Complete(Key),
}

impl Recovery {
    pub fn new(plan: Plan) -> Recovery {
        let ephemeral = Arc::new(OnceLock::new());
        if plan.scheme != Scheme::None {
            let ephemeral = ephemeral.clone();
            std::thread::spawn(move || {
                ephemeral.get_or_init(make_ephemeral);
            });
        }
        Recovery {
            plan,
            ephemeral,
            given: BTreeMap::new(),
        }
    }

    fn ephemeral(&self) -> Result<&PrivateKey, RecoveryError> {
        self.ephemeral
            .get_or_init(make_ephemeral)
            .as_ref()
            .map_err(Clone::clone)
    }

    /// The key to encrypt recovery secrets with, PKIX DER.
    pub fn public_key(&self) -> Result<Vec<u8>, RecoveryError> {
        self.ephemeral()?
            .to_public_key()
            .to_public_key_der()
            .map(|der| der.into_vec())
            .map_err(|_| RecoveryError::Random("cannot encode the public key".to_owned()))
    }

    pub fn upload(&mut self, secret: &[u8], signature: &[u8]) -> Result<Progress, RecoveryError> {
        if self.plan.scheme == Scheme::None {
            return Err(RecoveryError::NoKeys);
        }
        let plain = match secret.len() {
            // A data key, an XOR share, a Shamir share: sent as it is.
            16 | 32 | 33 => Zeroizing::new(secret.to_vec()),
            _ => Zeroizing::new(
                self.ephemeral()?
                    .decrypt_blinded(&mut SysRng, Oaep::<Sha256>::new(), secret)
                    .map_err(|_| RecoveryError::Decrypt)?,
            ),
        };
        let hash = Sha256::digest(&*plain);
        let mut signers = self
            .plan
            .holders
            .iter()
            .filter(|(_, holder)| verifies(&holder.public_key.0, &plain, signature));
        let Some((name, holder)) = signers.next() else {
            return Err(RecoveryError::Signature);
        };
        if !bool::from(hash.as_slice().ct_eq(&holder.share_hash.0)) {
            return Err(RecoveryError::WrongSecret(name.clone()));
        }
        if self.given.contains_key(name) {
            return Err(RecoveryError::Repeated(name.clone()));
        }
        self.given.insert(name.clone(), plain);
        match self.plan.needed.saturating_sub(self.given.len()) {
            0 => self.combine().map(Progress::Complete),
            remaining => Ok(Progress::Remaining(remaining)),
        }
    }

    fn combine(&mut self) -> Result<Key, RecoveryError> {
        let given = std::mem::take(&mut self.given);
        let shares: Vec<Vec<u8>> = given.values().map(|share| share.to_vec()).collect();
        let shares = Zeroizing::new(shares);
        let secret = match self.plan.scheme {
            Scheme::Shamir => shamir::combine(&shares),
            _ => shares.iter().cloned().reduce(|mut sum, share| {
                sum.iter_mut().zip(&share).for_each(|(a, b)| *a ^= b);
                sum
            }),
        };
        secret
            .map(Zeroizing::new)
            .and_then(|secret| secret.as_slice().try_into().ok())
            .map(Key)
            .ok_or(RecoveryError::Combine)
    }
}

fn verifies(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let Ok(key) = PublicKey::from_public_key_der(public_key) else {
        return false;
    };
    key.verify(
        Pkcs1v15Sign::new::<Sha256>(),
        &Sha256::digest(message),
        signature,
    )
    .is_ok()
}

/// What a holder sends: the share, decrypted and encrypted again for the coordinator, and the
/// signature over it. Keys are PKCS#8 and PKIX DER.
pub fn answer(
    holder_key: &[u8],
    encrypted: &[u8],
    coordinator_key: &[u8],
) -> Result<(Vec<u8>, Vec<u8>), RecoveryError> {
    use rsa::pkcs8::DecodePrivateKey;
    let wrong = || RecoveryError::Key("given".to_owned());
    let key = PrivateKey::from_pkcs8_der(holder_key).map_err(|_| wrong())?;
    let plain = Zeroizing::new(
        key.decrypt_blinded(&mut SysRng, Oaep::<Sha256>::new(), encrypted)
            .map_err(|_| RecoveryError::Decrypt)?,
    );
    let signature = key
        .sign_with_rng(
            &mut SysRng,
            Pkcs1v15Sign::new::<Sha256>(),
            &Sha256::digest(&*plain),
        )
        .map_err(|_| wrong())?;
    let secret = PublicKey::from_public_key_der(coordinator_key)
        .and_then(|key| {
            key.encrypt(&mut SysRng, Oaep::<Sha256>::new(), &plain)
                .map_err(|_| rsa::pkcs8::spki::Error::KeyMalformed)
        })
        .map_err(|_| wrong())?;
    Ok((secret, signature))
}
