//! Revocation lists: which certificates of the cluster were taken back.
//!
//! The coordinator's marble door has a list for each issuer whose certificates may still be about, each
//! behind its issuer's certificate, the present issuer first. The network is the host's: a list counts
//! only if its issuer descends from the root of the last activation, and if it is not older than the
//! one that is here. `crl.pem` has them all, in a form that TLS libraries load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bulla_agent::settings::Coordinator;
use bulla_attest::{Certificate, pem_certificates};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::{MarbleError, Wish, file_error, present, wire};
use crate::files;

/// The application gets a list at least so often: it goes out of date after ten minutes.
const TELL: Duration = Duration::from_secs(240);
/// Manifests are not updated so often within the life of a certificate.
const MOST_LISTS: usize = 32;

const LIST: &str = "X509 CRL";
/// The authority key identifier (RFC 5280, section 4.2.1.1): whose list it is.
const AUTHORITY: &str = "2.5.29.35";

/// Held while lists are put in their place: both who renews and who looks for news does it.
static ALONE: Mutex<()> = Mutex::new(());

/// Lists that were found good.
#[derive(Debug)]
pub struct Lists {
    all: Vec<List>,
    /// Certificate of the present issuer, DER.
    pub issuer: Vec<u8>,
}

#[derive(Debug)]
struct List {
    der: Vec<u8>,
    facts: Facts,
}

#[derive(Debug)]
struct Facts {
    authority: Vec<u8>,
    number: u64,
    serials: BTreeSet<Vec<u8>>,
}

fn facts(der: &[u8]) -> Option<Facts> {
    let (rest, list) = CertificateRevocationList::from_der(der).ok()?;
    let authority = list
        .extensions()
        .iter()
        .find(|extension| extension.oid.to_id_string() == AUTHORITY)?;
    Some(Facts {
        authority: authority.value.to_vec(),
        number: list.crl_number()?.to_string().parse().ok()?,
        serials: list
            .iter_revoked_certificates()
            .map(|revoked| revoked.raw_serial().to_vec())
            .collect(),
    })
    .filter(|_| rest.is_empty())
}

/// Checks what the door said; `root`: of the last activation, DER.
pub fn understood(text: &[u8], root: &[u8]) -> Result<Lists, MarbleError> {
    let broken = |what: &str| MarbleError::Broken(format!("its revocation lists: {what}"));
    let stranger = |what: &str| MarbleError::Stranger(format!("its revocation lists: {what}"));
    let blocks = pem::parse_many(text).map_err(|_| broken("no PEM"))?;
    if blocks.is_empty() || blocks.len() > 2 * MOST_LISTS {
        return Err(broken("none, or too many"));
    }
    let root = Certificate::decode(root).map_err(|_| broken("the root"))?;
    let mut all = Vec::new();
    let mut first = None;
    for pair in blocks.chunks(2) {
        let [issuer, list] = pair else {
            return Err(broken("one is missing"));
        };
        if (issuer.tag(), list.tag()) != ("CERTIFICATE", LIST) {
            return Err(broken("something else is among them"));
        }
        let decoded = Certificate::decode(issuer.contents()).map_err(|_| broken("an issuer"))?;
        if !decoded.is_signed_by(&root) {
            return Err(stranger("an issuer does not descend from the root"));
        }
        let is_signed = X509Certificate::from_der(issuer.contents())
            .ok()
            .zip(CertificateRevocationList::from_der(list.contents()).ok())
            .is_some_and(|((_, issuer), (_, list))| {
                list.verify_signature(issuer.public_key()).is_ok()
            });
        if !is_signed {
            return Err(stranger("one is not signed by its issuer"));
        }
        first.get_or_insert_with(|| issuer.contents().to_vec());
        all.push(List {
            der: list.contents().to_vec(),
            facts: facts(list.contents()).ok_or_else(|| broken("a list"))?,
        });
    }
    Ok(Lists {
        all,
        issuer: first.unwrap_or_default(),
    })
}

impl Lists {
    fn pem(&self) -> String {
        let blocks: Vec<pem::Pem> = self
            .all
            .iter()
            .map(|list| pem::Pem::new(LIST, list.der.clone()))
            .collect();
        pem::encode_many(&blocks)
    }

    /// Puts them in their place, unless those there are newer. True if more or less is revoked now.
    pub fn put(&self, settings: &Coordinator) -> Result<bool, MarbleError> {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let path = settings.directory.join("crl.pem");
        let here = fs::read(&path).unwrap_or_default();
        let here: Vec<Facts> = pem::parse_many(&here)
            .unwrap_or_default()
            .iter()
            .filter_map(|block| facts(block.contents()))
            .collect();
        let numbers: BTreeMap<&[u8], u64> = here
            .iter()
            .map(|facts| (&facts.authority[..], facts.number))
            .collect();
        let is_old = self.all.iter().any(|list| {
            let facts = &list.facts;
            numbers
                .get(&facts.authority[..])
                .is_some_and(|number| *number > facts.number)
        });
        if is_old {
            return Err(MarbleError::Stranger(
                "its revocation lists are older than those that are here".into(),
            ));
        }
        files::directory(&settings.directory, 0o755).map_err(file_error(&settings.directory))?;
        files::put(&path, self.pem().as_bytes(), 0o644).map_err(file_error(&path))?;
        let serials = |facts: &mut dyn Iterator<Item = &Facts>| -> BTreeSet<Vec<u8>> {
            facts.flat_map(|facts| facts.serials.clone()).collect()
        };
        let now = serials(&mut self.all.iter().map(|list| &list.facts));
        Ok(now != serials(&mut here.iter()))
    }
}

