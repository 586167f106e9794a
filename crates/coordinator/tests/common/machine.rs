//! A machine with an emulated platform, and marbles on it that are ready to activate.

use bulla_attest::emulated::{Parameters, Provisioning, QuotingEnclave};
use bulla_coordinator::api::marble::ActivationReq;
use bulla_coordinator::client::Identity;
use bulla_coordinator::client::marble::{self_signed, signing_request};
use bulla_coordinator::manifest::Subject;
use bulla_sgx::Report;
use std::time::{SystemTime, UNIX_EPOCH};

pub struct Machine {
    pub provisioning: Provisioning,
    quoting: QuotingEnclave,
}

impl Machine {
    pub fn new() -> Machine {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let provisioning = Provisioning::make(&Parameters::new([3; 16], now)).unwrap();
        let quoting = QuotingEnclave::new(&provisioning, Box::new(|_, _| true)).unwrap();
        Machine {
            provisioning,
            quoting,
        }
    }

    fn quote(&self, report_data: &[u8]) -> Vec<u8> {
        let mut bytes = [0; Report::SIZE];
        bytes[320..320 + report_data.len()].copy_from_slice(report_data);
        let mut report = Report::from_bytes(&bytes);
        report.mrenclave = [0x77; 32];
        report.mrsigner = [0x88; 32];
        report.isv_prod_id = 5;
        report.isv_svn = 6;
        report.cpu_svn = [3; 16];
        self.quoting.quote(&report.to_bytes()).unwrap()
    }

    /// A marble's certificate, and its request.
    pub fn marble(&self, uuid: &str) -> (Identity, ActivationReq) {
        let (identity, signer) = self_signed("marble").unwrap();
        let names = ["localhost".to_owned()];
        let request = ActivationReq {
            quote: self.quote(&bulla_coordinator::sha256(&identity.certificate)),
            csr: signing_request(&signer, &Subject::default(), &names, &[]).unwrap(),
            marble_type: "m".to_owned(),
            uuid: uuid.to_owned(),
        };
        (identity, request)
    }
}
