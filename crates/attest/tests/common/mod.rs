//! Evidence for tests: real quotes, and emulated platforms of every kind.
#![allow(dead_code)] // each test file uses its part

use bulla_attest::emulated::{Parameters, Provisioning, QuotingEnclave, target_info};
use bulla_attest::ratls::Attester;
use bulla_attest::{Accept, Collateral, HexBytes, Policy};
use bulla_sgx::{Attributes, Report, flags};

/// A time inside the validity of all the real collateral: 1 July 2025.
pub const IN_DATE: u64 = 1_751_328_000;
/// A time for emulated platforms.
pub const NOW: u64 = 1_800_000_000;
pub const CPU_SVN: [u8; 16] = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub fn data(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A real quote and its collateral.
pub fn real(kind: &str) -> (Vec<u8>, Collateral) {
    let collateral = data(&format!("{kind}_quote_collateral.json"));
    (
        data(&format!("{kind}_quote")),
        Collateral::from_json(&collateral).unwrap(),
    )
}

/// A report as EREPORT would make it; the MAC is not looked at here.
pub fn report(report_data: [u8; 64]) -> Report {
    Report {
        cpu_svn: CPU_SVN,
        misc_select: 0,
        cet_attributes: 0,
        isv_ext_prod_id: [0; 16],
        attributes: Attributes {
            flags: flags::INIT | flags::MODE64BIT,
            xfrm: 3,
        },
        mrenclave: [0xe1; 32],
        mrsigner: [0x51; 32],
        config_id: [0; 64],
        isv_prod_id: 7,
        isv_svn: 3,
        config_svn: 0,
        isv_family_id: [0; 16],
        report_data,
        key_id: [0; 32],
        mac: [0; 16],
    }
}

/// An emulated machine with an enclave on it.
pub struct Machine {
    pub provisioning: Provisioning,
    pub enclave: QuotingEnclave,
    pub report: Report,
}

impl Machine {
    pub fn new(parameters: &Parameters) -> Machine {
        let provisioning = Provisioning::make(parameters).unwrap();
        let check = Box::new(|target: &bulla_sgx::TargetInfo, report: &Report| {
            assert_eq!(*target, target_info());
            report.mac == [0; 16]
        });
        let enclave = QuotingEnclave::new(&provisioning, check).unwrap();
        Machine {
            provisioning,
            enclave,
            report: report([0; 64]),
        }
    }

    pub fn usual() -> Machine {
        Machine::new(&Parameters::new(CPU_SVN, NOW))
    }

    pub fn collateral(&self) -> Collateral {
        self.provisioning.collateral().clone()
    }
}

impl Attester for Machine {
    fn quote(&self, report_data: &[u8; 64]) -> std::io::Result<Vec<u8>> {
        let report = Report {
            report_data: *report_data,
            ..self.report.clone()
        };
        self.enclave
            .quote(&report.to_bytes())
            .map_err(std::io::Error::other)
    }

    fn collateral(&self) -> Option<Collateral> {
        Some(Machine::collateral(self))
    }
}

/// Accepts exactly the enclave of [`report`], on emulated platforms.
pub fn policy() -> Policy {
    Policy {
        accept: vec![Accept {
            mrenclave: vec![HexBytes([0xe1; 32])],
            ..Accept::default()
        }],
        insecure_allow_emulated: true,
        ..Policy::default()
    }
}
