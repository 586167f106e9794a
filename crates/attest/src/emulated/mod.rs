//! An emulated platform's provisioning chain and quoting enclave.
//!
//! On real platforms Intel certifies a key per machine (the PCK), with which the quoting enclave
//! certifies its attestation key. Here a root of the machine's own does: the formats are exactly
//! those of hardware, so that the same verifier runs for both, and the root is another, so that
//! nothing emulated ever passes for hardware. The keys lie in a file that the host reads: they
//! protect nothing.

mod provisioning;
mod quoting;

pub use provisioning::{Level, Parameters, Part, Provisioning, ProvisioningError};
pub use quoting::{QuotingEnclave, QuotingError, ReportCheck};

use bulla_sgx::{Attributes, Report, TargetInfo, flags, xfrm};

use crate::bytes::sha256;

/// ISVSVN of the emulated quoting enclave.
pub const QE_SVN: u16 = 8;
/// ISVSVN of the provisioning certification enclave that hardware would have.
pub const PCE_SVN: u16 = 16;

/// The quoting enclave as a report describes it, with this report data.
fn quoting_enclave_report(cpu_svn: [u8; 16], report_data: [u8; 64]) -> Report {
    Report {
        cpu_svn,
        misc_select: 0,
        cet_attributes: 0,
        isv_ext_prod_id: [0; 16],
        attributes: Attributes {
            flags: flags::INIT | flags::MODE64BIT | flags::PROVISION_KEY,
            xfrm: xfrm::LEGACY,
        },
        mrenclave: sha256(&[b"bulla emulated quoting enclave, version 1"]),
        mrsigner: sha256(&[b"bulla emulated quoting enclave signer"]),
        config_id: [0; 64],
        isv_prod_id: 1,
        isv_svn: QE_SVN,
        config_svn: 0,
        isv_family_id: [0; 16],
        report_data,
        key_id: [0; 32],
        mac: [0; 16],
    }
}

/// For whom enclaves make the reports that are to be quoted.
pub fn target_info() -> TargetInfo {
    TargetInfo::of(&quoting_enclave_report([0; 16], [0; 64]))
}
