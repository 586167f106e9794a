//! A marble proves what it is, and gets what the manifest says it gets.
//!
//! The costly part, verifying the quote, holds no lock; the budget is taken last, together with the
//! commit that makes it durable. A refused marble costs nothing of the budget.

use super::live::Live;
use super::tables::{Instance, Leaf, activations_key, instance_key};
use super::{Coordinator, Error};
use crate::manifest::{File, Manifest, Marble, Subject};
use crate::pki::MarbleLeaf;
use crate::quote::{self, Evidence};
use crate::secrets::{Owner, Secret};
use crate::store::Batch;
use crate::template::{Data, Functions, Reserved, render};
use crate::x509::{self, pem};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use uuid::Uuid;
use x509_parser::prelude::FromDer;

const MOST_NAMES: usize = 100;
/// A marble that restarts every few minutes has some hundred certificates in a day.
const MOST_LEAVES: usize = 500;

pub struct ActivationRequest<'a> {
    pub quote: &'a [u8],
    /// DER.
    pub csr: &'a [u8],
    pub marble_type: &'a str,
    pub uuid: &'a str,
    /// DER of the client certificate of the connection.
    pub certificate: Option<&'a [u8]>,
}

#[derive(Default)]
pub struct Parameters {
    pub files: BTreeMap<String, Vec<u8>>,
    pub env: BTreeMap<String, Vec<u8>>,
    pub argv: Vec<String>,
}

impl Drop for Parameters {
    fn drop(&mut self) {
        use zeroize::Zeroize;
        self.files.values_mut().for_each(Zeroize::zeroize);
        self.env.values_mut().for_each(Zeroize::zeroize);
    }
}

/// By the gRPC code that it is answered with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActivationError {
    #[error("cannot accept marbles in current state")]
    State,
    #[error("{0}")]
    Unauthenticated(String),
    #[error("marble verification failed: {0}")]
    Denied(String),
    #[error("{0}")]
    Invalid(String),
    /// Another replica was faster: to be tried again.
    #[error("another replica changed the state at the same time: try again")]
    Conflict,
    #[error("{0}")]
    Internal(String),
}

impl From<Error> for ActivationError {
    fn from(error: Error) -> ActivationError {
        ActivationError::Internal(error.to_string())
    }
}

impl Coordinator {
    pub async fn activate(
        &self,
        request: ActivationRequest<'_>,
    ) -> Result<Parameters, ActivationError> {
        let result = self.try_activate(&request).await;
        // Labels are names that are known, not what a stranger sent.
        let known = self
            .live()
            .is_ok_and(|live| live.manifest.marbles.contains_key(request.marble_type));
        let uuid = Uuid::parse_str(request.uuid).map_or_else(|_| String::new(), |u| u.to_string());
        self.events.activation(
            if known { request.marble_type } else { "" },
            if known { &uuid } else { "" },
            result.is_ok(),
        );
        result
    }

    async fn try_activate(
        &self,
        request: &ActivationRequest<'_>,
    ) -> Result<Parameters, ActivationError> {
        // Another replica may change what is asked of the marble while it is being looked at.
        for _ in 0..super::replicas::ATTEMPTS {
            let live = self.live().map_err(|_| ActivationError::State)?;
            if let Some(parameters) = self.activate_under(&live, request).await? {
                return Ok(parameters);
            }
        }
        Err(ActivationError::Conflict)
    }

