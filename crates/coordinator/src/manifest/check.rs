//! What must hold before a manifest is accepted.

use super::model::{Manifest, Marble, Package, Resource, Role, SealMode, SecretType, User};
use crate::json::{self, JsonError};
use rsa::pkcs8::DecodePublicKey;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("no allowed packages defined")]
    NoPackages,
    #[error("no allowed marbles defined")]
    NoMarbles,
    #[error("manifest does not contain marble package {0}")]
    MissingPackage(String),
    #[error("manifest misses TLS entry for {0}")]
    MissingTls(String),
    #[error(
        "manifest specifies both UniqueID *and* SignerID/ProductID/SecurityVersion in package {0}"
    )]
    AmbiguousPackage(String),
    #[error("manifest misses value for {field} in package {package}")]
    IncompletePackage {
        field: &'static str,
        package: String,
    },
    #[error("unknown seal mode: {0}")]
    SealMode(String),
    #[error("unknown feature gate: {0}")]
    FeatureGate(String),
    #[error(
        "not enough users with manifest update permissions ({have}) to meet the threshold of {need}"
    )]
    UpdateThreshold { have: usize, need: u32 },
    #[error(
        "MarbleCertificateHours and MarbleCertificateMinutes are both set: how long certificates live \
         is one of them"
    )]
    CertificateLife,
    #[error("invalid recovery threshold: if set, threshold must be at least 2")]
    RecoveryThresholdOne,
    #[error("invalid recovery threshold: {threshold} exceeds the number of recovery keys ({keys})")]
    RecoveryThreshold { threshold: u32, keys: usize },
    #[error("secret {name}: {reason}")]
    Secret { name: String, reason: String },
    #[error("TLS entry {tag}: {reason}")]
    Tls { tag: String, reason: String },
    #[error("user {name}: {reason}")]
    User { name: String, reason: String },
    #[error("role {name}: {reason}")]
    Role { name: String, reason: String },
    #[error("recovery key {name}: {reason}")]
    RecoveryKey { name: String, reason: String },
    #[error("board {name}: {reason}")]
    Board { name: String, reason: String },
    #[error("predecessor must be the SHA-256 of a manifest, 64 hex digits")]
    Predecessor,
    #[error("manifest reader {0} is no user")]
    Reader(String),
    #[error("marble {marble}: env variable {name} contains null bytes")]
    NullByte { marble: String, name: String },
    #[error("update manifest contains unupdatable values")]
    Unupdatable,
    #[error("update manifest: package {0} does not exist")]
    UnknownPackage(String),
    #[error(
        "update manifest: SecurityVersion of package {package} would go from {from} down to {to}"
    )]
    Downgrade { package: String, from: u32, to: u32 },
    #[error("{0}")]
    Template(String),
}

impl Manifest {
    /// Decodes and checks a manifest. Warnings are for people, and change nothing.
    pub fn parse(bytes: &[u8]) -> Result<(Manifest, Vec<String>), ManifestError> {
        let manifest: Manifest = json::from_slice(bytes)?;
        let warnings = check(&manifest)?;
        Ok((manifest, warnings))
    }

    /// The users who may take part in updating the manifest.
    pub fn updaters(&self) -> BTreeSet<String> {
        self.users
            .iter()
            .filter(|(_, user)| {
                self.permissions(user).any(|(resource, _, action)| {
                    resource == Resource::Manifest && action.eq_ignore_ascii_case("UpdateManifest")
                })
            })
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Everything a user may do: resource, its name, action.
    pub fn permissions<'a>(
        &'a self,
        user: &'a User,
    ) -> impl Iterator<Item = (Resource, &'a str, &'a str)> {
        user.roles
            .iter()
            .filter_map(|role| self.roles.get(role))
            .filter_map(|role| Some((Resource::parse(&role.resource_type)?, role)))
            .flat_map(|(resource, role)| {
                let names: Vec<&str> = if resource == Resource::Manifest {
                    vec![""]
                } else {
                    role.resource_names.iter().map(String::as_str).collect()
                };
                names.into_iter().flat_map(move |name| {
                    role.actions
                        .iter()
                        .map(move |action| (resource, name, action.as_str()))
                })
            })
    }

    pub fn may(&self, user: &User, resource: Resource, name: &str, action: &str) -> bool {
        self.permissions(user)
            .any(|(r, n, a)| r == resource && n == name && a.eq_ignore_ascii_case(action))
    }

    pub fn seal_mode(&self) -> SealMode {
        SealMode::parse(&self.config.seal_mode).unwrap_or(SealMode::ProductKey)
    }

