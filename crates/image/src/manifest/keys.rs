//! The JSON Schema of the manifest, and the list of its keys, taken from there.

use super::types::Manifest;
use serde_json::Value;

/// A key of the manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// `memory`, `arguments.mode`, `mounts[].target`, `environment.NAME`.
    pub path: String,
    /// What it means, in one paragraph.
    pub description: String,
    /// Its default as TOML; `None` where the image or the layout decides.
    pub default: Option<String>,
}

/// The JSON Schema (draft 2020-12).
pub fn schema() -> Value {
    schemars::schema_for!(Manifest).to_value()
}

/// All keys, in the order in which the schema has them.
pub fn keys() -> Vec<Key> {
    let schema = schema();
    let mut keys = Vec::new();
    collect(&schema, &schema, "", &mut keys);
    keys
}

/// The schema that a `$ref` (or the first of its alternatives that is not null) stands for.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(name) = schema["$ref"].as_str() {
        let target = root.pointer(name.trim_start_matches('#'));
        return target.map_or(schema, |target| resolve(root, target));
    }
    let alternatives = schema["anyOf"].as_array().into_iter().flatten();
    let mut objects = alternatives.map(|alternative| resolve(root, alternative));
    objects
        .find(|found| found["properties"].is_object())
        .unwrap_or(schema)
}

fn collect(root: &Value, schema: &Value, prefix: &str, keys: &mut Vec<Key>) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    for (name, property) in properties {
        let path = format!("{prefix}{name}");
        let default = property
            .get("default")
            .or_else(|| resolve(root, property).get("default"));
        let default = default.filter(|value| !value.is_null() && !value.is_object());
        keys.push(Key {
            description: description(root, property),
            default: default.and_then(toml_of),
            path: path.clone(),
        });
        let inner = resolve(root, property);
        let items = resolve(root, &inner["items"]);
        let named = resolve(root, &inner["additionalProperties"]);
        for (schema, suffix) in [(inner, "."), (items, "[]."), (named, ".NAME.")] {
            collect(root, schema, &format!("{path}{suffix}"), keys);
        }
    }
}

fn description(root: &Value, property: &Value) -> String {
    let text = property["description"].as_str();
    let text = text.or_else(|| resolve(root, property)["description"].as_str());
    text.unwrap_or_default().replace('\n', " ")
}

fn toml_of(value: &Value) -> Option<String> {
    toml::Value::try_from(value)
        .ok()
        .map(|value| value.to_string())
}

/// The name out of `known` that was probably meant by `name`.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rated = known.map(|known| (strsim::jaro_winkler(name, known), known));
    let best = rated.max_by(|one, other| one.0.total_cmp(&other.0));
    best.filter(|(likeness, _)| *likeness > 0.75)
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_documented() {
        let keys = keys();
        for key in &keys {
            assert!(
                key.description.len() > 10,
                "{} has no description",
                key.path
            );
        }
        let find = |path: &str| keys.iter().find(|key| key.path == path).cloned();
        for path in [
            "entrypoint",
            "arguments.mode",
            "arguments.patterns",
            "environment",
            "environment.NAME.secret",
            "network.resolver",
            "cpu.features",
            "mounts[].type",
            "memory",
            "threads",
            "insecure_debug",
        ] {
            assert!(find(path).is_some(), "{path} is missing: {keys:#?}");
        }
        assert_eq!(
            find("arguments.mode").unwrap().default.as_deref(),
            Some("\"locked\"")
        );
        assert_eq!(
            find("network.hostname").unwrap().default.as_deref(),
            Some("\"bulla\"")
        );
        assert_eq!(find("product_id").unwrap().default.as_deref(), Some("0"));
    }
}