    /// None: what is in force has changed meanwhile.
    async fn activate_under(
        &self,
        live: &Arc<Live>,
        request: &ActivationRequest<'_>,
    ) -> Result<Option<Parameters>, ActivationError> {
        let certificate = request.certificate.ok_or_else(|| {
            ActivationError::Unauthenticated("couldn't get marble TLS certificate".to_owned())
        })?;
        let marble = live
            .manifest
            .marbles
            .get(request.marble_type)
            .ok_or_else(|| ActivationError::Denied("unknown marble type requested".to_owned()))?;
        let evidence = self.verified(live, marble, request, certificate)?;
        let uuid = Uuid::parse_str(request.uuid)
            .map_err(|error| ActivationError::Invalid(format!("invalid UUID: {error}")))?;
        if live.core.revoked.marbles.contains(&uuid.to_string()) {
            return Err(ActivationError::Denied("this marble is revoked".to_owned()));
        }
        let imports = self.imports(live)?;
        let (parameters, mut leaf) = parameters(
            live,
            marble,
            request.marble_type,
            uuid,
            request.csr,
            imports,
        )?;
        leaf.enclave = hex::encode(evidence.mr_enclave);
        // Who shows the certificate of an earlier activation is no further instance.
        let known = live.known_marble(certificate);
        let budget = match known == Some((request.marble_type.to_owned(), uuid)) {
            true => Budget::Renewal,
            false => Budget::Takes {
                most: marble.max_activations,
            },
        };
        let package = &marble.package;
        let activated = |previous: Option<&Instance>| {
            Instance::activated(
                previous,
                request.marble_type,
                package,
                &evidence.platform,
                leaf.clone(),
            )
        };
        for _ in 0..super::replicas::ATTEMPTS {
            let taken = self
                .take_budget(live, budget, request.marble_type, uuid, activated)
                .await;
            match taken {
                Err(ActivationError::Conflict) => self.refresh().await?,
                other => return other.map(|()| Some(parameters)),
            }
            if !self.live().is_ok_and(|now| Arc::ptr_eq(&now, live)) {
                return Ok(None);
            }
        }
        Err(ActivationError::Conflict)
    }

    /// The quote is of the marble's package, and made for this connection.
    fn verified(
        &self,
        live: &Live,
        marble: &Marble,
        request: &ActivationRequest<'_>,
        certificate: &[u8],
    ) -> Result<Evidence, ActivationError> {
        let package = live
            .manifest
            .packages
            .get(&marble.package)
            .ok_or_else(|| ActivationError::Denied("undefined package".to_owned()))?;
        if live.core.revoked.packages.contains(&marble.package) {
            return Err(ActivationError::Denied(format!(
                "package {} is revoked",
                marble.package
            )));
        }
        let evidence = quote::strip_oe_header(request.quote)
            .and_then(|quote| self.verifier.verify(quote))
            .map_err(|reason| ActivationError::Denied(format!("invalid quote: {reason}")))?;
        let hash = Sha256::digest(certificate);
        if !bool::from(evidence.report_data[..32].ct_eq(hash.as_slice())) {
            return Err(ActivationError::Denied(
                "invalid quote: it was not made for the certificate of this connection".to_owned(),
            ));
        }
        quote::matches(&evidence, package, &live.manifest.infrastructures)
            .map_err(|reason| ActivationError::Denied(format!("invalid quote: {reason}")))?;
        let enclave = hex::encode(evidence.mr_enclave);
        if live.core.revoked.enclaves.contains(&enclave) {
            return Err(ActivationError::Denied(format!(
                "this version of package {} is revoked",
                marble.package
            )));
        }
        if live
            .core
            .revoked
            .platforms
            .contains(&evidence.platform.to_ascii_lowercase())
        {
            return Err(ActivationError::Denied(
                "this platform is revoked".to_owned(),
            ));
        }
        Ok(evidence)
    }

    async fn take_budget(
        &self,
        live: &Live,
        budget: Budget,
        marble_type: &str,
        uuid: Uuid,
        activated: impl Fn(Option<&Instance>) -> Instance,
    ) -> Result<(), ActivationError> {
        let receipt = {
            let mut activations = self.tables.activations();
            let count = activations.entry(marble_type.to_owned()).or_default();
            if let Budget::Takes { most } = budget
                && most > 0
                && *count >= most
            {
                return Err(ActivationError::Denied(
                    "reached max activations count for marble type".to_owned(),
                ));
            }
            let mut instances = self.tables.instances();
            let instance = activated(instances.get(&uuid));
            // Each must be revocable, and the list of them stays short.
            if instance.leaves.len() > MOST_LEAVES {
                return Err(ActivationError::Denied(format!(
                    "this marble has {MOST_LEAVES} certificates that have not expired"
                )));
            }
            if let Budget::Takes { .. } = budget {
                *count += 1;
            }
            let batch = Batch::default()
                .put(activations_key(marble_type), count.to_string())
                .put(instance_key(&uuid), instance.encode());
            instances.insert(uuid, instance);
            self.queue(live, self.tables.epoch(), batch)
        };
        match Self::durable(receipt).await {
            Err(Error::Conflict) => Err(ActivationError::Conflict),
            other => Ok(other?),
        }
    }
}

