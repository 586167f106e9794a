//! Taking trust back: from one marble, from a package, from a platform.
//!
//! What is revoked cannot activate any more, at once. Certificates that are out already are on the
//! list that peers load ([`Coordinator::revocation_list`]), an X.509 CRL.

use super::live::{Live, Revoked};
use super::tables::Instance;
use super::{Coordinator, Credentials, Error};
use crate::crl::RevocationList;
use crate::manifest::Resource;
use crate::x509::pem;
use std::sync::Arc;
use std::time::Instant;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// Peers' clocks may be a little behind.
const CLOCK_SKEW: Duration = Duration::minutes(2);
/// A peer that cannot get a new list for so long stops trusting.
const LIST_LIFE: Duration = Duration::minutes(10);

/// Certificates that other replicas gave out are on it after so long at most.
const LIST_AGE: std::time::Duration = std::time::Duration::from_secs(5);

/// The list is sent to whoever asks, and is in memory: bounded.
const MOST: usize = 100_000;

impl Revoked {
    /// Whether all of a marble's certificates are revoked.
    fn covers(&self, uuid: &Uuid, instance: &Instance) -> bool {
        self.marbles.contains(&uuid.to_string())
            || self.packages.contains(&instance.package)
            || self
                .platforms
                .contains(&instance.platform.to_ascii_lowercase())
    }
}

/// The last list that was made, and from what.
pub(super) struct KeptList {
    made: Instant,
    revoked: Revoked,
    root: Vec<u8>,
    lists: Arc<Vec<IssuersList>>,
}

/// A revocation list, DER, with its issuer's certificate.
pub struct IssuersList {
    pub issuer: Vec<u8>,
    pub der: Vec<u8>,
}

impl Coordinator {
    /// Adds to what is revoked. One user with UpdateManifest suffices: it only ever takes away.
    pub(super) async fn try_revoke(
        &self,
        what: &Revoked,
        credentials: Credentials<'_>,
    ) -> Result<Revoked, Error> {
        let _change = self.change.lock().await;
        let live = self.live()?;
        let user = Self::user(&live, credentials)?;
        Self::require(&live, &user, Resource::Manifest, "", "UpdateManifest")?;
        if what == &Revoked::default() {
            return Err(Error::BadRequest(
                "nothing to revoke: name marbles, packages, enclaves or platforms".to_owned(),
            ));
        }
        let mut core = live.core.clone();
        for marble in &what.marbles {
            let uuid = Uuid::parse_str(marble)
                .map_err(|error| Error::BadRequest(format!("marble {marble}: {error}")))?;
            core.revoked.marbles.insert(uuid.to_string());
        }
        for package in &what.packages {
            if !live.manifest.packages.contains_key(package) {
                return Err(Error::BadRequest(format!(
                    "package {package} does not exist"
                )));
            }
            core.revoked.packages.insert(package.clone());
        }
        core.revoked.platforms.extend(
            what.platforms
                .iter()
                .map(|platform| platform.to_ascii_lowercase()),
        );
        for enclave in &what.enclaves {
            let hash = crate::parse_sha256(enclave).ok_or_else(|| {
                Error::BadRequest(format!("enclave {enclave}: an MRENCLAVE has 64 hex digits"))
            })?;
            core.revoked.enclaves.insert(hex::encode(hash));
        }
        let count = core.revoked.marbles.len()
            + core.revoked.packages.len()
            + core.revoked.platforms.len()
            + core.revoked.enclaves.len();
        if count > MOST {
            return Err(Error::Refused(format!(
                "more than {MOST} entries are revoked"
            )));
        }
        let list = |set: &std::collections::BTreeSet<String>| {
            serde_json::Value::from(set.iter().cloned().collect::<Vec<_>>())
        };
        core.log(
            "Revoked",
            &[
                ("user", user.as_str().into()),
                ("marbles", list(&what.marbles)),
                ("packages", list(&what.packages)),
                ("enclaves", list(&what.enclaves)),
                ("platforms", list(&what.platforms)),
            ],
        );
        let live = self.replace(&live, core).await?;
        Ok(live.core.revoked.clone())
    }

