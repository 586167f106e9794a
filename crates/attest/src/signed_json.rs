//! `{"name": {…}, "signature": "hex"}`: JSON that is signed as it stands, so its exact text counts.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// The object's exact text, and the signature.
pub fn split(bytes: &[u8], name: &str) -> Result<(String, Vec<u8>), String> {
    let fields: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let field = |name: &str| {
        fields
            .get(name)
            .ok_or_else(|| format!("the field {name} is missing"))
    };
    let text = field(name)?.get().to_string();
    let signature: String =
        serde_json::from_str(field("signature")?.get()).map_err(|error| error.to_string())?;
    let signature = hex::decode(&signature).map_err(|error| error.to_string())?;
    Ok((text, signature))
}