/// What an activation takes of `MaxActivations`.
#[derive(Clone, Copy)]
enum Budget {
    /// One; 0: there is no limit.
    Takes { most: u64 },
    /// Nothing: a marble that is known gets another certificate.
    Renewal,
}

/// Everything that one marble gets.
fn parameters(
    live: &Live,
    marble: &Marble,
    marble_type: &str,
    uuid: Uuid,
    csr: &[u8],
    imports: BTreeMap<String, Secret>,
) -> Result<(Parameters, Leaf), ActivationError> {
    let internal = |error: String| ActivationError::Internal(error);
    let request = parse_csr(csr)?;
    check_names(marble, &request)?;
    let (leaf, keys) = live
        .pki
        .issue_marble(&MarbleLeaf {
            marble_type,
            subject: &x509::name_der(&Subject {
                common_name: uuid.to_string(),
                ..request.subject
            }),
            dns_names: &request.dns_names,
            ip_addresses: &request.ip_addresses,
            life: live.leaf_life(),
        })
        .map_err(|error| internal(error.to_string()))?;
    let issued = Leaf {
        serial: x509_parser::parse_x509_certificate(&leaf)
            .map(|(_, certificate)| hex::encode(certificate.raw_serial()))
            .map_err(|error| internal(error.to_string()))?,
        until: (time::OffsetDateTime::now_utc() + live.leaf_life()).unix_timestamp(),
        enclave: String::new(),
    };
    let bound_type = if marble.disable_secret_binding {
        ""
    } else {
        marble_type
    };
    let mut secrets = all_secrets(
        live,
        &live.core.root_secret.0,
        &live.core.secrets,
        uuid,
        bound_type,
    )
    .map_err(|error| internal(error.to_string()))?;
    secrets.extend(imports);
    let previous = match &live.core.previous {
        None => BTreeMap::new(),
        Some(previous) => all_secrets(
            live,
            &previous.root_secret.0,
            &previous.secrets,
            uuid,
            bound_type,
        )
        .map_err(|error| internal(error.to_string()))?,
    };
    let reserved = Reserved {
        root_ca: Secret::of_certificate(live.pki.marble_root_cert.clone(), None),
        marble_cert: Secret::of_certificate(leaf.clone(), Some(&keys)),
        coordinator_root: Secret::of_certificate(live.pki.root_cert.clone(), None),
        coordinator_intermediate: Secret::of_certificate(live.pki.intermediate_cert.clone(), None),
    };
    let data = Data {
        secrets: &secrets,
        previous: &previous,
        reserved: &reserved,
    };
    let mut parameters = rendered(marble, &data).map_err(internal)?;
    let root_ca = pem("CERTIFICATE", &live.pki.marble_root_cert);
    let chain = pem("CERTIFICATE", &leaf) + &pem("CERTIFICATE", &live.pki.intermediate_cert);
    let key = pem("PRIVATE KEY", &keys.pkcs8);
    if !marble.tls.is_empty() {
        let config =
            ttls(&live.manifest, marble, &secrets, &root_ca, &chain, &key).map_err(internal)?;
        parameters
            .env
            .insert("MARBLE_TTLS_CONFIG".to_owned(), config.into_bytes());
    }
    for (name, value) in [
        ("MARBLE_PREDEFINED_ROOT_CA", root_ca),
        ("MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN", chain),
        ("MARBLE_PREDEFINED_PRIVATE_KEY", key),
        (
            "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA",
            pem("CERTIFICATE", &live.pki.root_cert),
        ),
    ] {
        parameters.env.insert(name.to_owned(), value.into_bytes());
    }
    Ok((parameters, issued))
}

