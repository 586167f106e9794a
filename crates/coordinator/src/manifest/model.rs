//! The manifest's structure, field by field, with the JSON names of MarbleRun.
//!
//! Fields that MarbleRun does not know are ours: it ignores them, so one manifest serves both.

use super::certificate::CertificateTemplate;
use crate::json::{Bytes, Decode, Json, JsonError, decode_struct};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Default)]
pub struct Manifest {
    pub packages: BTreeMap<String, Package>,
    pub infrastructures: BTreeMap<String, Infrastructure>,
    pub marbles: BTreeMap<String, Marble>,
    pub secrets: BTreeMap<String, SecretSpec>,
    pub users: BTreeMap<String, User>,
    pub roles: BTreeMap<String, Role>,
    /// Name to PEM.
    pub recovery_keys: BTreeMap<String, String>,
    pub tls: BTreeMap<String, TlsTag>,
    /// Ours: groups of users of whom some must agree.
    pub boards: BTreeMap<String, Board>,
    pub config: Config,
}
decode_struct!(Manifest {
    "Packages" => packages, "Infrastructures" => infrastructures, "Marbles" => marbles,
    "Secrets" => secrets, "Users" => users, "Roles" => roles,
    "RecoveryKeys" => recovery_keys, "TLS" => tls, "Boards" => boards, "Config" => config,
});

/// An enclave that may be a marble.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    pub debug: bool,
    pub unique_id: String,
    /// Ours: more MRENCLAVEs of the same package, one for each layout.
    pub unique_ids: Vec<String>,
    pub signer_id: String,
    pub product_id: Option<u64>,
    pub security_version: Option<u32>,
    pub accepted_tcb_statuses: Vec<String>,
    pub accepted_advisories: Vec<String>,
    /// Ours: accepts quotes of emulated platforms, which keep nothing secret.
    pub insecure_allow_emulated: bool,
}
decode_struct!(Package {
    "Debug" => debug, "UniqueID" => unique_id, "UniqueIDs" => unique_ids,
    "SignerID" => signer_id, "ProductID" => product_id, "SecurityVersion" => security_version,
    "AcceptedTCBStatuses" => accepted_tcb_statuses, "AcceptedAdvisories" => accepted_advisories,
    "InsecureAllowEmulated" => insecure_allow_emulated,
});

/// What a quote's platform must be. Empty fields constrain nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Infrastructure {
    pub cpu_svn: Bytes,
    pub qe_svn: Option<u16>,
    pub pce_svn: Option<u16>,
    /// The root of the platform's certificates, DER or PEM.
    pub root_ca: Bytes,
}
decode_struct!(Infrastructure {
    "CPUSVN" => cpu_svn, "QESVN" => qe_svn, "PCESVN" => pce_svn, "RootCA" => root_ca,
});

#[derive(Debug, Clone, Default)]
pub struct Marble {
    pub package: String,
    /// 0 is no limit.
    pub max_activations: u64,
    pub parameters: Parameters,
    pub tls: Vec<String>,
    pub disable_secret_binding: bool,
    /// Ours: the names a marble may ask for in its certificate; `*.` at the start stands for any
    /// labels. Absent: any name, as in MarbleRun.
    pub dns_names: Option<Vec<String>>,
    /// Ours: the addresses a marble may ask for. Absent: any.
    pub ip_addresses: Option<Vec<String>>,
}
decode_struct!(Marble {
    "Package" => package, "MaxActivations" => max_activations, "Parameters" => parameters,
    "TLS" => tls, "DisableSecretBinding" => disable_secret_binding,
    "AllowedDNSNames" => dns_names, "AllowedIPAddresses" => ip_addresses,
});

#[derive(Debug, Clone, Default)]
pub struct Parameters {
    pub files: BTreeMap<String, File>,
    pub env: BTreeMap<String, File>,
    pub argv: Vec<String>,
}
decode_struct!(Parameters { "Files" => files, "Env" => env, "Argv" => argv });

/// The content of a file or an environment variable, decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub no_templates: bool,
}