    /// How many acknowledgements an update needs.
    pub fn update_threshold(&self) -> usize {
        match self.config.update_threshold as usize {
            0 => self.updaters().len(),
            threshold => threshold,
        }
    }
}

/// Checks a decoded manifest; returns warnings.
pub fn check(manifest: &Manifest) -> Result<Vec<String>, ManifestError> {
    let mut warnings = Vec::new();
    if manifest.packages.is_empty() {
        return Err(ManifestError::NoPackages);
    }
    if manifest.marbles.is_empty() {
        return Err(ManifestError::NoMarbles);
    }
    for (name, marble) in &manifest.marbles {
        check_marble(manifest, name, marble, &mut warnings)?;
    }
    for (name, spec) in &manifest.secrets {
        check_secret(name, spec)?;
    }
    check_tls(manifest)?;
    check_users(&manifest.users, &manifest.roles)?;
    for (name, role) in &manifest.roles {
        check_role(manifest, name, role)?;
    }
    check_recovery_keys(manifest)?;
    check_boards(manifest)?;
    check_config(manifest)?;
    Ok(warnings)
}

fn check_marble(
    manifest: &Manifest,
    name: &str,
    marble: &Marble,
    warnings: &mut Vec<String>,
) -> Result<(), ManifestError> {
    let package = manifest
        .packages
        .get(&marble.package)
        .ok_or_else(|| ManifestError::MissingPackage(marble.package.clone()))?;
    match check_package(&marble.package, package) {
        Err(problem) if package.debug => warnings.push(problem.to_string()),
        other => other?,
    }
    for tag in &marble.tls {
        if !manifest.tls.contains_key(tag) {
            return Err(ManifestError::MissingTls(tag.clone()));
        }
    }
    for (variable, value) in &marble.parameters.env {
        if value.data.contains(&0) || variable.contains('\0') {
            return Err(ManifestError::NullByte {
                marble: name.to_owned(),
                name: variable.clone(),
            });
        }
    }
    Ok(())
}

/// Either MRENCLAVE, or all that a signer says.
fn check_package(name: &str, package: &Package) -> Result<(), ManifestError> {
    if !package.unique_id.is_empty() || !package.unique_ids.is_empty() {
        let also = !package.signer_id.is_empty()
            || package.product_id.is_some()
            || package.security_version.is_some();
        return match also {
            true => Err(ManifestError::AmbiguousPackage(name.to_owned())),
            false => Ok(()),
        };
    }
    let missing = if package.signer_id.is_empty() {
        "SignerID"
    } else if package.product_id.is_none() {
        "ProductID"
    } else if package.security_version.is_none() {
        "SecurityVersion"
    } else {
        return Ok(());
    };
    Err(ManifestError::IncompletePackage {
        field: missing,
        package: name.to_owned(),
    })
}

fn check_secret(name: &str, spec: &super::SecretSpec) -> Result<(), ManifestError> {
    let wrong = |reason: String| {
        Err(ManifestError::Secret {
            name: name.to_owned(),
            reason,
        })
    };
    let Some(kind) = SecretType::parse(&spec.kind) else {
        return wrong(format!("unknown type: {}", spec.kind));
    };
    if let Some(import) = &spec.import {
        if spec.user_defined || !spec.export.is_empty() || !spec.read_boards.is_empty() {
            return wrong(
                "it is imported: UserDefined, Export and ReadBoards are its owner's to say"
                    .to_owned(),
            );
        }
        if import.secret.is_empty() {
            return wrong("Import needs the Secret's name".to_owned());
        }
        return Ok(());
    }
    if !spec.export.is_empty() && !spec.shared && !spec.user_defined {
        return wrong(
            "only Shared or UserDefined secrets can be exported: others differ for each marble"
                .to_owned(),
        );
    }
    if spec.hidden && !spec.read_boards.is_empty() {
        return wrong("Hidden secrets are read by nobody: no board can allow it".to_owned());
    }
    // Larger keys serve nobody, and making them would stall the coordinator.
    const MOST_BITS: u32 = 1 << 20;
    match kind {
        SecretType::SymmetricKey if spec.size == 0 || !spec.size.is_multiple_of(8) => {
            return wrong(format!(
                "invalid size: {}, must be a non-zero multiple of 8",
                spec.size
            ));
        }
        SecretType::SymmetricKey if spec.size > MOST_BITS => {
            return wrong(format!(
                "invalid size: {}, must be at most {MOST_BITS}",
                spec.size
            ));
        }
        SecretType::CertEcdsa if !matches!(spec.size, 224 | 256 | 384 | 521) => {
            return wrong(format!(
                "invalid size: {}, must be 224, 256, 384 or 521",
                spec.size
            ));
        }
        SecretType::CertEd25519 if spec.size != 0 => {
            return wrong(format!(
                "invalid size: {}, must be 0 for ed25519",
                spec.size
            ));
        }
        SecretType::CertRsa if !spec.user_defined && !(1024..=8192).contains(&spec.size) => {
            return wrong(format!(
                "invalid size: {}, must be 1024 to 8192 bits",
                spec.size
            ));
        }
        SecretType::Plain if !spec.user_defined => {
            return wrong("type plain must be UserDefined".to_owned());
        }
        _ => {}
    }
    if let Some(template) = &spec.cert
        && template.not_after.0.is_some()
        && spec.valid_for != 0
    {
        return wrong("both Cert.NotAfter and ValidFor are set: use one of them".to_owned());
    }
    Ok(())
}

