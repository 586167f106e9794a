//! etcd's JSON gateway, as much of it as the store needs.
//!
//! Each request goes to the member that answered last; if it cannot be reached, the others are tried
//! in turn, so that losing a minority of them is only a delay. Reads are linearizable: a member that
//! is cut off from the majority does not answer from what it remembers.

use super::StoreError;
use super::http::{ClientTls, agent, short};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A member that takes longer is tried no more for this request.
const PATIENCE: Duration = Duration::from_secs(5);
/// The whole state of ten thousand marbles is some ten megabytes.
const MOST_ANSWER: u64 = 64 << 20;
/// What stands for an answer that etcd would not give. Never taken for an empty one, which would begin a
/// new state.
const NOT_ETCD: &str = "it does not answer as etcd's version 3 does";
/// Reads are given this often to each member: elections take a second or two.
const ROUNDS: usize = 4;

pub struct EtcdClient {
    agent: ureq::Agent,
    endpoints: Vec<String>,
    /// The one that answered last.
    current: AtomicUsize,
}

pub struct Found {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub mod_revision: i64,
}

/// A transaction's condition: the key was last changed at this revision (0: there is none).
pub struct Compare {
    pub key: Vec<u8>,
    pub mod_revision: i64,
}

pub enum Operation {
    Put(Vec<u8>, Vec<u8>),
    DeletePrefix(Vec<u8>),
}

impl EtcdClient {
    /// Endpoints are `HOST:PORT`, or addresses that begin with `https://`.
    pub fn new(endpoints: &[String], tls: &ClientTls) -> Result<EtcdClient, StoreError> {
        Ok(EtcdClient {
            agent: agent(tls, PATIENCE)?,
            endpoints: endpoints
                .iter()
                .map(|endpoint| match endpoint.contains("://") {
                    true => endpoint.trim_end_matches('/').to_owned(),
                    false => format!("http://{}", endpoint.trim_end_matches('/')),
                })
                .collect(),
            current: AtomicUsize::new(0),
        })
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Found>, StoreError> {
        let answer = self.read("range", &json!({"key": BASE64.encode(key)}))?;
        Ok(found(&answer)?.pop())
    }

    /// A key, and what changed below a prefix since a revision, of one moment.
    pub fn get_with_prefix(
        &self,
        key: &[u8],
        prefix: &[u8],
        since: i64,
    ) -> Result<(Option<Found>, Vec<Found>), StoreError> {
        let answer = self.read(
            "txn",
            &json!({"success": [
                {"requestRange": {"key": BASE64.encode(key)}},
                {"requestRange": {
                    "key": BASE64.encode(prefix), "range_end": BASE64.encode(end(prefix)),
                    "min_mod_revision": since.to_string(),
                }},
            ]}),
        )?;
        let part = |index: usize| match &answer["responses"][index]["response_range"] {
            range @ Value::Object(_) => found(range),
            _ => Err(StoreError::Remote(NOT_ETCD.to_owned())),
        };
        Ok((part(0)?.pop(), part(1)?))
    }

    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.write(&[Operation::Put(key.to_vec(), value.to_vec())])
    }

    /// Writes without a condition.
    pub fn write(&self, operations: &[Operation]) -> Result<(), StoreError> {
        if operations.is_empty() {
            return Ok(());
        }
        let body = json!({"success": requests(operations)});
        self.read("txn", &body).map(|_| ())
    }

    /// The revision at which all was written; None if the condition did not hold. Sent once.
    pub fn transact(
        &self,
        compare: &Compare,
        operations: &[Operation],
    ) -> Result<Option<i64>, StoreError> {
        let body = json!({
            "compare": [{
                "key": BASE64.encode(&compare.key), "target": "MOD", "result": "EQUAL",
                "mod_revision": compare.mod_revision.to_string(),
            }],
            "success": requests(operations),
        });
        let at = self.current.load(Ordering::Relaxed);
        let answer = match self.send(at, "txn", &body) {
            Ok(answer) => answer,
            Err(Failure::Answer(error)) => return Err(StoreError::Remote(error)),
            Err(Failure::Connection(_)) => {
                self.current.store(at + 1, Ordering::Relaxed);
                return self.after_lost_answer(compare, operations);
            }
        };
        match answer["succeeded"].as_bool() {
            Some(true) => revision(&answer["header"]["revision"]).map(Some),
            _ => Ok(None),
        }
    }