impl Decode for File {
    fn decode(&mut self, json: &Json, path: &str) -> Result<(), JsonError> {
        #[derive(Default)]
        struct Object {
            data: String,
            encoding: String,
            no_templates: bool,
        }
        decode_struct!(Object {
            "Data" => data, "Encoding" => encoding, "NoTemplates" => no_templates,
        });
        if let Json::String(text) = json {
            self.data = text.clone().into_bytes();
            return Ok(());
        }
        let mut object = Object::default();
        object.decode(json, path)?;
        let invalid = |reason: String| JsonError::Value {
            path: path.to_owned(),
            reason,
        };
        self.data = match object.encoding.to_ascii_lowercase().as_str() {
            "" | "string" => object.data.into_bytes(),
            "base64" => BASE64_STANDARD
                .decode(object.data)
                .map_err(|error| invalid(error.to_string()))?,
            "hex" => hex::decode(object.data).map_err(|error| invalid(error.to_string()))?,
            _ => {
                return Err(invalid(format!(
                    "unknown encoding type: {}",
                    object.encoding
                )));
            }
        };
        self.no_templates = object.no_templates;
        Ok(())
    }
}

/// A secret as the manifest describes it. The type stays text until it is checked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SecretSpec {
    pub kind: String,
    /// In bits.
    pub size: u32,
    pub shared: bool,
    pub user_defined: bool,
    pub cert: Option<CertificateTemplate>,
    /// In days.
    pub valid_for: u32,
    pub private: Bytes,
    pub public: Bytes,
    /// Ours: no person may ever read it.
    #[serde(default)]
    pub hidden: bool,
    /// Ours: boards that must agree before a user reads it.
    #[serde(default)]
    pub read_boards: Vec<String>,
    /// Ours: namespaces that may import it; `*` is all of them.
    #[serde(default)]
    pub export: Vec<String>,
    /// Ours: it is another namespace's.
    #[serde(default)]
    pub import: Option<Import>,
}
decode_struct!(SecretSpec {
    "Type" => kind, "Size" => size, "Shared" => shared, "UserDefined" => user_defined,
    "Cert" => cert, "ValidFor" => valid_for, "Private" => private, "Public" => public,
    "Hidden" => hidden, "ReadBoards" => read_boards, "Export" => export, "Import" => import,
});

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretType {
    SymmetricKey,
    CertRsa,
    CertEcdsa,
    CertEd25519,
    Plain,
}

impl SecretType {
    pub fn parse(name: &str) -> Option<SecretType> {
        Some(match name {
            "symmetric-key" => SecretType::SymmetricKey,
            "cert-rsa" => SecretType::CertRsa,
            "cert-ecdsa" => SecretType::CertEcdsa,
            "cert-ed25519" => SecretType::CertEd25519,
            "plain" => SecretType::Plain,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            SecretType::SymmetricKey => "symmetric-key",
            SecretType::CertRsa => "cert-rsa",
            SecretType::CertEcdsa => "cert-ecdsa",
            SecretType::CertEd25519 => "cert-ed25519",
            SecretType::Plain => "plain",
        }
    }

    pub fn is_certificate(self) -> bool {
        matches!(
            self,
            SecretType::CertRsa | SecretType::CertEcdsa | SecretType::CertEd25519
        )
    }
}

impl SecretSpec {
    /// Whether a value that was made for `old` is one for this description too. Who may read or
    /// import it may change; what has been hidden stays so.
    pub fn keeps_value_of(&self, old: &SecretSpec) -> bool {
        let value = |spec: &SecretSpec| SecretSpec {
            read_boards: Vec::new(),
            export: Vec::new(),
            ..spec.clone()
        };
        value(self) == value(old)
    }

    /// The type of a checked manifest's secret.
    pub fn secret_type(&self) -> SecretType {
        SecretType::parse(&self.kind).unwrap_or(SecretType::Plain)
    }
}

#[derive(Debug, Clone, Default)]
pub struct User {
    /// PEM.
    pub certificate: String,
    pub roles: Vec<String>,
}
decode_struct!(User { "Certificate" => certificate, "Roles" => roles });

#[derive(Debug, Clone, Default)]
pub struct Role {
    pub resource_type: String,
    pub resource_names: Vec<String>,
    pub actions: Vec<String>,
}
decode_struct!(Role {
    "ResourceType" => resource_type, "ResourceNames" => resource_names, "Actions" => actions,
});

/// Users of whom `threshold` must agree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Board {
    pub members: Vec<String>,
    /// 0: all of them.
    pub threshold: u32,
}
decode_struct!(Board { "Members" => members, "Threshold" => threshold });

