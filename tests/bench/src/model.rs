//! What real hardware adds to the emulator's times: the only place for these numbers.
//!
//! On the emulated platform a transition costs a jump, so its times are those of our software alone.
//! The modelled time adds, for every transition that was counted, what it costs on hardware.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// EENTER and EEXIT together: 8 000 cycles at 2.4 GHz. Published round trips of warm calls lie
/// between 8 000 cycles (Weisse et al., "HotCalls", ISCA 2017) and 13 000 with the microcode against
/// L1TF (Weichbrodt et al., "sgx-perf", Middleware 2018); Ice Lake needs no such flush.
pub const ENTRY_EXIT_NS: f64 = 3300.0;
/// An asynchronous exit and its ERESUME: 10 000 cycles at 2.4 GHz (same sources).
pub const AEX_RESUME_NS: f64 = 4200.0;
/// Adding one page to a running enclave, EAUG and EACCEPT, batched by the driver.
pub const PAGE_NS: f64 = 1500.0;
/// Adding one page before EINIT: EADD clears and encrypts it.
pub const EADD_NS: f64 = 1500.0;

/// Counters of one run, from `bulla run --stats --json`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    pub entries: f64,
    pub aexs: f64,
    pub pages_added: f64,
    pub pages_before: f64,
    pub host_calls: f64,
}

impl Counters {
    /// From the last JSON line on standard error.
    pub fn parse(stderr: &str) -> Option<Counters> {
        let line = stderr
            .lines()
            .rev()
            .find(|line| line.starts_with("{\"event\":\"end\""));
        let value: Value = serde_json::from_str(line?).ok()?;
        let stats = &value["stats"];
        let platform = &stats["platform_counters"];
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let aexs = platform.as_object().map_or(0.0, |counters| {
            let aexs = counters.iter().filter(|(name, _)| name.starts_with("aex_"));
            aexs.map(|(_, count)| number(count)).sum()
        });
        let calls = stats["host_calls"].as_object();
        Some(Counters {
            entries: number(&stats["entries"]),
            aexs,
            pages_added: number(&platform["eaug_pages"]),
            pages_before: number(&stats["added_bytes"]) / 4096.0,
            host_calls: calls.map_or(0.0, |calls| calls.values().map(number).sum()),
        })
    }

    /// What is left without `other`, which counts start and end of an idle program.
    pub fn minus(self, other: Counters) -> Counters {
        let less = |a: f64, b: f64| (a - b).max(0.0);
        Counters {
            entries: less(self.entries, other.entries),
            aexs: less(self.aexs, other.aexs),
            pages_added: less(self.pages_added, other.pages_added),
            pages_before: less(self.pages_before, other.pages_before),
            host_calls: less(self.host_calls, other.host_calls),
        }
    }

    /// EENTER and EEXIT pairs, and asynchronous exits.
    pub fn transitions(self) -> f64 {
        self.entries + self.aexs
    }

    /// Per operation.
    pub fn per(self, operations: f64) -> Counters {
        Counters {
            entries: self.entries / operations,
            aexs: self.aexs / operations,
            pages_added: self.pages_added / operations,
            pages_before: self.pages_before / operations,
            host_calls: self.host_calls / operations,
        }
    }

    /// Nanoseconds that hardware adds.
    pub fn hardware_ns(self) -> f64 {
        self.entries * ENTRY_EXIT_NS
            + self.aexs * AEX_RESUME_NS
            + self.pages_added * PAGE_NS
            + self.pages_before * EADD_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_counters_and_models() {
        let text = r#"{"event":"start"}
{"event":"end","exit_code":0,"stats":{"entries":10,"added_bytes":8192,"host_calls":{"Read":4,
"Write":5},"platform_counters":{"aex_ud":2,"aex_pf":1,"eaug_pages":7}}}"#
            .replace(",\n", ",");
        let counters = Counters::parse(&text).unwrap();
        assert_eq!((counters.aexs, counters.host_calls), (3.0, 9.0));
        let expected = 10.0 * 3300.0 + 3.0 * 4200.0 + 9.0 * 1500.0;
        assert_eq!(counters.hardware_ns(), expected);
        assert!(Counters::parse("nothing").is_none());
    }
}
