//! Counters: what a run cost in entries, exits, host calls and time.
//!
//! Each slot's host thread counts for itself, without atomic read-modify-writes; the sums are taken
//! at the end, or at any time with small errors.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use bulla_abi::hostcall::HostCall;
use serde::{Deserialize, Serialize};

/// Host call numbers are below this.
pub const CALLS: usize = 128;

/// A counter that one thread writes.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    const fn new() -> Count {
        Count(AtomicU64::new(0))
    }

    #[inline(always)]
    pub fn add(&self, value: u64) {
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(value);
        self.0.store(sum, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One slot's counters.
pub struct Counters {
    pub entries: Count,
    pub resumes: Count,
    pub exits: Count,
    pub exceptions: Count,
    pub kicks: Count,
    pub bytes_in: Count,
    pub bytes_out: Count,
    pub calls: [Count; CALLS],
}

impl Counters {
    pub const fn new() -> Counters {
        Counters {
            entries: Count::new(),
            resumes: Count::new(),
            exits: Count::new(),
            exceptions: Count::new(),
            kicks: Count::new(),
            bytes_in: Count::new(),
            bytes_out: Count::new(),
            calls: [const { Count::new() }; CALLS],
        }
    }
}

static SITES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// What the enclave says at its exit about system-call sites.
pub(crate) fn note_sites(rewritten: u64, trapped: u64) {
    for (counter, value) in SITES.iter().zip([rewritten, trapped]) {
        counter.store(value, Ordering::Relaxed);
    }
}

/// What it said: rewritten and trapped.
pub(crate) fn sites() -> (u64, u64) {
    let [rewritten, trapped] = SITES
        .each_ref()
        .map(|counter| counter.load(Ordering::Relaxed));
    (rewritten, trapped)
}

/// A step of the start or the whole run, in wall time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub milliseconds: f64,
}

/// Sums over a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// "hardware" or "emulated".
    pub platform: String,
    /// In the order in which they happened; `total` is the last.
    pub phases: Vec<Phase>,
    /// Bytes of pages added before EINIT.
    pub added_bytes: u64,
    /// Thread slots that ever ran.
    pub threads: u64,
    /// EENTERs.
    pub entries: u64,
    /// ERESUMEs that the loader executed after exceptions.
    pub resumes: u64,
    /// EEXITs.
    pub exits: u64,
    /// Exceptions in the enclave that were brought back to it.
    pub exceptions: u64,
    /// Kicks and wakes that took a signal.
    pub kicks: u64,
    /// Bytes of files and network that went into the enclave, and out of it.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// By the enclave's own word, when it has exited: system-call sites that it rewrote, and system
    /// calls that trapped.
    pub sites_rewritten: u64,
    pub syscall_traps: u64,
    /// Host calls by name.
    pub host_calls: BTreeMap<String, u64>,
    /// What the platform itself counted.
    pub platform_counters: BTreeMap<String, u64>,
}

impl Stats {
    /// Adds one slot's counters.
    pub(crate) fn add(&mut self, counters: &Counters) {
        self.threads += 1;
        self.entries += counters.entries.get();
        self.resumes += counters.resumes.get();
        self.exits += counters.exits.get();
        self.exceptions += counters.exceptions.get();
        self.kicks += counters.kicks.get();
        self.bytes_in += counters.bytes_in.get();
        self.bytes_out += counters.bytes_out.get();
        for (number, count) in counters.calls.iter().enumerate() {
            let count = count.get();
            if count == 0 {
                continue;
            }
            let name = HostCall::from_number(number as u64).map_or("unknown", HostCall::name);
            *self.host_calls.entry(name.to_string()).or_default() += count;
        }
    }

    /// Host calls of all kinds.
    pub fn host_calls_total(&self) -> u64 {
        self.host_calls.values().sum()
    }
}

impl fmt::Display for Stats {
    /// A table for people, one figure a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "platform                 {:>14}", self.platform)?;
        for phase in &self.phases {
            let label = format!("{} (ms)", phase.name);
            writeln!(f, "{label:<24} {:>14.3}", phase.milliseconds)?;
        }
        for (label, value) in [
            ("pages added (bytes)", self.added_bytes),
            ("thread slots used", self.threads),
            ("entries", self.entries),
            ("resumes", self.resumes),
            ("exits", self.exits),
            ("exceptions", self.exceptions),
            ("kicks", self.kicks),
            ("bytes in", self.bytes_in),
            ("bytes out", self.bytes_out),
            ("sites rewritten", self.sites_rewritten),
            ("system-call traps", self.syscall_traps),
            ("host calls", self.host_calls_total()),
        ] {
            writeln!(f, "{label:<24} {value:>14}")?;
        }
        let mut calls: Vec<_> = self.host_calls.iter().collect();
        calls.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (name, count) in calls {
            writeln!(f, "  {name:<22} {count:>14}")?;
        }
        for (name, count) in &self.platform_counters {
            writeln!(f, "{name:<24} {count:>14}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_prints() {
        let counters = Counters::new();
        counters.entries.add(3);
        counters.calls[HostCall::Recv as usize].add(2);
        counters.calls[HostCall::Send as usize].add(1);
        let mut stats = Stats::default();
        stats.add(&counters);
        stats.add(&counters);
        assert_eq!(stats.entries, 6);
        assert_eq!(stats.host_calls["Recv"], 4);
        assert_eq!(stats.host_calls_total(), 6);
        let text = stats.to_string();
        assert!(text.find("Recv").unwrap() < text.find("Send").unwrap());
        let json = serde_json::to_string(&stats).unwrap();
        assert_eq!(serde_json::from_str::<Stats>(&json).unwrap(), stats);
    }

    #[test]
    fn every_host_call_has_a_counter() {
        assert!(HostCall::ALL.iter().all(|call| (*call as usize) < CALLS));
    }
}
