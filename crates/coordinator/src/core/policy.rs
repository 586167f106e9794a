//! Who stands behind a manifest that is uploaded: the sender of the request, and those who signed.

use super::live::{Core, Live};
use super::update::fingerprint;
use super::{Coordinator, Credentials, Error};
use crate::pki::Pki;
use crate::policy::{self, Policy, PolicyKey};
use std::collections::BTreeSet;

impl Coordinator {
    /// The key that policies for this namespace are encrypted to; it lives as long as the root.
    pub fn policy_key(&self) -> Result<PolicyKey, Error> {
        self.with_pki(key_of)
    }

    pub(super) fn open_policy(&self, raw: &[u8], pki: &Pki) -> Result<Policy, Error> {
        policy::open(raw, &key_of(pki)?).map_err(|error| Error::Refused(error.to_string()))
    }

    /// The user who acts, and all who agree: the sender and the signers.
    pub(super) fn actors(
        &self,
        live: &Live,
        credentials: Credentials<'_>,
        policy: &Policy,
    ) -> Result<(String, BTreeSet<String>), Error> {
        let mut agreed: BTreeSet<String> = policy
            .signatures
            .iter()
            .filter_map(|signature| live.signer_of(signature, &self.options.namespace))
            .collect();
        let user = match Self::user(live, credentials) {
            Ok(user) => user,
            // Whoever carries a policy that users signed need not be one.
            Err(refusal) => return agreed.first().cloned().map(|u| (u, agreed)).ok_or(refusal),
        };
        agreed.insert(user.clone());
        Ok((user, agreed))
    }
}

fn key_of(pki: &Pki) -> Result<PolicyKey, Error> {
    PolicyKey::of_root(&pki.root.signer().keys().pkcs8)
        .ok_or_else(|| Error::Internal("no policy key follows from the root key".to_owned()))
}

impl Core {
    /// Signatures count once: see `check_predecessor`.
    pub(super) fn remember_policy(&mut self, policy: &Policy) {
        if !policy.signatures.is_empty() {
            self.used_policies.insert(fingerprint(&policy.manifest));
        }
    }
}
