//! JSON as Go's `encoding/json` reads it into a structure.
//!
//! Manifests were written for a Go program, and its habits are part of the format: keys match
//! without regard to case, unknown keys are ignored, `null` leaves a plain value alone and empties
//! a map, list or pointer, a repeated key is decoded again onto what is there (so the last scalar
//! wins and maps merge), and byte strings are base64 text or arrays of numbers.
//!
//! [`Decode::decode`] works *onto* a value for exactly that reason.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// A JSON value that keeps the order of keys, and repeated ones.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// Why a document cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    #[error("invalid JSON: {0}")]
    Syntax(String),
    #[error("json: cannot unmarshal {found} into field {path} of type {wanted}")]
    Type {
        path: String,
        found: &'static str,
        wanted: &'static str,
    },
    #[error("{path}: {reason}")]
    Value { path: String, reason: String },
}

impl Json {
    /// Parses one document; bytes that are not UTF-8 become U+FFFD, as in Go.
    pub fn parse(bytes: &[u8]) -> Result<Json, JsonError> {
        serde_json::from_str(&String::from_utf8_lossy(bytes))
            .map_err(|error| JsonError::Syntax(error.to_string()))
    }

    fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "bool",
            Json::Number(_) => "number",
            Json::String(_) => "string",
            Json::Array(_) => "array",
            Json::Object(_) => "object",
        }
    }

    fn mismatch(&self, path: &str, wanted: &'static str) -> JsonError {
        JsonError::Type {
            path: path.to_owned(),
            found: self.kind(),
            wanted,
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        struct AnyJson;
        impl<'de> Visitor<'de> for AnyJson {
            type Value = Json;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Number(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Number(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(serde_json::Number::from_f64(value).map_or(Json::Null, Json::Number))
            }
            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::String(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Json::Array(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Json::Object(entries))
            }
        }
        deserializer.deserialize_any(AnyJson)
    }
}

/// A byte string: base64 text in JSON.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl serde::Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD
            .decode(text)
            .map(Bytes)
            .map_err(serde::de::Error::custom)
    }
}

/// Decodes a JSON value onto an existing one, by Go's rules.
pub trait Decode {
    fn decode(&mut self, json: &Json, path: &str) -> Result<(), JsonError>;
}

/// Decodes a whole document onto a default value.
pub fn from_slice<T: Decode + Default>(bytes: &[u8]) -> Result<T, JsonError> {
    let mut value = T::default();
    value.decode(&Json::parse(bytes)?, "")?;
    Ok(value)
}

impl Decode for bool {
    fn decode(&mut self, json: &Json, path: &str) -> Result<(), JsonError> {
        match json {
            Json::Null => Ok(()),
            Json::Bool(value) => {
                *self = *value;
                Ok(())
            }
            other => Err(other.mismatch(path, "bool")),
        }
    }
}

impl Decode for String {
    fn decode(&mut self, json: &Json, path: &str) -> Result<(), JsonError> {
        match json {
            Json::Null => Ok(()),
            Json::String(value) => {
                value.clone_into(self);
                Ok(())
            }
            other => Err(other.mismatch(path, "string")),
        }
    }
}

macro_rules! decode_integer {
    ($($type:ident),*) => {$(
        impl Decode for $type {
            fn decode(&mut self, json: &Json, path: &str) -> Result<(), JsonError> {
                match json {
                    Json::Null => Ok(()),
                    Json::Number(number) => {
                        let value = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
                        *self = value
                            .and_then(|value| $type::try_from(value).ok())
                            .ok_or_else(|| json.mismatch(path, stringify!($type)))?;
                        Ok(())
                    }
                    other => Err(other.mismatch(path, stringify!($type))),
                }
            }
        }
    )*};
}
decode_integer!(u8, u16, u32, u64, i64);

impl Decode for Bytes {
    fn decode(&mut self, json: &Json, path: &str) -> Result<(), JsonError> {
        match json {
            Json::Null => self.0.clear(),
            Json::String(text) => {
                // Go's decoder skips line breaks in base64.
                let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
                self.0 = BASE64_STANDARD
                    .decode(text)
                    .map_err(|error| JsonError::Value {
                        path: path.to_owned(),
                        reason: format!("illegal base64 data: {error}"),
                    })?;
            }
            Json::Array(items) => {
                let mut bytes = Vec::with_capacity(items.len());
                for item in items {
                    let mut byte = 0u8;
                    byte.decode(item, path)?;
                    bytes.push(byte);
                }
                self.0 = bytes;
            }
            other => return Err(other.mismatch(path, "[]uint8")),
        }
        Ok(())
    }
}

/// A Go pointer.
impl<T: Decode + Default> Decode for Option<T> {
    fn decode(&mut self, json: &Json, path: &str) -> Result<(), JsonError> {
        if *json == Json::Null {
            *self = None;
            return Ok(());
        }
        self.get_or_insert_with(T::default).decode(json, path)
    }
}

/// A Go slice.
impl<T: Decode + Default> Decode for Vec<T> {
    fn decode(&mut self, json: &Json, path: &str) -> Result<(), JsonError> {
        match json {
            Json::Null => self.clear(),
            Json::Array(items) => {
                self.clear();
                for (index, item) in items.iter().enumerate() {
                    let mut value = T::default();
                    value.decode(item, &format!("{path}[{index}]"))?;
                    self.push(value);
                }
            }
            other => return Err(other.mismatch(path, "array")),
        }
        Ok(())
    }
}