/// Shared and user-defined secrets, and those that are this marble's own.
fn all_secrets(
    live: &Live,
    root_secret: &[u8],
    kept: &BTreeMap<String, Secret>,
    uuid: Uuid,
    marble_type: &str,
) -> Result<BTreeMap<String, Secret>, crate::secrets::SecretError> {
    let mut secrets = kept.clone();
    let owner = Owner::Marble {
        root_secret,
        uuid,
        marble_type,
    };
    for (name, spec) in &live.manifest.secrets {
        if !spec.shared && !spec.user_defined && spec.import.is_none() {
            let secret = Secret::generate(name, spec, &owner, &live.pki.intermediate)?;
            secrets.insert(name.clone(), secret);
        }
    }
    Ok(secrets)
}

fn rendered(marble: &Marble, data: &Data<'_>) -> Result<Parameters, String> {
    let mut parameters = Parameters::default();
    parameters.argv.clone_from(&marble.parameters.argv);
    let render = |file: &File, functions| match file.no_templates {
        true => Ok(file.data.clone()),
        false => render(&file.data, functions, data),
    };
    for (name, file) in &marble.parameters.files {
        let content = render(file, Functions::Files).map_err(|e| format!("file {name}: {e}"))?;
        parameters.files.insert(name.clone(), content);
    }
    for (name, value) in &marble.parameters.env {
        let content = render(value, Functions::Environment)
            .map_err(|e| format!("env variable {name}: {e}"))?;
        if content.contains(&0) {
            return Err(format!("env variable {name}: content contains null bytes"));
        }
        parameters.env.insert(name.clone(), content);
    }
    Ok(parameters)
}

/// Tries every template with stand-ins, so that a mistake shows when the manifest is set and not
/// when a marble starts.
pub(super) fn dry_run(manifest: &Manifest, known: &BTreeMap<String, Secret>) -> Result<(), Error> {
    let secrets: BTreeMap<String, Secret> = manifest
        .secrets
        .iter()
        .map(|(name, spec)| {
            // What a user has set counts as it is: `string` looks at its bytes.
            let secret = match known.get(name) {
                Some(secret) if spec.user_defined => secret.clone(),
                _ => Secret::dummy(spec),
            };
            (name.clone(), secret)
        })
        .collect();
    let certificate = || Secret {
        spec: crate::manifest::SecretSpec {
            kind: "cert-ecdsa".to_owned(),
            ..Default::default()
        },
        cert: vec![0x41],
        private: vec![0x41],
        public: vec![0x41],
    };
    let reserved = Reserved {
        root_ca: certificate(),
        marble_cert: certificate(),
        coordinator_root: certificate(),
        coordinator_intermediate: certificate(),
    };
    let data = Data {
        secrets: &secrets,
        previous: &secrets,
        reserved: &reserved,
    };
    for (name, marble) in &manifest.marbles {
        rendered(marble, &data)
            .map_err(|error| Error::Refused(format!("in Marble {name}: {error}")))?;
    }
    Ok(())
}

/// What a signing request asks for.
struct NamesRequest {
    subject: Subject,
    dns_names: Vec<String>,
    ip_addresses: Vec<IpAddr>,
}

fn parse_csr(der: &[u8]) -> Result<NamesRequest, ActivationError> {
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::extensions::{GeneralName, ParsedExtension};
    let invalid = |reason: String| ActivationError::Invalid(format!("invalid CSR: {reason}"));
    let (rest, csr) =
        X509CertificationRequest::from_der(der).map_err(|error| invalid(error.to_string()))?;
    if !rest.is_empty() {
        return Err(invalid("bytes after its end".to_owned()));
    }
    let signed = &csr.certification_request_info;
    match crate::ecdsa384::verifies_x509(
        &signed.subject_pki,
        &csr.signature_algorithm,
        signed.raw,
        &csr.signature_value.data,
    ) {
        Some(true) => {}
        Some(false) => return Err(invalid("signature: it is wrong".to_owned())),
        None => csr
            .verify_signature()
            .map_err(|error| invalid(format!("signature: {error}")))?,
    }
    let mut request = NamesRequest {
        subject: subject_of(&csr.certification_request_info.subject),
        dns_names: Vec::new(),
        ip_addresses: Vec::new(),
    };
    let names = csr
        .requested_extensions()
        .into_iter()
        .flatten()
        .filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten();
    for name in names {
        match name {
            GeneralName::DNSName(name) => request.dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => request.ip_addresses.push(match bytes.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(*bytes).unwrap_or_default()),
                16 => IpAddr::from(<[u8; 16]>::try_from(*bytes).unwrap_or_default()),
                _ => return Err(invalid("an IP address has 4 or 16 bytes".to_owned())),
            }),
            _ => {}
        }
    }
    if request.dns_names.len() + request.ip_addresses.len() > MOST_NAMES {
        return Err(invalid(format!("more than {MOST_NAMES} names")));
    }
    Ok(request)
}

