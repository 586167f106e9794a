//! What happened lately, for /metrics and /events. Bounded: names come from outside.

use super::live::now;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const MOST_EVENTS: usize = 1000;
/// Label pairs beyond these are counted together under the UUID "other".
const MOST_SERIES: usize = 10_000;

#[derive(Debug, Clone, Serialize)]
pub struct Event {
    pub time: String,
    pub activation: Activation,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Activation {
    pub marble_type: String,
    pub uuid: String,
    pub success: bool,
}

#[derive(Default)]
pub struct Events {
    recent: Mutex<VecDeque<Event>>,
    series: Mutex<BTreeMap<(String, String), (u64, u64)>>,
    pub requests: AtomicU64,
    pub refused_connections: AtomicU64,
}

impl Events {
    /// Notes an attempt to activate. The type is one of the manifest's, or empty.
    pub fn activation(&self, marble_type: &str, uuid: &str, success: bool) {
        let mut series = self.series.lock().unwrap_or_else(|e| e.into_inner());
        let mut key = (marble_type.to_owned(), uuid.to_owned());
        if series.len() >= MOST_SERIES && !series.contains_key(&key) {
            key.1 = "other".to_owned();
        }
        let counts = series.entry(key).or_default();
        counts.0 += 1;
        counts.1 += u64::from(success);
        drop(series);
        let mut recent = self.recent.lock().unwrap_or_else(|e| e.into_inner());
        if recent.len() == MOST_EVENTS {
            recent.pop_front();
        }
        recent.push_back(Event {
            time: now(),
            activation: Activation {
                marble_type: marble_type.to_owned(),
                uuid: uuid.to_owned(),
                success,
            },
        });
    }

    pub fn recent(&self) -> Vec<Event> {
        let recent = self.recent.lock().unwrap_or_else(|e| e.into_inner());
        recent.iter().cloned().collect()
    }

    /// Prometheus' text format. `others`: name, state and events of each namespace that is open; the
    /// default one's lines have no label `namespace`, as MarbleRun's.
    pub fn metrics(&self, state: u8, others: &[(String, u8, &Events)]) -> String {
        let mut out = String::new();
        let mut head = |name: &str, kind: &str, help: &str, lines: &str| {
            out += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
        };
        head(
            "coordinator_state",
            "gauge",
            "State of the coordinator.",
            &others.iter().fold(
                format!("coordinator_state {state}\n"),
                |lines, (name, state, _)| {
                    lines + &format!("coordinator_state{{namespace=\"{name}\"}} {state}\n")
                },
            ),
        );
        head(
            "coordinator_version_info",
            "gauge",
            "Version of the coordinator.",
            &format!(
                "coordinator_version_info{{version=\"{}\"}} 1\n",
                env!("CARGO_PKG_VERSION")
            ),
        );
        let lines = |name: &str, pick: fn(&(u64, u64)) -> u64| {
            others.iter().fold(
                self.series(name, "", pick),
                |lines, (namespace, _, events)| {
                    let label = format!("namespace=\"{namespace}\",");
                    lines + &events.series(name, &label, pick)
                },
            )
        };
        head(
            "coordinator_marble_activations_total",
            "counter",
            "Attempts of marbles to activate.",
            &lines("coordinator_marble_activations_total", |counts| counts.0),
        );
        head(
            "coordinator_marble_activations_success_total",
            "counter",
            "Activations that succeeded.",
            &lines("coordinator_marble_activations_success_total", |counts| {
                counts.1
            }),
        );
        head(
            "coordinator_requests_total",
            "counter",
            "Requests to the client API.",
            &format!(
                "coordinator_requests_total {}\n",
                self.requests.load(Ordering::Relaxed)
            ),
        );
        head(
            "coordinator_refused_connections_total",
            "counter",
            "Connections closed because there were too many.",
            &format!(
                "coordinator_refused_connections_total {}\n",
                self.refused_connections.load(Ordering::Relaxed)
            ),
        );
        out
    }

    fn series(&self, name: &str, label: &str, pick: fn(&(u64, u64)) -> u64) -> String {
        let series = self.series.lock().unwrap_or_else(|e| e.into_inner());
        series
            .iter()
            .map(|((marble_type, uuid), counts)| {
                format!(
                    "{name}{{{label}type=\"{}\",uuid=\"{}\"}} {}\n",
                    escape(marble_type),
                    escape(uuid),
                    pick(counts)
                )
            })
            .collect()
    }
}

fn escape(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