/// A Go map: keys keep their case, entries of a repeated map merge, elements start from zero.
impl<T: Decode + Default> Decode for BTreeMap<String, T> {
    fn decode(&mut self, json: &Json, path: &str) -> Result<(), JsonError> {
        match json {
            Json::Null => self.clear(),
            Json::Object(entries) => {
                for (key, item) in entries {
                    let mut value = T::default();
                    value.decode(item, &format!("{path}.{key}"))?;
                    self.insert(key.clone(), value);
                }
            }
            other => return Err(other.mismatch(path, "map")),
        }
        Ok(())
    }
}

/// A structure's fields by their JSON names; what [`decode_struct!`](crate::json::decode_struct)
/// expands to.
pub fn decode_fields(
    json: &Json,
    path: &str,
    names: &[&str],
    mut field: impl FnMut(usize, &Json, &str) -> Result<(), JsonError>,
) -> Result<(), JsonError> {
    let entries = match json {
        Json::Null => return Ok(()),
        Json::Object(entries) => entries,
        other => return Err(other.mismatch(path, "object")),
    };
    for (key, value) in entries {
        let found = names
            .iter()
            .position(|name| name == key)
            .or_else(|| names.iter().position(|name| fold(name) == fold(key)));
        if let Some(index) = found {
            let path = if path.is_empty() {
                names[index].to_owned()
            } else {
                format!("{path}.{}", names[index])
            };
            field(index, value, &path)?;
        }
    }
    Ok(())
}

/// Go's case folding of keys: ASCII letters, and the two other characters that fold to them.
fn fold(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '\u{212A}' => 'k',
            '\u{17F}' => 's',
            other => other.to_ascii_lowercase(),
        })
        .collect()
}

/// Implements [`Decode`] for a structure: `decode_struct!(Type { "JsonName" => field, … })`.
macro_rules! decode_struct {
    ($type:ty { $($name:literal => $field:ident),* $(,)? }) => {
        impl $crate::json::Decode for $type {
            fn decode(
                &mut self,
                json: &$crate::json::Json,
                path: &str,
            ) -> Result<(), $crate::json::JsonError> {
                const NAMES: &[&str] = &[$($name),*];
                $crate::json::decode_fields(json, path, NAMES, |index, value, path| {
                    $(if NAMES[index] == $name {
                        return $crate::json::Decode::decode(&mut self.$field, value, path);
                    })*
                    Ok(())
                })
            }
        }
    };
}
pub(crate) use decode_struct;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Sample {
        debug: bool,
        count: u32,
        product: Option<u64>,
        name: String,
        data: Bytes,
        map: BTreeMap<String, u32>,
        list: Vec<String>,
    }
    decode_struct!(Sample {
        "Debug" => debug, "Count" => count, "ProductID" => product, "Name" => name,
        "Data" => data, "Map" => map, "List" => list,
    });

    fn sample(text: &str) -> Result<Sample, JsonError> {
        from_slice(text.as_bytes())
    }

    #[test]
    fn keys_fold_unknown_ones_are_ignored_and_null_is_fine() {
        let value = sample(
            r#"{"dEbUg":true,"productid":7,"other":{"x":[1]},"Map":null,"list":null,"Name":null}"#,
        )
        .unwrap();
        assert!(value.debug);
        assert_eq!(value.product, Some(7));
        assert_eq!(sample("null").unwrap(), Sample::default());
        assert_eq!(
            sample(r#"{"ProductID":7,"ProductID":null}"#)
                .unwrap()
                .product,
            None
        );
    }

    #[test]
    fn the_last_duplicate_wins_and_maps_merge() {
        let value =
            sample(r#"{"Count":1,"count":2,"Map":{"a":1,"b":1},"map":{"b":2},"List":["x","y"],"LIST":["z"]}"#)
                .unwrap();
        assert_eq!(value.count, 2);
        assert_eq!(value.map["a"], 1);
        assert_eq!(value.map["b"], 2);
        assert_eq!(value.list, ["z"]);
    }

    #[test]
    fn bytes_are_base64_or_numbers() {
        assert_eq!(sample(r#"{"Data":"AQI="}"#).unwrap().data.0, [1, 2]);
        assert_eq!(sample(r#"{"Data":[1,2,255]}"#).unwrap().data.0, [1, 2, 255]);
        assert!(sample(r#"{"Data":[256]}"#).is_err());
        assert!(sample(r#"{"Data":"?"}"#).is_err());
    }

    #[test]
    fn wrong_types_are_refused_with_the_field() {
        for (text, field) in [
            (r#"{"Count":-1}"#, "Count"),
            (r#"{"Count":1.5}"#, "Count"),
            (r#"{"Count":"1"}"#, "Count"),
            (r#"{"Name":1}"#, "Name"),
            (r#"{"Map":[]}"#, "Map"),
            (r#"{"List":{}}"#, "List"),
            (r#"{"Debug":"true"}"#, "Debug"),
        ] {
            let error = sample(text).unwrap_err().to_string();
            assert!(error.contains(field), "{text}: {error}");
        }
        assert!(sample("{").is_err());
        assert!(sample("[]").is_err());
        assert!(sample("{} {}").is_err());
    }
}