fn subject_of(name: &x509_parser::x509::X509Name<'_>) -> Subject {
    use x509_parser::oid_registry as oid;
    let all = |wanted: &oid::Oid<'static>| {
        name.iter_by_oid(wanted)
            .filter_map(|value| value.as_str().ok().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    Subject {
        country: all(&oid::OID_X509_COUNTRY_NAME),
        organization: all(&oid::OID_X509_ORGANIZATION_NAME),
        organizational_unit: all(&oid::OID_X509_ORGANIZATIONAL_UNIT),
        locality: all(&oid::OID_X509_LOCALITY_NAME),
        province: all(&oid::OID_X509_STATE_OR_PROVINCE_NAME),
        street_address: all(&oid::OID_X509_STREET_ADDRESS),
        postal_code: all(&oid::OID_X509_POSTAL_CODE),
        serial_number: all(&oid::OID_X509_SERIALNUMBER).pop().unwrap_or_default(),
        common_name: String::new(),
    }
}

/// Names are limited where the manifest says so.
fn check_names(marble: &Marble, request: &NamesRequest) -> Result<(), ActivationError> {
    if let Some(allowed) = &marble.dns_names {
        for name in &request.dns_names {
            if !allowed.iter().any(|pattern| name_matches(pattern, name)) {
                return Err(ActivationError::Denied(format!(
                    "the manifest does not allow the DNS name {name}"
                )));
            }
        }
    }
    if let Some(allowed) = &marble.ip_addresses {
        for address in &request.ip_addresses {
            if !allowed.iter().any(|a| a.parse() == Ok(*address)) {
                return Err(ActivationError::Denied(format!(
                    "the manifest does not allow the address {address}"
                )));
            }
        }
    }
    Ok(())
}

fn name_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
    match pattern.strip_prefix("*.") {
        Some(suffix) => name
            .strip_suffix(suffix)
            .and_then(|front| front.strip_suffix('.'))
            .is_some_and(|front| !front.is_empty()),
        None => pattern == name,
    }
}

/// The configuration of transparent TLS.
fn ttls(
    manifest: &Manifest,
    marble: &Marble,
    secrets: &BTreeMap<String, Secret>,
    root_ca: &str,
    chain: &str,
    key: &str,
) -> Result<String, String> {
    let mut incoming = serde_json::Map::new();
    let mut outgoing = serde_json::Map::new();
    for tag in marble.tls.iter().filter_map(|tag| manifest.tls.get(tag)) {
        for entry in &tag.incoming {
            let (certificate, key) = match entry.cert.as_str() {
                "" => (chain.to_owned(), key.to_owned()),
                name => {
                    let secret = secrets
                        .get(name)
                        .ok_or_else(|| format!("secret {name} has not been set yet"))?;
                    (
                        pem("CERTIFICATE", &secret.cert),
                        pem("PRIVATE KEY", &secret.private),
                    )
                }
            };
            incoming.insert(
                format!("*:{}", entry.port),
                serde_json::json!({
                    "cacrt": root_ca, "clicrt": certificate, "clikey": key,
                    "clientAuth": !entry.disable_client_auth,
                }),
            );
        }
        for entry in &tag.outgoing {
            outgoing.insert(
                format!("{}:{}", entry.addr, entry.port),
                serde_json::json!({"cacrt": root_ca, "clicrt": chain, "clikey": key}),
            );
        }
    }
    Ok(serde_json::json!({"tls": {"Incoming": incoming, "Outgoing": outgoing}}).to_string())
}