/// The door's path for a marble: those of a namespace have lists of their own.
pub fn path(marble_type: &str) -> String {
    match marble_type.split_once('/') {
        Some((namespace, _)) => format!("/crl/{namespace}"),
        None => "/crl".into(),
    }
}

/// Looks for new lists for ever. `news`: told when certificates have another issuer now.
pub fn follow(settings: &Coordinator, wish: &Wish, every: Duration, news: &Sender<()>) {
    let mut told = Instant::now();
    let mut complaint = String::new();
    loop {
        std::thread::sleep(every);
        match look(settings, wish) {
            Ok((is_changed, is_reissued)) => {
                complaint.clear();
                if is_reissued {
                    let _ = news.send(());
                }
                if is_changed || told.elapsed() >= TELL {
                    super::tell(settings, &wire::Parameters::default());
                    told = Instant::now();
                }
            }
            Err(error) => {
                let said = error.to_string();
                if said != complaint {
                    eprintln!("bulla-agent: no new revocation lists: {said}");
                    complaint = said;
                }
            }
        }
    }
}

/// Whether something else is revoked, and whether certificates have another issuer.
fn look(settings: &Coordinator, wish: &Wish) -> Result<(bool, bool), MarbleError> {
    let text = wire::lists(&wish.address, &present(settings)?, &path(&wish.marble_type))?;
    let certificates = |name: &str| -> Result<Vec<Vec<u8>>, MarbleError> {
        let path = settings.directory.join(name);
        let text = fs::read_to_string(&path).map_err(file_error(&path))?;
        Ok(pem_certificates(&text).unwrap_or_default())
    };
    let root = certificates("ca.crt")?.into_iter().next();
    let lists = understood(&text, &root.unwrap_or_default())?;
    let is_changed = lists.put(settings)?;
    let issuer = certificates("tls.crt")?.into_iter().nth(1);
    Ok((is_changed, issuer.is_some_and(|der| der != lists.issuer)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
        IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    };

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority(above: Option<&Authority>) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        match above {
            Some(above) => CertifiedIssuer::signed_by(params, key, above).unwrap(),
            None => CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    fn list(issuer: &Authority, number: u64, revoked: &[u64]) -> String {
        let time = rcgen::date_time_ymd(2030, 1, 1);
        let end = rcgen::date_time_ymd(2030, 1, 2);
        let params = CertificateRevocationListParams {
            this_update: time,
            next_update: end,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: time,
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(issuer).unwrap().pem().unwrap()
    }

    #[test]
    fn only_lists_below_the_root_count() {
        let (root, other) = (authority(None), authority(None));
        let (now, before) = (authority(Some(&root)), authority(Some(&root)));
        let theirs = authority(Some(&other));
        let judged = |text: &str| understood(text.as_bytes(), root.der());
        let good = now.pem() + &list(&now, 7, &[1, 2]);
        let two = good.clone() + &before.pem() + &list(&before, 6, &[3]);
        let lists = judged(&two).unwrap();
        assert_eq!(lists.issuer, now.der().to_vec());
        assert_eq!(lists.all.len(), 2);
        assert_eq!(lists.pem().matches("BEGIN X509 CRL").count(), 2);
        assert!(!lists.pem().contains("CERTIFICATE"));
        for (text, is_stranger) in [
            (theirs.pem() + &list(&theirs, 7, &[]), true),
            (now.pem() + &list(&before, 7, &[]), true),
            (good.clone() + &theirs.pem() + &list(&theirs, 7, &[]), true),
            (now.pem(), false),
            (list(&now, 7, &[]) + &now.pem(), false),
            (String::new(), false),
            ("nothing".into(), false),
            (good.repeat(MOST_LISTS + 1), false),
        ] {
            let refused = judged(&text).unwrap_err();
            assert_eq!(
                matches!(refused, MarbleError::Stranger(_)),
                is_stranger,
                "{refused}"
            );
        }
    }

    #[test]
    fn older_lists_are_not_put_back() {
        let place = tempfile::tempdir().unwrap();
        let settings = Coordinator {
            directory: place.path().join("tls"),
            ..Coordinator::default()
        };
        let root = authority(None);
        let now = authority(Some(&root));
        let put = |number, revoked: &[u64]| {
            let text = now.pem() + &list(&now, number, revoked);
            understood(text.as_bytes(), root.der())
                .unwrap()
                .put(&settings)
        };
        assert!(!put(5, &[]).unwrap(), "nothing is revoked");
        assert!(put(6, &[1]).unwrap());
        assert!(!put(6, &[1]).unwrap(), "the same again");
        assert!(!put(7, &[1]).unwrap());
        assert!(matches!(put(6, &[]), Err(MarbleError::Stranger(_))));
        let kept = fs::read(settings.directory.join("crl.pem")).unwrap();
        assert!(!pem::parse_many(kept).unwrap().is_empty());
        assert!(put(8, &[]).unwrap(), "it has expired");
    }

    #[test]
    fn lists_are_whole_while_two_put_them() {
        let place = tempfile::tempdir().unwrap();
        let settings = Coordinator {
            directory: place.path().to_owned(),
            ..Coordinator::default()
        };
        let root = authority(None);
        let now = authority(Some(&root));
        let text = now.pem() + &list(&now, 5, &[1, 2, 3]);
        let lists = understood(text.as_bytes(), root.der()).unwrap();
        lists.put(&settings).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..500).for_each(|_| assert!(!lists.put(&settings).unwrap())));
            }
            for _ in 0..500 {
                let seen = fs::read_to_string(place.path().join("crl.pem")).unwrap();
                assert_eq!(seen, lists.pem());
            }
        });
    }

    #[test]
    fn each_namespace_has_its_lists() {
        assert_eq!(path("web"), "/crl");
        assert_eq!(path("team/web"), "/crl/team");
    }
}