    /// What became of a transaction: no two values of its key are alike, so that tells.
    fn after_lost_answer(
        &self,
        compare: &Compare,
        operations: &[Operation],
    ) -> Result<Option<i64>, StoreError> {
        let found = self.get(&compare.key)?;
        let ours = operations.iter().any(|operation| match operation {
            Operation::Put(key, value) => {
                *key == compare.key && found.as_ref().is_some_and(|now| now.value == *value)
            }
            Operation::DeletePrefix(_) => false,
        });
        match found {
            Some(found) if ours => Ok(Some(found.mod_revision)),
            // The caller reads what is there now, and decides.
            _ => Err(StoreError::Conflict),
        }
    }

    /// Sends what may be repeated, to whoever answers.
    fn read(&self, method: &str, body: &Value) -> Result<Value, StoreError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut reason = "no endpoints".to_owned();
        for attempt in 0..self.endpoints.len() * ROUNDS {
            if attempt > 0 && attempt.is_multiple_of(self.endpoints.len()) {
                std::thread::sleep(Duration::from_millis(500));
            }
            match self.send(first + attempt, method, body) {
                Ok(answer) => {
                    self.current.store(first + attempt, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(Failure::Connection(error) | Failure::Answer(error)) => reason = error,
            }
        }
        Err(StoreError::Remote(reason))
    }

    fn send(&self, at: usize, method: &str, body: &Value) -> Result<Value, Failure> {
        let Some(endpoint) = self.endpoints.get(at % self.endpoints.len().max(1)) else {
            return Err(Failure::Answer("no endpoints".to_owned()));
        };
        let broken = |error: ureq::Error| Failure::Connection(format!("{endpoint}: {error}"));
        let mut response = self
            .agent
            .post(&format!("{endpoint}/v3/kv/{method}"))
            .header("content-type", "application/json")
            .send(body.to_string().as_bytes())
            .map_err(broken)?;
        let status = response.status().as_u16();
        let bytes = response
            .body_mut()
            .with_config()
            .limit(MOST_ANSWER)
            .read_to_vec()
            .map_err(broken)?;
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let message = answer["message"].as_str().or(answer["error"].as_str());
        let said = short(message.unwrap_or(NOT_ETCD));
        match status {
            200 if answer["header"].is_object() => Ok(answer),
            // What became of the request nobody knows.
            200 => Err(Failure::Connection(format!("{endpoint}: {said}"))),
            // No leader, or one that is changing: the request may have been taken.
            503 | 504 => Err(Failure::Connection(format!("{endpoint}: {status}: {said}"))),
            _ => Err(Failure::Answer(format!("{endpoint}: {status}: {said}"))),
        }
    }
}

enum Failure {
    /// Nobody knows what became of the request.
    Connection(String),
    /// It was refused.
    Answer(String),
}

fn requests(operations: &[Operation]) -> Vec<Value> {
    operations
        .iter()
        .map(|operation| match operation {
            Operation::Put(key, value) => json!({"requestPut": {
                "key": BASE64.encode(key), "value": BASE64.encode(value)}}),
            Operation::DeletePrefix(prefix) => json!({"requestDeleteRange": {
                "key": BASE64.encode(prefix), "range_end": BASE64.encode(end(prefix))}}),
        })
        .collect()
}

/// The first key behind all that begin with a prefix; ours end with a slash.
fn end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// The gateway writes 64-bit numbers as text.
fn revision(value: &Value) -> Result<i64, StoreError> {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .or_else(|| value.as_i64())
        .ok_or_else(|| StoreError::Remote("an answer has no revision".to_owned()))
}

fn found(answer: &Value) -> Result<Vec<Found>, StoreError> {
    let bytes = |value: &Value| {
        BASE64
            .decode(value.as_str().unwrap_or_default())
            .map_err(|_| StoreError::Remote("an answer is not base64".to_owned()))
    };
    let list = answer["kvs"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .map(|entry| {
            Ok(Found {
                key: bytes(&entry["key"])?,
                value: bytes(&entry["value"])?,
                mod_revision: revision(&entry["mod_revision"])?,
            })
        })
        .collect()
}
