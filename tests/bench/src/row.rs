//! One line of the table, and what to compare with.

use crate::model::Counters;

/// One line of the table. Times are nanoseconds per operation.
pub struct Row {
    pub name: String,
    pub native: f64,
    pub enclave: f64,
    /// gVisor's runsc, where it was measured.
    pub peer: Option<f64>,
    pub counters: Counters,
    pub target: Target,
    /// Shown as operations a second instead of time.
    pub rate: bool,
}

/// What the specification asks for.
#[derive(Clone, Copy)]
pub enum Target {
    None,
    /// Time relative to native, at most.
    Ratio(f64),
    /// Throughput relative to native, at least.
    Rate(f64),
    /// At most.
    Milliseconds(f64),
}

impl Row {
    pub fn modelled(&self) -> f64 {
        self.enclave + self.counters.hardware_ns()
    }

    pub fn met(&self) -> Option<bool> {
        let ratio = self.enclave / self.native;
        match self.target {
            Target::None => None,
            Target::Ratio(limit) => Some(ratio <= limit),
            Target::Rate(limit) => Some(1.0 / ratio >= limit),
            Target::Milliseconds(limit) => Some(self.enclave <= limit * 1e6),
        }
    }
}

/// Who runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    Native,
    Enclave,
    /// gVisor.
    Peer,
}

/// The median of each party's results; no row without native and enclave.
#[derive(Default)]
pub struct Results {
    values: std::collections::BTreeMap<Party, Vec<f64>>,
}

impl Results {
    pub fn add(&mut self, party: Party, value: f64) {
        self.values.entry(party).or_default().push(value);
    }

    fn median(&self, party: Party) -> Option<f64> {
        let mut values = self.values.get(&party)?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    pub fn row(&self, name: &str, counters: Counters, target: Target, rate: bool) -> Option<Row> {
        let time = |value: f64| if rate { 1e9 / value } else { value };
        Some(Row {
            name: name.to_owned(),
            native: time(self.median(Party::Native)?),
            enclave: time(self.median(Party::Enclave)?),
            peer: self.median(Party::Peer).map(time),
            counters,
            target,
            rate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_met_on_the_right_side() {
        let mut results = Results::default();
        for value in [3.0, 100.0, 2.0] {
            results.add(Party::Native, value);
            results.add(Party::Enclave, value * 2.0);
        }
        let met = |target, rate| {
            let row = results.row("x", Counters::default(), target, rate);
            row.unwrap().met()
        };
        assert_eq!(met(Target::Ratio(2.0), false), Some(true));
        assert_eq!(met(Target::Ratio(1.9), false), Some(false));
        assert_eq!(met(Target::Rate(2.0), true), Some(true));
        assert_eq!(met(Target::Rate(2.1), true), Some(false));
        assert_eq!(met(Target::None, false), None);
        assert!(
            Results::default()
                .row("x", Counters::default(), Target::None, false)
                .is_none()
        );
    }
}
