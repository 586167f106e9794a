//! The part of the state that manifests and updates determine.

use crate::json::Bytes;
use crate::keys::{KeyError, KeyKind, KeyPair};
use crate::manifest::{Manifest, Package, SealMode, User, certificate_der};
use crate::pki::{Issuer, Pki, marble_under};
use crate::secrets::Secret;
use crate::store::Content;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// Leaves are short-lived: a marble renews by activating again.
const DEFAULT_LEAF_HOURS: i64 = 24;

/// Its key in the store.
pub const CORE: &str = "core";

/// What is kept. Secrets are inside: never print it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Core {
    /// As it was uploaded, to the byte.
    pub manifest: Bytes,
    /// Those in force: package updates change them, not the manifest.
    pub packages: BTreeMap<String, Package>,
    pub root_secret: Bytes,
    pub root_key: Bytes,
    pub root_cert: Bytes,
    pub intermediate_key: Bytes,
    pub intermediate_cert: Bytes,
    pub marble_root_cert: Bytes,
    /// Shared ones, and those that users have set.
    pub secrets: BTreeMap<String, Secret>,
    /// What `.Previous` shows after the root secret was rotated.
    pub previous: Option<Previous>,
    pub pending: Option<Pending>,
    pub update_log: Vec<String>,
    #[serde(default)]
    pub revoked: Revoked,
    /// Ours: the namespaces below the default one. Only that one's core has any.
    #[serde(default)]
    pub namespaces: BTreeMap<String, Namespace>,
    /// Ours: requests to read secrets that boards must agree to.
    #[serde(default)]
    pub read_requests: BTreeMap<String, ReadRequest>,
    /// Ours: issuers of certificates that have not expired, the newest first.
    #[serde(default)]
    pub earlier: Vec<Earlier>,
    /// Ours: the key (PKCS#8) of the intermediate after the present one. Its revocation list is out before
    /// it issues anything, so peers that check lists know its first certificate at once.
    #[serde(default)]
    pub next_key: Bytes,
    /// Ours: SHA-256 of manifests that were put in force by their signatures; no replays.
    #[serde(default)]
    pub used_policies: BTreeSet<String>,
}

/// An intermediate that an update of the manifest replaced. It issues nothing more but revocation
/// lists, and marbles that renew are known by it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Earlier {
    /// PKCS#8.
    pub key: Bytes,
    /// DER.
    pub certificate: Bytes,
    /// When the last of its certificates expires, in seconds since 1970.
    pub until: i64,
}

/// Updates in one life of a certificate that are remembered.
const MOST_EARLIER: usize = 16;

/// A manifest of its own, with its own keys, beside the default one.
#[derive(Clone, Serialize, Deserialize)]
pub struct Namespace {
    /// Random; the name of its place in the store.
    pub id: String,
    /// The certificate of who may set its first manifest, DER.
    pub owner: Bytes,
}

/// Somebody wants to read secrets that boards watch over.
#[derive(Clone, Serialize, Deserialize)]
pub struct ReadRequest {
    pub user: String,
    pub secrets: BTreeSet<String>,
    pub reason: String,
    pub agreed: BTreeSet<String>,
    /// Seconds since 1970.
    pub made: i64,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Previous {
    pub root_secret: Bytes,
    pub secrets: BTreeMap<String, Secret>,
}

/// An update that waits for acknowledgements.
#[derive(Clone, Serialize, Deserialize)]
pub struct Pending {
    pub manifest: Bytes,
    pub initiator: String,
    pub acknowledged: BTreeSet<String>,
    /// Signatures, which can be replayed, are among the acknowledgements.
    #[serde(default)]
    pub is_signed: bool,
}

/// What may not activate any more.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    pub marbles: BTreeSet<String>,
    pub packages: BTreeSet<String>,
    pub platforms: BTreeSet<String>,
    /// Versions of packages: MRENCLAVEs.
    #[serde(default)]
    pub enclaves: BTreeSet<String>,
}

/// The core with what is computed from it once.
pub struct Live {
    pub core: Core,
    /// With the packages in force.
    pub manifest: Manifest,
    pub pki: Pki,
    /// Issuers before the present one, with their certificates.
    pub earlier: Vec<(Issuer, Vec<u8>)>,
    /// The issuer after the present one, with a certificate; states of before have none.
    pub next: Option<(Issuer, Vec<u8>)>,
    /// Of the values that it was read from; see [`crate::store::Refreshed`].
    epoch: AtomicU64,
    /// Users by the DER of their certificates.
    users: HashMap<Vec<u8>, String>,
    seal_mode: SealMode,
}

impl Core {
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub fn set_pki(&mut self, pki: &Pki) {
        self.root_key = Bytes(pki.root.signer().keys().pkcs8.clone());
        self.root_cert = Bytes(pki.root_cert.clone());
        self.intermediate_key = Bytes(pki.intermediate.signer().keys().pkcs8.clone());
        self.intermediate_cert = Bytes(pki.intermediate_cert.clone());
        self.marble_root_cert = Bytes(pki.marble_root_cert.clone());
    }

