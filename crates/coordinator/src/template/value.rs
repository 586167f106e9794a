//! What templates compute with.

use crate::secrets::Secret;
use std::collections::BTreeMap;

/// The root of what a template sees.
pub struct Data<'a> {
    pub secrets: &'a BTreeMap<String, Secret>,
    /// The secrets of before the root secret was rotated.
    pub previous: &'a BTreeMap<String, Secret>,
    pub reserved: &'a Reserved,
}

/// `.MarbleRun`
pub struct Reserved {
    pub root_ca: Secret,
    pub marble_cert: Secret,
    pub coordinator_root: Secret,
    pub coordinator_intermediate: Secret,
}

#[derive(Clone)]
pub enum Value<'a> {
    Nil,
    /// What a map gives for a key it does not have.
    Missing,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Vec<u8>),
    Root(&'a Data<'a>),
    Previous(&'a Data<'a>),
    MarbleRun(&'a Reserved),
    Secrets(&'a BTreeMap<String, Secret>),
    Secret(&'a Secret),
    Part(Part, &'a [u8]),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Cert,
    Private,
    Public,
}

impl<'a> Value<'a> {
    /// `.name` of this value.
    pub fn field(&self, name: &str) -> Result<Value<'a>, String> {
        let missing = || Err(format!("can't evaluate field {name}"));
        Ok(match self {
            Value::Root(data) => match name {
                "Secrets" => Value::Secrets(data.secrets),
                "Previous" => Value::Previous(data),
                "MarbleRun" => Value::MarbleRun(data.reserved),
                _ => return missing(),
            },
            Value::Previous(data) => match name {
                "Secrets" => Value::Secrets(data.previous),
                _ => return missing(),
            },
            Value::MarbleRun(reserved) => Value::Secret(match name {
                "RootCA" => &reserved.root_ca,
                "MarbleCert" => &reserved.marble_cert,
                "CoordinatorRoot" => &reserved.coordinator_root,
                "CoordinatorIntermediate" => &reserved.coordinator_intermediate,
                _ => return missing(),
            }),
            Value::Secrets(secrets) => secrets.get(name).map_or(Value::Missing, Value::Secret),
            Value::Secret(secret) => match name {
                "Cert" => Value::Part(Part::Cert, &secret.cert),
                "Private" => Value::Part(Part::Private, &secret.private),
                "Public" => Value::Part(Part::Public, &secret.public),
                "Type" => Value::Text(secret.spec.kind.clone().into_bytes()),
                "Size" => Value::Int(i64::from(secret.spec.size)),
                "Shared" => Value::Bool(secret.spec.shared),
                "UserDefined" => Value::Bool(secret.spec.user_defined),
                "ValidFor" => Value::Int(i64::from(secret.spec.valid_for)),
                _ => return missing(),
            },
            Value::Nil | Value::Missing => {
                return Err(format!("nil data; no entry for key {name:?}"));
            }
            _ => return missing(),
        })
    }

    /// Go's idea of true: not the zero value.
    pub fn truth(&self) -> bool {
        match self {
            Value::Nil | Value::Missing => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::Secrets(secrets) => !secrets.is_empty(),
            Value::Part(_, bytes) => !bytes.is_empty(),
            Value::Root(_) | Value::Previous(_) | Value::MarbleRun(_) | Value::Secret(_) => true,
        }
    }

    /// As an action prints it. Secrets are printed by a function or not at all.
    pub fn print(&self) -> Result<Vec<u8>, String> {
        Ok(match self {
            Value::Nil => b"<nil>".to_vec(),
            Value::Missing => b"<no value>".to_vec(),
            Value::Bool(value) => value.to_string().into_bytes(),
            Value::Int(value) => value.to_string().into_bytes(),
            Value::Float(value) => value.to_string().into_bytes(),
            Value::Text(text) => text.clone(),
            Value::Part(_, bytes) => {
                let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
                format!("[{}]", numbers.join(" ")).into_bytes()
            }
            Value::Root(_)
            | Value::Previous(_)
            | Value::MarbleRun(_)
            | Value::Secrets(_)
            | Value::Secret(_) => {
                return Err(
                    "a secret has no text of its own: pipe it to pem, hex, base64, raw or string"
                        .to_owned(),
                );
            }
        })
    }
}
