//! What activations change: kept in small pieces, so that an activation costs the same however
//! many marbles there are.

use super::live::now;
use crate::store::Content;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use uuid::Uuid;

const ACTIVATIONS: &str = "activations/";
const INSTANCE: &str = "instance/";
const COUNTER: &str = "counter/";

#[derive(Default)]
pub struct Tables {
    activations: Mutex<HashMap<String, u64>>,
    instances: Mutex<HashMap<Uuid, Instance>>,
    counters: Mutex<HashMap<String, u64>>,
}

/// A marble that has activated.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Instance {
    pub marble_type: String,
    pub package: String,
    /// The platform of its last activation.
    pub platform: String,
    pub activations: u64,
    pub last: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic aborts the program: nobody can have left a table half changed.
    mutex.lock().unwrap_or_else(|error| error.into_inner())
}

impl Tables {
    pub fn load(&self, content: &Content) -> Result<(), String> {
        let number = |key: &str, value: &[u8]| {
            std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| format!("{key} is no number"))
        };
        self.clear();
        for (key, value) in content {
            if let Some(marble_type) = key.strip_prefix(ACTIVATIONS) {
                self.activations()
                    .insert(marble_type.to_owned(), number(key, value)?);
            } else if let Some(name) = key.strip_prefix(COUNTER) {
                self.counters().insert(name.to_owned(), number(key, value)?);
            } else if let Some(uuid) = key.strip_prefix(INSTANCE) {
                let uuid = Uuid::parse_str(uuid).map_err(|_| format!("{key} is no UUID"))?;
                let instance =
                    serde_json::from_slice(value).map_err(|error| format!("{key}: {error}"))?;
                self.instances().insert(uuid, instance);
            }
        }
        Ok(())
    }

    pub fn clear(&self) {
        self.activations().clear();
        self.instances().clear();
        self.counters().clear();
    }

    /// Everything, as the store keeps it.
    pub fn content(&self) -> Content {
        let mut content = Content::new();
        for (marble_type, count) in self.activations().iter() {
            content.insert(activations_key(marble_type), count.to_string().into_bytes());
        }
        for (name, value) in self.counters().iter() {
            content.insert(counter_key(name), value.to_string().into_bytes());
        }
        for (uuid, instance) in self.instances().iter() {
            content.insert(instance_key(uuid), instance.encode());
        }
        content
    }

    pub fn activations(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        lock(&self.activations)
    }

    pub fn instances(&self) -> MutexGuard<'_, HashMap<Uuid, Instance>> {
        lock(&self.instances)
    }

    pub fn counters(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        lock(&self.counters)
    }
}

impl Instance {
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The instance after another activation.
    pub fn activated(
        previous: Option<&Instance>,
        marble_type: &str,
        package: &str,
        platform: &str,
    ) -> Instance {
        Instance {
            marble_type: marble_type.to_owned(),
            package: package.to_owned(),
            platform: platform.to_owned(),
            activations: previous.map_or(0, |instance| instance.activations) + 1,
            last: now(),
        }
    }
}

pub fn activations_key(marble_type: &str) -> String {
    format!("{ACTIVATIONS}{marble_type}")
}

pub fn instance_key(uuid: &Uuid) -> String {
    format!("{INSTANCE}{uuid}")
}

pub fn counter_key(name: &str) -> String {
    format!("{COUNTER}{name}")
}
