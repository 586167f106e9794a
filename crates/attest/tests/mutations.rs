//! The fuzz targets' bounded sibling: the same parsers on a fixed sequence of mutations, in every run
//! of the tests. No panic, no hang, and nothing that was altered is accepted as something else.

mod common;

use std::sync::Arc;

use bulla_attest::ratls::{Approver, Request, issue};
use bulla_attest::{Collateral, Judge, NoSource, Policy, Quote, verify};
use common::{IN_DATE, Machine, NOW, policy, real};

/// xorshift64*: the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }

    /// One to four changes of kinds that break parsers: bits, lengths, cuts, repeats, swaps.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                bytes.push(self.below(256) as u8);
                continue;
            }
            let at = self.below(bytes.len());
            let length = (1 + self.below(64)).min(bytes.len() - at);
            match self.below(8) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = [0, 0x7f, 0x80, 0xff][self.below(4)],
                2 => bytes.truncate(at),
                3 => drop(bytes.drain(at..at + length)),
                4 => {
                    let part = bytes[at..at + length].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, part);
                }
                5 => bytes
                    .splice(at..at, vec![self.below(256) as u8; length])
                    .for_each(drop),
                6 => bytes[at..at + length].fill(0xff),
                _ => {
                    let to = self.below(bytes.len() - length + 1);
                    for step in 0..length {
                        bytes.swap(at + step, to + step);
                    }
                }
            }
        }
    }
}

fn mutations(seed: &[u8], count: usize, mut try_one: impl FnMut(&[u8])) {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ seed.len() as u64);
    for _ in 0..count {
        let mut bytes = seed.to_vec();
        dice.mutate(&mut bytes);
        try_one(&bytes);
    }
}

#[test]
fn quotes() {
    let machine = Machine::usual();
    let emulated = machine.enclave.quote(&machine.report.to_bytes()).unwrap();
    for (quote, collateral, now) in [
        (real("sgx").0, real("sgx").1, IN_DATE),
        (real("tdx").0, real("tdx").1, IN_DATE),
        (emulated, machine.collateral(), NOW),
    ] {
        let genuine = verify(&quote, &collateral, now).unwrap();
        mutations(&quote, 2000, |bytes| {
            if let Ok(evidence) = verify(bytes, &collateral, now) {
                assert_eq!(evidence, genuine);
            }
            if let Ok((_, exact)) = Quote::decode(bytes) {
                let again = Quote::decode(exact).unwrap().1;
                assert_eq!(again, exact);
            }
        });
    }
}

#[test]
fn collateral() {
    let (quote, collateral) = real("sgx");
    let genuine = verify(&quote, &collateral, IN_DATE).unwrap();
    mutations(collateral.to_json().as_bytes(), 1500, |bytes| {
        let Ok(changed) = Collateral::from_json(bytes) else {
            return;
        };
        let again = Collateral::from_json(changed.to_json().as_bytes());
        assert_eq!(again.ok().as_ref(), Some(&changed));
        let _ = changed.next_update();
        if let Ok(evidence) = verify(&quote, &changed, IN_DATE) {
            assert_eq!(evidence, genuine);
        }
    });
}

#[test]
fn certificates() {
    let machine = Machine::usual();
    let request = Request {
        names: vec!["localhost".into(), "127.0.0.1".into()],
        nonce: Some(vec![7; 16]),
        gramine: true,
        ..Request::new(NOW)
    };
    let der = issue(&machine, &request).unwrap().certificate;
    let judge = Judge {
        policy: policy(),
        source: Arc::new(NoSource),
        disclosed: None,
    };
    judge.approve(&der, NOW).unwrap();
    // The quote vouches for the key and the key for everything else, so that nothing at all may differ.
    mutations(&der, 3000, |bytes| {
        assert!(judge.approve(bytes, NOW).is_err() || bytes == der);
    });
}

#[test]
fn policies() {
    let text = r#"
        insecure_allow_emulated = true
        [[accept]]
        name = "all"
        mrenclave = "e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1"
        [[accept]]
        mrsigner = ["5151515151515151515151515151515151515151515151515151515151515151"]
        product_id = 7
        min_svn = 3
        [[accept]]
        rootfs = "0101010101010101010101010101010101010101010101010101010101010101"
        command = ["server"]
        open = ["user x"]
        [[accept]]
        image = "sha256:0101010101010101010101010101010101010101010101010101010101010101"
        [tcb]
        accept = [{ status = "OutOfDate", until = "2027-01-31" }]
        advisories = [{ id = "INTEL-SA-00615" }]
        min_evaluation_number = 17
        [platform]
        fmspc = "00a067110000"
        refuse_hyperthreading = true
    "#;
    Policy::from_toml(text.as_bytes()).unwrap();
    mutations(text.as_bytes(), 5000, |bytes| {
        let Ok(policy) = Policy::from_toml(bytes) else {
            return;
        };
        // Nothing that is accepted is without a pin, whatever was cut out.
        for accept in &policy.accept {
            let signer = !accept.mrsigner.is_empty()
                && accept.product_id.is_some()
                && accept.min_svn.is_some();
            let files = !accept.rootfs.is_empty() && !accept.command.is_empty();
            assert!(
                !accept.mrenclave.is_empty()
                    || signer
                    || files
                    || !accept.image.is_empty()
                    || !accept.mrtd.is_empty(),
                "{policy:?}"
            );
        }
    });
}