    /// The next intermediate takes the place of the one in force, whose certificates live so long.
    pub fn rotate(
        &mut self,
        pki: &Pki,
        names: &[String],
        life: time::Duration,
    ) -> Result<Pki, KeyError> {
        let fresh = || Ok(KeyPair::generate(KeyKind::P384)?.pkcs8.clone());
        let key = match self.next_key.0.is_empty() {
            true => fresh()?,
            false => std::mem::take(&mut self.next_key.0),
        };
        let pki = pki.rotated(names, &key)?;
        self.next_key = Bytes(fresh()?);
        let now = OffsetDateTime::now_utc();
        let replaced = Earlier {
            key: self.intermediate_key.clone(),
            certificate: self.intermediate_cert.clone(),
            until: (now + life).unix_timestamp(),
        };
        self.earlier.insert(0, replaced);
        self.earlier
            .retain(|earlier| earlier.until > now.unix_timestamp());
        self.earlier.truncate(MOST_EARLIER);
        self.set_pki(&pki);
        Ok(pki)
    }

    /// Adds a line to the update log, bound to the line before it.
    pub fn log(&mut self, update: &str, fields: &[(&str, serde_json::Value)]) {
        // An object by hand: MarbleRun's lines begin with time and update.
        let mut line = format!("{{\"time\":\"{}\",\"update\":", now());
        line += &serde_json::Value::from(update).to_string();
        for (name, value) in fields {
            line += &format!(",{}:{value}", serde_json::Value::from(*name));
        }
        line += &format!(
            ",\"previous\":\"{}\"}}",
            super::audit::link(&self.update_log)
        );
        self.update_log.push(line);
    }
}

/// The time in RFC 3339.
pub fn now() -> String {
    OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default()
}

impl Live {
    pub fn new(core: Core) -> Result<Live, String> {
        let (mut manifest, _) =
            Manifest::parse(&core.manifest.0).map_err(|error| error.to_string())?;
        manifest.packages.clone_from(&core.packages);
        let pki = Pki::restore(
            &core.root_key.0,
            core.root_cert.0.clone(),
            &core.intermediate_key.0,
            core.intermediate_cert.0.clone(),
            core.marble_root_cert.0.clone(),
        )
        .map_err(|error| error.to_string())?;
        let earlier = core
            .earlier
            .iter()
            .map(|earlier| {
                let issuer = Issuer::intermediate(&earlier.key.0)?;
                Ok((issuer, earlier.certificate.0.clone()))
            })
            .collect::<Result<_, KeyError>>()
            .map_err(|error| error.to_string())?;
        let next = match core.next_key.0.is_empty() {
            true => None,
            false => Issuer::intermediate(&core.next_key.0)
                .and_then(|issuer| pki.certified(&issuer).map(|cert| Some((issuer, cert))))
                .map_err(|error| error.to_string())?,
        };
        let users = manifest
            .users
            .iter()
            .filter_map(|(name, user)| {
                Some((certificate_der(&user.certificate).ok()?, name.clone()))
            })
            .collect();
        let seal_mode = manifest.seal_mode();
        Ok(Live {
            core,
            manifest,
            pki,
            earlier,
            next,
            epoch: AtomicU64::new(0),
            users,
            seal_mode,
        })
    }

    pub fn load(content: &Content) -> Result<Live, String> {
        let core = content.get(CORE).ok_or("it has no core")?;
        Live::new(serde_json::from_slice(core).map_err(|error| error.to_string())?)
    }

    /// Of the values that it was read from, or that are still the same.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// It is what was read in this epoch.
    pub fn follow(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// Whether this is what the store has.
    pub fn is_in(&self, content: &Content) -> bool {
        content.get(CORE) == Some(&self.core.encode())
    }

    /// Whether the state outlives the process.
    pub fn is_kept(&self) -> bool {
        self.seal_mode != SealMode::Disabled
    }

    /// The user who made a signature.
    pub fn signer_of(
        &self,
        signature: &crate::policy::Signature,
        namespace: &str,
    ) -> Option<String> {
        self.users
            .iter()
            .find(|(certificate, _)| signature.is_by(certificate, namespace))
            .map(|(_, name)| name.clone())
    }

    /// The marble whose certificate this is, by the present manifest or an earlier one.
    pub fn known_marble(&self, certificate: &[u8]) -> Option<(String, Uuid)> {
        let earlier = self.earlier.iter().map(|(_, issuer)| issuer.as_slice());
        std::iter::once(self.pki.marble_root_cert.as_slice())
            .chain(earlier)
            .find_map(|issuer| marble_under(issuer, certificate))
    }

    /// How long marbles' certificates live.
    pub fn leaf_life(&self) -> time::Duration {
        let config = &self.manifest.config;
        match (
            config.marble_certificate_minutes,
            config.marble_certificate_hours,
        ) {
            (0, 0) => time::Duration::hours(DEFAULT_LEAF_HOURS),
            (0, hours) => time::Duration::hours(i64::from(hours)),
            (minutes, _) => time::Duration::minutes(i64::from(minutes)),
        }
    }

    /// The user with exactly this certificate.
    pub fn user_of(&self, certificate: &[u8]) -> Option<(&str, &User)> {
        let name = self.users.get(certificate)?;
        Some((name, self.manifest.users.get(name)?))
    }
}