    /// The CRLs of the present issuer and, behind it, of earlier ones and the next one: all certificates of revoked
    /// marbles, packages and platforms that have not expired. Anyone may ask, so they are made anew
    /// only when they must be.
    pub fn revocation_lists(&self) -> Result<Arc<Vec<IssuersList>>, Error> {
        let live = self.live()?;
        let mut kept = self.list.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(list) = kept.as_ref()
            && list.made.elapsed() < LIST_AGE
            && list.revoked == live.core.revoked
            && list.root == live.pki.marble_root_cert
        {
            return Ok(list.lists.clone());
        }
        let lists = Arc::new(self.new_revocation_lists(&live)?);
        *kept = Some(KeptList {
            made: Instant::now(),
            revoked: live.core.revoked.clone(),
            root: live.pki.marble_root_cert.clone(),
            lists: lists.clone(),
        });
        Ok(lists)
    }

    /// The CRL of the marble root, DER.
    pub fn revocation_list(&self) -> Result<Vec<u8>, Error> {
        let lists = self.revocation_lists()?;
        Ok(lists
            .first()
            .map(|list| list.der.clone())
            .unwrap_or_default())
    }

    /// All lists, each behind its issuer's certificate, PEM: what marbles load.
    pub fn revocation_bundle(&self) -> Result<String, Error> {
        let lists = self.revocation_lists()?;
        Ok(lists
            .iter()
            .map(|list| pem("CERTIFICATE", &list.issuer) + &pem("X509 CRL", &list.der))
            .collect())
    }

    fn new_revocation_lists(&self, live: &Live) -> Result<Vec<IssuersList>, Error> {
        let now = OffsetDateTime::now_utc();
        let serials = self.revoked_serials(live, now);
        let present = (&live.pki.intermediate, &live.pki.intermediate_cert);
        // The next issuer's list is out before its first certificate: after an update nobody is refused
        // because a peer has not looked since.
        let others = live.earlier.iter().chain(&live.next);
        std::iter::once(present)
            .chain(others.map(|(issuer, cert)| (issuer, cert)))
            .map(|(issuer, certificate)| {
                // Whose list a serial number belongs on is not known; numbers are random, so a
                // further one says nothing about anybody else.
                let der = RevocationList {
                    issuer: issuer.name(),
                    issuer_key_id: &issuer.key_id(),
                    number: now.unix_timestamp().unsigned_abs(),
                    this_update: now - CLOCK_SKEW,
                    next_update: now + LIST_LIFE,
                    serials: &serials,
                }
                .sign(issuer.signer())?;
                Ok(IssuersList {
                    issuer: certificate.clone(),
                    der,
                })
            })
            .collect()
    }

    fn revoked_serials(&self, live: &Live, now: OffsetDateTime) -> Vec<Vec<u8>> {
        let revoked = &live.core.revoked;
        let mut serials = Vec::new();
        for (uuid, instance) in self.tables.instances().iter() {
            if revoked == &Revoked::default() {
                break;
            }
            let is_revoked = revoked.covers(uuid, instance);
            serials.extend(
                instance
                    .leaves
                    .iter()
                    .filter(|leaf| is_revoked || revoked.enclaves.contains(&leaf.enclave))
                    .filter(|leaf| leaf.until > now.unix_timestamp())
                    .filter_map(|leaf| hex::decode(&leaf.serial).ok()),
            );
        }
        serials.sort();
        serials
    }

    /// Whether a marble's certificate, issued here, was taken back since.
    pub(super) fn is_taken_back(&self, live: &Live, certificate: &[u8], uuid: &Uuid) -> bool {
        let revoked = &live.core.revoked;
        let serial = x509_parser::parse_x509_certificate(certificate)
            .map(|(_, certificate)| hex::encode(certificate.raw_serial()))
            .unwrap_or_default();
        match self.tables.instances().get(uuid) {
            None => revoked.marbles.contains(&uuid.to_string()),
            Some(instance) => {
                revoked.covers(uuid, instance)
                    || instance.leaves.iter().any(|leaf| {
                        leaf.serial == serial && revoked.enclaves.contains(&leaf.enclave)
                    })
            }
        }
    }

    pub fn revoked(&self) -> Result<Revoked, Error> {
        Ok(self.live()?.core.revoked.clone())
    }
}