fn check_tls(manifest: &Manifest) -> Result<(), ManifestError> {
    for (tag, entry) in &manifest.tls {
        let wrong = |reason: String| {
            Err(ManifestError::Tls {
                tag: tag.clone(),
                reason,
            })
        };
        for incoming in &entry.incoming {
            if incoming.port.is_empty() {
                return wrong("incoming entry has no Port".to_owned());
            }
            if incoming.cert.is_empty() == incoming.disable_client_auth {
                return wrong(
                    "Cert and DisableClientAuth go together: set both or neither".to_owned(),
                );
            }
            if !incoming.cert.is_empty() && !manifest.secrets.contains_key(&incoming.cert) {
                return wrong(format!("secret {} does not exist", incoming.cert));
            }
        }
        for outgoing in &entry.outgoing {
            if outgoing.addr.is_empty() || outgoing.port.is_empty() {
                return wrong("outgoing entry needs Addr and Port".to_owned());
            }
        }
    }
    Ok(())
}

fn check_users(
    users: &BTreeMap<String, User>,
    roles: &BTreeMap<String, Role>,
) -> Result<(), ManifestError> {
    let mut seen: BTreeMap<Vec<u8>, &str> = BTreeMap::new();
    for (name, user) in users {
        let wrong = |reason: String| {
            Err(ManifestError::User {
                name: name.clone(),
                reason,
            })
        };
        let der = match certificate_der(&user.certificate) {
            Ok(der) => der,
            Err(reason) => return wrong(reason),
        };
        if let Some(other) = seen.insert(der, name) {
            return wrong(format!("has the same certificate as user {other}"));
        }
        if let Some(role) = user.roles.iter().find(|role| !roles.contains_key(*role)) {
            return wrong(format!("role {role} does not exist"));
        }
    }
    Ok(())
}

/// The DER of a PEM certificate.
pub fn certificate_der(pem: &str) -> Result<Vec<u8>, String> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
        .map_err(|_| "Certificate is not PEM".to_owned())?;
    if block.label != "CERTIFICATE" {
        return Err(format!("PEM block is a {}, not a CERTIFICATE", block.label));
    }
    x509_parser::parse_x509_certificate(&block.contents)
        .map_err(|error| format!("certificate cannot be parsed: {error}"))?;
    Ok(block.contents)
}

