//! MarbleRun manifests: ours take them as they are, so this checks, converts YAML, and says what
//! means something else here.

use super::{Imported, Taker, pretty};
use bulla_coordinator::manifest::Manifest;
use serde_json::Value;

/// What a manifest has at its top, and in each entry of a section.
const SECTIONS: &[(&str, &[&str])] = &[
    (
        "Packages",
        &[
            "Debug",
            "UniqueID",
            "SignerID",
            "ProductID",
            "SecurityVersion",
            "AcceptedTCBStatuses",
            "AcceptedAdvisories",
        ],
    ),
    ("Infrastructures", &["CPUSVN", "QESVN", "PCESVN", "RootCA"]),
    (
        "Marbles",
        &[
            "Package",
            "MaxActivations",
            "Parameters",
            "TLS",
            "DisableSecretBinding",
        ],
    ),
    (
        "Secrets",
        &[
            "Type",
            "Size",
            "Shared",
            "UserDefined",
            "Cert",
            "ValidFor",
            "Private",
            "Public",
        ],
    ),
    ("Users", &["Certificate", "Roles"]),
    ("Roles", &["ResourceType", "ResourceNames", "Actions"]),
    ("TLS", &["Incoming", "Outgoing"]),
];
const CONFIG: &[&str] = &[
    "SealMode",
    "FeatureGates",
    "UpdateThreshold",
    "RecoveryThreshold",
    "RotateRootSecret",
];

pub fn import(manifest: &Value) -> Result<Imported, String> {
    let mut notes = Vec::new();
    let text = pretty(manifest)?;
    let (_, warnings) = Manifest::parse(text.as_bytes())
        .map_err(|error| format!("not a valid manifest: {error}"))?;
    notes.extend(warnings);
    let mut top = Taker::new("", &folded(manifest)).ok_or("not an object")?;
    for (section, known) in SECTIONS {
        let Some(section) = top.below(&section.to_lowercase()) else {
            continue;
        };
        let path = section.path.clone();
        for (name, entry) in section.entries() {
            if let Some(mut entry) = Taker::new(&format!("{path}.{name}"), &folded(&entry)) {
                known.iter().for_each(|key| {
                    entry.take(&key.to_lowercase());
                });
                entry.rest(&mut notes);
            }
        }
    }
    let config = top.take("config").map(|config| folded(&config));
    if let Some(mut config) = config.and_then(|config| Taker::new("config", &config)) {
        let gates = config.list("featuregates");
        if gates.iter().any(|gate| {
            gate.as_str()
                .is_some_and(|gate| gate.eq_ignore_ascii_case("AzureHSMSealing"))
        }) {
            notes.push(
                "Config.FeatureGates: AzureHSMSealing is accepted and does nothing: the data key \
                 is sealed to the enclave and shared among the recovery keys"
                    .to_owned(),
            );
        }
        CONFIG.iter().for_each(|key| {
            config.take(&key.to_lowercase());
        });
        config.rest(&mut notes);
    }
    top.take("recoverykeys");
    top.rest(&mut notes);
    explain(manifest, &mut notes);
    Ok(Imported { text, notes })
}

/// Go's decoder takes keys in any case.
fn folded(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.to_lowercase(), value.clone()))
            .collect(),
        other => other.clone(),
    }
}

/// What is the same word for something else.
fn explain(manifest: &Value, notes: &mut Vec<String>) {
    let manifest = folded(manifest);
    let entries = |section: &str| manifest[section].as_object().cloned().unwrap_or_default();
    for (name, package) in entries("packages") {
        let package = folded(&package);
        if package["uniqueid"]
            .as_str()
            .is_some_and(|id| !id.is_empty())
        {
            notes.push(format!(
                "Packages.{name}.UniqueID: is another runtime's enclave; put what `bulla measure` \
                 prints for the image (UniqueIDs takes one for each layout)"
            ));
        }
        if package["signerid"]
            .as_str()
            .is_some_and(|id| !id.is_empty())
        {
            notes.push(format!(
                "Packages.{name}.SignerID: stays if the image is signed with the same key \
                 (`bulla build --sign-key`); product_id and security_version are bulla.toml's"
            ));
        }
    }
    for name in entries("infrastructures").keys() {
        notes.push(format!(
            "Infrastructures.{name}: is enforced here; MarbleRun ignores it"
        ));
    }
    for (name, marble) in entries("marbles") {
        let marble = folded(&marble);
        notes.push(format!(
            "Marbles.{name}: may have any name in its certificate; limit it with AllowedDNSNames"
        ));
        if marble["tls"]
            .as_array()
            .is_some_and(|tags| !tags.is_empty())
        {
            notes.push(format!(
                "Marbles.{name}.TLS: is handed to the marble as MARBLE_TTLS_CONFIG; the runtime \
                 does not wrap its sockets by it"
            ));
        }
    }
}
