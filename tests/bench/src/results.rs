//! What was measured, kept in a file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::row::Row;

/// Rows in the order of the table.
#[derive(Default, Serialize, Deserialize)]
pub struct Results {
    pub rows: Vec<Row>,
    /// Rows that could not be measured.
    pub missing: Vec<String>,
    pub runs: usize,
}

impl Results {
    /// What a file has; nothing where there is none or it is of another form.
    pub fn read(path: &Path) -> Results {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path, serde_json::to_string_pretty(self)?)
    }

    /// Adds a row, in place of an older one of its name.
    pub fn put(&mut self, row: Row, order: &[String]) {
        self.missing.retain(|name| *name != row.name);
        self.rows.retain(|old| old.name != row.name);
        self.rows.push(row);
        let place = |name: &String| order.iter().position(|known| known == name);
        self.rows.sort_by_key(|row| place(&row.name));
    }

    pub fn failed(&mut self, name: &str) {
        self.rows.retain(|old| old.name != name);
        self.missing.retain(|known| known != name);
        self.missing.push(name.to_owned());
    }
}
