//! Whether the CPU has what the configuration demands.
//!
//! CPUID is the host's word: a lie lets a program start that then meets an illegal instruction,
//! which is no more than the host stopping it.

use alloc::string::String;

/// The first of these features that the CPU lacks, or that nobody knows.
pub fn first_missing(wanted: &[String]) -> Option<&str> {
    let has = |name: &str| {
        let feature = bulla_abi::cpu::feature_named(name)?;
        let words = crate::hostcall::cpuid(feature.leaf, feature.subleaf);
        Some(words[feature.register] >> feature.bit & 1 == 1)
    };
    let missing = |name: &&String| has(name) != Some(true);
    wanted.iter().find(missing).map(String::as_str)
}
