//! Writes what to start fuzzing from: `cargo run --bin seeds`, in this directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use bulla_attest::Collateral;
use bulla_attest::emulated::{Parameters, Provisioning, QuotingEnclave};
use bulla_attest::ratls::{Attester, Request, issue};
use bulla_rootfs::{Attributes, Builder, Special};

/// Real evidence, and what an emulated platform makes.
fn attestation() {
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let corpus = Path::new("corpus").join(target);
        fs::create_dir_all(&corpus).expect("the directory can be made");
        fs::write(corpus.join(name), bytes).expect("the seed can be written");
    };
    let data = Path::new("../crates/attest/tests/data");
    for kind in ["sgx", "tdx"] {
        let read = |name: String| fs::read(data.join(name)).expect("it is in the repository");
        put("attest_quote", kind, &read(format!("{kind}_quote")));
        let collateral = read(format!("{kind}_quote_collateral.json"));
        put("attest_collateral", kind, &collateral);
    }
    let machine = Provisioning::make(&Parameters::new([1; 16], NOW)).expect("it can be made");
    let quoting = QuotingEnclave::new(&machine, Box::new(|_, _| true)).expect("it has a key");
    struct Emulated(Provisioning, QuotingEnclave);
    impl Attester for Emulated {
        fn quote(&self, report_data: &[u8; 64]) -> std::io::Result<Vec<u8>> {
            let mut report = [0; 432];
            report[..16].fill(1);
            report[320..384].copy_from_slice(report_data);
            self.1.quote(&report).map_err(std::io::Error::other)
        }

        fn collateral(&self) -> Option<Collateral> {
            Some(self.0.collateral().clone())
        }
    }
    let machine = Emulated(machine, quoting);
    let request = Request {
        names: vec!["localhost".into(), "127.0.0.1".into()],
        gramine: true,
        nonce: Some(vec![7; 16]),
        ..Request::new(NOW)
    };
    let identity = issue(&machine, &request).expect("it can be made");
    put("attest_certificate", "dice", &identity.certificate);
    put(
        "attest_quote",
        "emulated",
        &machine.quote(&[0; 64]).expect("it is quoted"),
    );
    let policy = "insecure_allow_emulated = true\n[[accept]]\nmrenclave = \"00\"\nrootfs = []\n\
                  command = [\"x\"]\n[tcb]\naccept = [{ status = \"OutOfDate\", until = \"2027-01-31\" }]\n\
                  advisories = []\n[platform]\nfmspc = [\"00a067110000\"]\n";
    put("attest_policy", "all", policy.as_bytes());
    put(
        "manifest",
        "all",
        b"entrypoint = [\"x\"]\n[environment]\nA = { host = true }\n",
    );
}

/// A time inside the validity of the real collateral.
const NOW: u64 = 1_751_328_000;

fn main() {
    attestation();
    let corpus = Path::new("corpus/erofs");
    fs::create_dir_all(corpus).expect("the directory can be made");
    for number in 0..4u64 {
        let mut builder = Builder::new();
        let xattrs = BTreeMap::from([(b"security.capability".to_vec(), vec![1; 20])]);
        let rich = Attributes {
            xattrs,
            uid: 70_000,
            ..Attributes::default()
        };
        let plain = Attributes::default;
        builder
            .add_dir(b"files", if number & 1 == 0 { plain() } else { rich })
            .expect("valid");
        for size in [0, 5, 5000] {
            let name = format!("files/{size}");
            let content = vec![b'x'; size];
            let added = builder.add_file(
                name.as_bytes(),
                plain(),
                size as u64,
                &mut content.as_slice(),
            );
            added.expect("valid");
        }
        builder
            .add_symlink(b"link", plain(), b"files/5")
            .expect("valid");
        builder
            .add_special(b"pipe", plain(), Special::Fifo)
            .expect("valid");
        if number & 2 != 0 {
            let mut sparse = vec![0; 1 << 20];
            sparse[70_000] = 1;
            let size = sparse.len() as u64;
            builder
                .add_file(b"sparse", plain(), size, &mut sparse.as_slice())
                .expect("valid");
            for index in 0..60 {
                let name = format!("many/{index}-{}", "n".repeat(90));
                builder
                    .add_special(name.as_bytes(), plain(), Special::Socket)
                    .expect("valid");
            }
        }
        let path = corpus.join(format!("seed-{number}"));
        let out = File::create(&path).expect("the seed can be written");
        builder.finish(out).expect("the seed can be built");
    }
}
