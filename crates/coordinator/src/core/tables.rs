//! What activations change: kept in small pieces, so that an activation costs the same however
//! many marbles there are.

use super::live::now;
use crate::store::Content;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Of the values in all of them; changes only while all are locked.
    epoch: AtomicU64,
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
    /// Its certificates that have not expired.
    #[serde(default)]
    pub leaves: Vec<Leaf>,
}

/// A certificate, as much as it takes to revoke it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Leaf {
    /// Hex.
    pub serial: String,
    /// Seconds since 1970.
    pub until: i64,
    /// MRENCLAVE of who got it, hex.
    #[serde(default)]
    pub enclave: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic aborts the program: nobody can have left a table half changed.
    mutex.lock().unwrap_or_else(|error| error.into_inner())
}

impl Tables {
    /// Takes the place of what was there, at once.
    pub fn load(&self, content: &Content, epoch: u64) -> Result<(), String> {
        let number = |key: &str, value: &[u8]| {
            std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| format!("{key} is no number"))
        };
        let (mut activations, mut instances, mut counters) =
            (HashMap::new(), HashMap::new(), HashMap::new());
        for (key, value) in content {
            if let Some(marble_type) = key.strip_prefix(ACTIVATIONS) {
                activations.insert(marble_type.to_owned(), number(key, value)?);
            } else if let Some(name) = key.strip_prefix(COUNTER) {
                counters.insert(name.to_owned(), number(key, value)?);
            } else if let Some(uuid) = key.strip_prefix(INSTANCE) {
                let uuid = Uuid::parse_str(uuid).map_err(|_| format!("{key} is no UUID"))?;
                let instance =
                    serde_json::from_slice(value).map_err(|error| format!("{key}: {error}"))?;
                instances.insert(uuid, instance);
            }
        }
        self.exchange(activations, instances, counters, epoch);
        Ok(())
    }

    pub fn clear(&self) {
        self.exchange(HashMap::new(), HashMap::new(), HashMap::new(), 0);
    }

    fn exchange(
        &self,
        activations: HashMap<String, u64>,
        instances: HashMap<Uuid, Instance>,
        counters: HashMap<String, u64>,
        epoch: u64,
    ) {
        let (mut a, mut i, mut c) = (self.activations(), self.instances(), self.counters());
        (*a, *i, *c) = (activations, instances, counters);
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// The epoch of the values; ask while one of the tables is locked.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
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
        leaf: Leaf,
    ) -> Instance {
        let second = time::OffsetDateTime::now_utc().unix_timestamp();
        let mut leaves: Vec<Leaf> = previous.map_or_else(Vec::new, |i| i.leaves.clone());
        leaves.retain(|leaf| leaf.until > second);
        leaves.push(leaf);
        Instance {
            leaves,
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