fn check_role(manifest: &Manifest, name: &str, role: &Role) -> Result<(), ManifestError> {
    let wrong = |reason: String| {
        Err(ManifestError::Role {
            name: name.to_owned(),
            reason,
        })
    };
    let Some(resource) = Resource::parse(&role.resource_type) else {
        return wrong(format!("unknown resource type: {}", role.resource_type));
    };
    let allowed: &[&str] = match resource {
        Resource::Packages => &["UpdateSecurityVersion"],
        Resource::Secrets => &["ReadSecret", "WriteSecret"],
        Resource::Manifest => &["UpdateManifest"],
    };
    for action in &role.actions {
        if !allowed
            .iter()
            .any(|known| known.eq_ignore_ascii_case(action))
        {
            return wrong(format!(
                "unknown action for {}: {action}",
                role.resource_type
            ));
        }
    }
    if resource == Resource::Manifest && !role.resource_names.is_empty() {
        return wrong("ResourceNames must be empty for Manifest".to_owned());
    }
    for resource_name in &role.resource_names {
        match resource {
            Resource::Packages if !manifest.packages.contains_key(resource_name) => {
                return wrong(format!("package {resource_name} does not exist"));
            }
            Resource::Secrets => {
                let Some(secret) = manifest.secrets.get(resource_name) else {
                    return wrong(format!("secret {resource_name} does not exist"));
                };
                let has =
                    |wanted: &str| role.actions.iter().any(|a| a.eq_ignore_ascii_case(wanted));
                if has("WriteSecret") && !secret.user_defined {
                    return wrong(format!(
                        "cannot write secret {resource_name}: it is not UserDefined"
                    ));
                }
                if has("ReadSecret") && (secret.hidden || secret.import.is_some()) {
                    return wrong(format!(
                        "cannot read secret {resource_name}: it is {}",
                        if secret.hidden { "Hidden" } else { "imported" }
                    ));
                }
                if has("ReadSecret") && !secret.shared && !secret.user_defined {
                    return wrong(format!(
                        "cannot read secret {resource_name}: it is neither Shared nor UserDefined"
                    ));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_recovery_keys(manifest: &Manifest) -> Result<(), ManifestError> {
    for (name, pem) in &manifest.recovery_keys {
        let wrong = |reason: &str| {
            Err(ManifestError::RecoveryKey {
                name: name.clone(),
                reason: reason.to_owned(),
            })
        };
        match recovery_key(pem) {
            Ok(_) => {}
            Err(reason) => return wrong(reason),
        }
    }
    let (threshold, keys) = (
        manifest.config.recovery_threshold,
        manifest.recovery_keys.len(),
    );
    match threshold {
        0 => Ok(()),
        1 => Err(ManifestError::RecoveryThresholdOne),
        _ if threshold as usize > keys => Err(ManifestError::RecoveryThreshold { threshold, keys }),
        // A share's x-coordinate is one byte, and zero is the secret itself.
        _ if keys > 255 => Err(ManifestError::RecoveryThreshold { threshold, keys }),
        _ => Ok(()),
    }
}

/// Parses a recovery key: PEM `PUBLIC KEY`, RSA in PKIX form.
pub fn recovery_key(pem: &str) -> Result<rsa::PublicKey, &'static str> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| "is not PEM")?;
    if block.label != "PUBLIC KEY" {
        return Err("PEM block must be a PUBLIC KEY");
    }
    let key = rsa::PublicKey::from_public_key_der(&block.contents)
        .map_err(|_| "is not an RSA public key in PKIX form")?;
    use rsa::traits::PublicKeyParts;
    match key.n().bit_width() {
        2048..=16384 => Ok(key),
        _ => Err("must have 2048 to 16384 bits"),
    }
}

fn check_boards(manifest: &Manifest) -> Result<(), ManifestError> {
    let wrong = |name: &str, reason: String| {
        Err(ManifestError::Board {
            name: name.to_owned(),
            reason,
        })
    };
    for (name, board) in &manifest.boards {
        let members: BTreeSet<&String> = board.members.iter().collect();
        if members.is_empty() || members.len() != board.members.len() {
            return wrong(name, "needs members, each of them once".to_owned());
        }
        if let Some(member) = members.iter().find(|m| !manifest.users.contains_key(**m)) {
            return wrong(name, format!("member {member} is no user"));
        }
        if board.needed() > members.len() {
            return wrong(
                name,
                format!(
                    "threshold {} exceeds its {} members",
                    board.threshold,
                    members.len()
                ),
            );
        }
    }
    let readers = manifest.secrets.values().flat_map(|spec| &spec.read_boards);
    for name in manifest.config.update_boards.iter().chain(readers) {
        if !manifest.boards.contains_key(name) {
            return wrong(name, "does not exist".to_owned());
        }
    }
    let updaters = manifest.updaters();
    for name in &manifest.config.update_boards {
        let members = &manifest.boards[name].members;
        if let Some(member) = members.iter().find(|member| !updaters.contains(*member)) {
            return wrong(name, format!("member {member} lacks UpdateManifest"));
        }
    }
    let predecessor = &manifest.config.predecessor;
    if !predecessor.is_empty() && crate::parse_sha256(predecessor).is_none() {
        return Err(ManifestError::Predecessor);
    }
    for reader in manifest.config.manifest_readers.iter().flatten() {
        if !manifest.users.contains_key(reader) {
            return Err(ManifestError::Reader(reader.clone()));
        }
    }
    Ok(())
}

fn check_config(manifest: &Manifest) -> Result<(), ManifestError> {
    let config = &manifest.config;
    if SealMode::parse(&config.seal_mode).is_none() {
        return Err(ManifestError::SealMode(config.seal_mode.clone()));
    }
    for gate in &config.feature_gates {
        if !["SignQuoteEndpoint", "MonotonicCounter", "AzureHSMSealing"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(gate))
        {
            return Err(ManifestError::FeatureGate(gate.clone()));
        }
    }
    let have = manifest.updaters().len();
    if config.marble_certificate_hours > 0 && config.marble_certificate_minutes > 0 {
        return Err(ManifestError::CertificateLife);
    }
    if config.update_threshold as usize > have {
        return Err(ManifestError::UpdateThreshold {
            have,
            need: config.update_threshold,
        });
    }
    Ok(())
}
