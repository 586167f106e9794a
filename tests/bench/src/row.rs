//! One line of the table, and what to compare with.

use serde::{Deserialize, Serialize};

use crate::model::Counters;

/// What the figures of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Nanoseconds per operation.
    Time,
    /// Kept as nanoseconds per operation, shown as operations a second.
    PerSecond,
    /// Kept as nanoseconds per megabyte, shown as megabytes a second.
    MegabytesPerSecond,
    Mebibytes,
}

impl Unit {
    /// Whether more is better.
    pub fn is_rate(self) -> bool {
        matches!(self, Unit::PerSecond | Unit::MegabytesPerSecond)
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub native: f64,
    pub enclave: f64,
    /// gVisor's runsc, where it was measured.
    pub peer: Option<f64>,
    pub counters: Counters,
    pub target: Target,
    pub unit: Unit,
}

/// What the specification asks for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Target {
    None,
    /// Time relative to native, at most.
    Ratio(f64),
    /// Throughput relative to native, at least.
    Rate(f64),
    /// At most.
    Milliseconds(f64),
    /// Megabytes a second, at least.
    Throughput(f64),
    /// Beyond native, at most.
    MoreMebibytes(f64),
}

impl Row {
    pub fn modelled(&self) -> f64 {
        match self.unit {
            Unit::Mebibytes => self.enclave,
            _ => self.enclave + self.counters.hardware_ns(),
        }
    }

    pub fn met(&self) -> Option<bool> {
        let ratio = self.enclave / self.native;
        match self.target {
            Target::None => None,
            Target::Ratio(limit) => Some(ratio <= limit),
            Target::Rate(limit) => Some(1.0 / ratio >= limit),
            Target::Milliseconds(limit) => Some(self.enclave <= limit * 1e6),
            Target::Throughput(limit) => Some(1e9 / self.enclave >= limit),
            Target::MoreMebibytes(limit) => Some(self.enclave - self.native <= limit),
        }
    }
}

/// The two that every row needs, in the order of one turn.
pub const BOTH: [Party; 2] = [Party::Native, Party::Enclave];

/// Who runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    Native,
    Enclave,
    /// gVisor.
    Peer,
}

/// The figures of each party, of which the median counts.
#[derive(Default)]
pub struct Figures {
    values: std::collections::BTreeMap<Party, Vec<f64>>,
}

impl Figures {
    pub fn add(&mut self, party: Party, value: f64) {
        self.values.entry(party).or_default().push(value);
    }

    fn median(&self, party: Party) -> Option<f64> {
        let mut values = self.values.get(&party)?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// The row; an error without native and enclave.
    pub fn row(
        &self,
        name: &str,
        counters: Counters,
        target: Target,
        unit: Unit,
    ) -> Result<Row, String> {
        let figure = |party| {
            let value = self.median(party)?;
            Some(if unit.is_rate() { 1e9 / value } else { value })
        };
        let wanted = |party| figure(party).ok_or_else(|| format!("{party:?} gave no figure"));
        Ok(Row {
            name: name.to_owned(),
            native: wanted(Party::Native)?,
            enclave: wanted(Party::Enclave)?,
            peer: figure(Party::Peer),
            counters,
            target,
            unit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_met_on_the_right_side() {
        let mut figures = Figures::default();
        for value in [3.0, 100.0, 2.0] {
            figures.add(Party::Native, value);
            figures.add(Party::Enclave, value * 2.0);
        }
        let met = |target, unit| {
            let row = figures.row("x", Counters::default(), target, unit);
            row.unwrap().met()
        };
        assert_eq!(met(Target::Ratio(2.0), Unit::Time), Some(true));
        assert_eq!(met(Target::Ratio(1.9), Unit::Time), Some(false));
        assert_eq!(met(Target::Rate(2.0), Unit::PerSecond), Some(true));
        assert_eq!(met(Target::Rate(2.1), Unit::PerSecond), Some(false));
        assert_eq!(
            met(Target::Throughput(6.0), Unit::MegabytesPerSecond),
            Some(true)
        );
        assert_eq!(
            met(Target::Throughput(6.1), Unit::MegabytesPerSecond),
            Some(false)
        );
        assert_eq!(met(Target::MoreMebibytes(3.0), Unit::Mebibytes), Some(true));
        assert_eq!(
            met(Target::MoreMebibytes(2.9), Unit::Mebibytes),
            Some(false)
        );
        assert_eq!(met(Target::None, Unit::Time), None);
        let nothing = Figures::default();
        assert!(
            nothing
                .row("x", Counters::default(), Target::None, Unit::Time)
                .is_err()
        );
    }
}