impl Board {
    pub fn needed(&self) -> usize {
        match self.threshold {
            0 => self.members.len(),
            threshold => threshold as usize,
        }
    }

    /// How many agreements are missing when these users have agreed.
    pub fn missing(&self, agreed: &BTreeSet<String>) -> usize {
        let given = self.members.iter().filter(|m| agreed.contains(*m)).count();
        self.needed().saturating_sub(given)
    }
}

/// Where an imported secret comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Empty: the default namespace.
    pub namespace: String,
    pub secret: String,
}
decode_struct!(Import { "Namespace" => namespace, "Secret" => secret });

/// What a role is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    Packages,
    Secrets,
    Manifest,
}

impl Resource {
    pub fn parse(name: &str) -> Option<Resource> {
        Some(match name {
            "Packages" => Resource::Packages,
            "Secrets" => Resource::Secrets,
            "Manifest" => Resource::Manifest,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Default)]
pub struct TlsTag {
    pub incoming: Vec<TlsIncoming>,
    pub outgoing: Vec<TlsOutgoing>,
}
decode_struct!(TlsTag { "Incoming" => incoming, "Outgoing" => outgoing });

#[derive(Debug, Clone, Default)]
pub struct TlsIncoming {
    pub port: String,
    /// A secret whose certificate is served instead of the marble's.
    pub cert: String,
    pub disable_client_auth: bool,
}
decode_struct!(TlsIncoming {
    "Port" => port, "Cert" => cert, "DisableClientAuth" => disable_client_auth,
});

#[derive(Debug, Clone, Default)]
pub struct TlsOutgoing {
    pub addr: String,
    pub port: String,
}
decode_struct!(TlsOutgoing { "Addr" => addr, "Port" => port });

#[derive(Debug, Clone, Default)]
pub struct Config {
    pub seal_mode: String,
    pub feature_gates: Vec<String>,
    pub update_threshold: u32,
    pub recovery_threshold: u32,
    pub rotate_root_secret: bool,
    /// Ours: how long a marble's certificate lives; 0 is the default of 24 hours.
    pub marble_certificate_hours: u32,
    /// Ours: the same in minutes.
    pub marble_certificate_minutes: u32,
    /// Ours: boards that must agree to an update, each of them.
    pub update_boards: Vec<String>,
    /// Ours: SHA-256 of the manifest that this one replaces.
    pub predecessor: String,
    /// Ours: what replaces this manifest must name it as its predecessor.
    pub require_predecessor: bool,
    /// Ours: the users who may read the manifest and its logs. Absent: anyone, as in MarbleRun.
    pub manifest_readers: Option<Vec<String>>,
}
decode_struct!(Config {
    "SealMode" => seal_mode, "FeatureGates" => feature_gates,
    "UpdateThreshold" => update_threshold, "RecoveryThreshold" => recovery_threshold,
    "RotateRootSecret" => rotate_root_secret,
    "MarbleCertificateHours" => marble_certificate_hours,
    "MarbleCertificateMinutes" => marble_certificate_minutes,
    "UpdateBoards" => update_boards, "Predecessor" => predecessor,
    "RequirePredecessor" => require_predecessor, "ManifestReaders" => manifest_readers,
});

impl Config {
    pub fn has_gate(&self, name: &str) -> bool {
        self.feature_gates
            .iter()
            .any(|gate| gate.eq_ignore_ascii_case(name))
    }
}

/// Whose key seals the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SealMode {
    /// The signer's: newer versions of the coordinator can unseal.
    ProductKey,
    /// This very enclave's.
    UniqueKey,
    /// Nothing is kept.
    Disabled,
}

impl SealMode {
    pub fn parse(name: &str) -> Option<SealMode> {
        Some(match name {
            "" | "ProductKey" => SealMode::ProductKey,
            "UniqueKey" => SealMode::UniqueKey,
            "Disabled" => SealMode::Disabled,
            _ => return None,
        })
    }
}
