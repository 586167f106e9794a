//! The enclave's own reports, quotes and sealing keys.
//!
//! Reports and keys come from the CPU, by way of [`crate::Platform`]. A quote is made by the host's
//! quoting enclave; all that the host answers is checked against the report that was to be quoted,
//! so that it can deny a quote but not slip in another. [`file`] shows all this as
//! `/dev/attestation`.

pub mod file;
mod keys;

use alloc::vec::Vec;

use bulla_abi::hostcall::{DATA_SIZE, HostCall};
use bulla_sgx::{Report, TargetInfo};

use crate::Result;
use crate::errno::{EACCES, EINVAL, EIO};
use crate::platform::platform;

/// The largest quote that is taken from the host, in bytes. Real ones have 4 to 6 KiB.
const QUOTE_MAX: usize = 32 << 10;

/// What a process has written for its next report or quote.
#[derive(Clone)]
pub struct Inputs {
    pub report_data: [u8; 64],
    pub target: [u8; TargetInfo::SIZE],
}

impl Default for Inputs {
    fn default() -> Self {
        Inputs {
            report_data: [0; 64],
            target: [0; TargetInfo::SIZE],
        }
    }
}

/// EREPORT. All zeros is a target that nobody can check, as on hardware.
pub fn report(target: &[u8; TargetInfo::SIZE], data: &[u8; 64]) -> Result<[u8; Report::SIZE]> {
    // EREPORT faults on reserved bits.
    let target = TargetInfo::from_bytes(target)
        .ok_or(EINVAL.because("reserved bits of TARGETINFO are set"))?;
    platform().report(&target.to_bytes(), data)
}

/// This enclave as its own report describes it.
pub fn own_report() -> Result<Report> {
    report(&[0; TargetInfo::SIZE], &[0; 64]).map(|bytes| Report::from_bytes(&bytes))
}

/// This enclave as a target of others' reports.
pub fn own_target() -> Result<TargetInfo> {
    own_report().map(|report| TargetInfo::of(&report))
}

/// A length that the host answered.
fn length(answer: i64, max: usize) -> Result<usize> {
    match usize::try_from(answer) {
        Ok(length) if length > 0 && length <= max => Ok(length),
        Ok(_) => Err(EIO.because("the host answered with an impossible length")),
        // What went wrong is in the host's log.
        Err(_) => Err(EACCES.because("the host has no quoting service")),
    }
}

/// TARGETINFO of the host's quoting enclave. A wrong one gives a report that nobody can quote.
fn quoting_target() -> Result<[u8; TargetInfo::SIZE]> {
    let answer = platform().host_call(HostCall::QuoteTarget, [0; 4], None);
    if length(answer, TargetInfo::SIZE)? != TargetInfo::SIZE {
        return Err(EIO.because("the host answered with half a TARGETINFO"));
    }
    let mut target = [0; TargetInfo::SIZE];
    platform().host_get(0, &mut target)?;
    Ok(target)
}

/// Whether the host offers quotes (its word).
pub fn has_quotes() -> bool {
    quoting_target().is_ok()
}

/// A quote with this report data.
pub fn quote(data: &[u8; 64]) -> Result<Vec<u8>> {
    let report = report(&quoting_target()?, data)?;
    platform().host_put(0, &report)?;
    let answer = platform().host_call(HostCall::Quote, [report.len() as u64, 0, 0, 0], None);
    let mut quote = crate::user::zeroed(length(answer, QUOTE_MAX)?);
    platform().host_get(0, &mut quote)?;
    check_quote(&quote, &report)?;
    Ok(quote)
}

/// A quote contains the body of the report that it was asked for. Whether its signature is right
/// is for verifiers to say, who have the collateral.
fn check_quote(quote: &[u8], report: &[u8; Report::SIZE]) -> Result<()> {
    const HEADER: usize = 48;
    // Version 5 puts the type and size of the body before it.
    const DESCRIPTOR: usize = 6;
    let wrong = EIO.because("the host's quote is not over this enclave's report");
    let version = quote.first_chunk().map(|bytes| u16::from_le_bytes(*bytes));
    let start = match version {
        Some(3 | 4) => HEADER,
        Some(5) => HEADER + DESCRIPTOR,
        _ => return Err(wrong),
    };
    let body = quote.get(start..start + Report::BODY_SIZE);
    if body == Some(&report[..Report::BODY_SIZE]) {
        Ok(())
    } else {
        Err(wrong)
    }
}

/// The collateral that the host has for this machine's quotes: its word, to be verified by whoever
/// uses it.
pub fn collateral() -> Result<Vec<u8>> {
    let answer = platform().host_call(HostCall::QuoteCollateral, [0; 4], None);
    let mut bytes = crate::user::zeroed(length(answer, DATA_SIZE as usize)?);
    platform().host_get(0, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_over_other_reports_are_refused() {
        let mut report = [7; Report::SIZE];
        report[320..384].copy_from_slice(&[9; 64]);
        let quote = |version: u16, start: usize| {
            let mut quote = alloc::vec![0; start + Report::BODY_SIZE + 100];
            quote[..2].copy_from_slice(&version.to_le_bytes());
            quote[start..start + Report::BODY_SIZE].copy_from_slice(&report[..Report::BODY_SIZE]);
            quote
        };
        for (version, start) in [(3, 48), (4, 48), (5, 54)] {
            let good = quote(version, start);
            assert!(check_quote(&good, &report).is_ok());
            for index in [
                start,
                start + 64,
                start + 320,
                start + Report::BODY_SIZE - 1,
            ] {
                let mut other = good.clone();
                other[index] ^= 1;
                assert!(
                    check_quote(&other, &report).is_err(),
                    "{version}: byte {index}"
                );
            }
            assert!(check_quote(&good[..start + 100], &report).is_err());
        }
        assert!(check_quote(&quote(2, 48), &report).is_err());
        assert!(check_quote(&[], &report).is_err());
        for answer in [0, QUOTE_MAX as i64 + 1, i64::MAX, -19, i64::MIN] {
            assert!(length(answer, QUOTE_MAX).is_err(), "{answer}");
        }
    }
}
