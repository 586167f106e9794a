//! Writes what to start fuzzing from into seeds/ of this directory. A target like the others, so that
//! they share what is compiled; its work is done before anything is fuzzed.
#![no_main]
#![allow(unreachable_code, reason = "it exits before anything is fuzzed")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use bulla_attest::Collateral;
use bulla_attest::emulated::{Parameters, Provisioning, QuotingEnclave};
use bulla_attest::ratls::{Attester, Request, issue};
use bulla_libos::net::interfaces::check::What;
use bulla_libos::net::interfaces::message::{Header, put_attribute, put_message};
use bulla_rootfs::{Attributes, Builder, Special};

fn put(target: &str, name: &str, bytes: &[u8]) {
    let seeds = Path::new("seeds").join(target);
    fs::create_dir_all(&seeds).expect("the directory can be made");
    fs::write(seeds.join(name), bytes).expect("the seed can be written");
}

/// Real evidence, and what an emulated platform makes.
fn attestation() {
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
    let hash = "e1".repeat(32);
    let policy = format!(
        "insecure_allow_emulated = true\n[[accept]]\nmrenclave = \"{hash}\"\n[[accept]]\n\
         mrsigner = [\"{hash}\"]\nproduct_id = 1\nmin_svn = 2\n[[accept]]\nrootfs = \"{hash}\"\n\
         command = [\"x\"]\nopen = [\"user x\"]\n[[accept]]\nimage = \"sha256:{hash}\"\n[tcb]\n\
         accept = [{{ status = \"OutOfDate\", until = \"2027-01-31\" }}]\n\
         advisories = [{{ id = \"INTEL-SA-00615\" }}]\n[platform]\nfmspc = [\"00a067110000\"]\n"
    );
    put("attest_policy", "all", policy.as_bytes());
    // AESM: a length, then the answer to the first question (one key).
    put("aesm", "keys", &[6, 0, 0, 0, 0xaa, 1, 3, 8, 0, 16, 1]);
    put("aesm", "question", &[4, 0, 0, 0, 0xaa, 1, 1, 0]);
}

/// What the coordinator reads.
fn coordinator() {
    let hash = "11".repeat(32);
    let manifest = format!(
        r#"{{"Packages":{{"p":{{"UniqueID":"{hash}"}}}},
        "Marbles":{{"m":{{"Package":"p","Parameters":{{"Files":{{"/k":"{{{{ pem .Secrets.c.Private }}}}"}},
        "Env":{{"A":{{"Data":"QQ==","Encoding":"base64","NoTemplates":true}}}},"Argv":["a"]}},"TLS":["t"]}}}},
        "Secrets":{{"c":{{"Type":"cert-ecdsa","Size":256,"Shared":true,"ValidFor":7,
        "Cert":{{"Subject":{{"CommonName":"x"}},"DNSNames":["a"],"IPAddresses":["127.0.0.1"]}}}},
        "s":{{"Type":"symmetric-key","Size":128,"UserDefined":true}}}},
        "Roles":{{"r":{{"ResourceType":"Secrets","ResourceNames":["s"],"Actions":["ReadSecret"]}}}},
        "TLS":{{"t":{{"Incoming":[{{"Port":"443"}}],"Outgoing":[{{"Addr":"b","Port":"1"}}]}}}},
        "Config":{{"SealMode":"ProductKey","FeatureGates":["SignQuoteEndpoint"]}}}}"#
    );
    put("coordinator_manifest", "all", manifest.as_bytes());
    let template = "{{ define \"d\" }}{{ . }}{{ end }}{{ range $i, $s := .Secrets }}{{ if eq $i \"a\" }}\
                    {{ pem $s.Cert | printf \"%s\" }}{{ else }}{{- hex $s.Cert -}}{{ end }}{{ end }}\
                    {{ with .MarbleRun }}{{ template \"d\" 1 }}{{ base64 .RootCA.Cert }}{{ end }}";
    put("coordinator_template", "all", template.as_bytes());
    put("coordinator_policy", "bare", b"{}");
    put(
        "coordinator_policy",
        "jws",
        br#"{"payload":"e30","signatures":[{"protected":"eyJhbGciOiJFUzI1NiJ9","signature":"AAAA"}]}"#,
    );
    put(
        "coordinator_policy",
        "jwe",
        b"eyJhbGciOiJFQ0RILUVTIn0.AA.AA.AA.AA",
    );
    let requests = [
        "GET /status",
        "GET /quote",
        "GET /api/v2/quote?nonce=AAAA",
        "GET /api/v2/manifest",
        "GET /api/v2/update",
        "GET /api/v2/secrets?s=token&s=upload admin",
        "GET /api/v2/openapi.json",
        "GET /api/v2/audit admin",
        "POST /api/v2/secrets admin\n{\"token\":{\"Key\":\"QQ==\"}}",
        "POST /secrets admin\n{\"upload\":{\"Key\":\"AAAAAAAAAAAAAAAAAAAAAA==\"}}",
        "POST /api/v2/update admin\n{\"manifest\":\"eyJQYWNrYWdlcyI6eyJiYWNrZW5kIjp7IlNlY3VyaXR5VmVyc2lvbiI6Mn19fQ==\"}",
        "POST /api/v2/update-manifest admin\n{\"manifest\":\"e30=\"}",
        "POST /api/v2/update-cancel admin\n",
        "POST /api/v2/recover\n{\"recoverySecret\":\"AA==\"}",
        "POST /api/v2/sign-quote\n{\"sgxQuote\":\"AA==\"}",
        "POST /api/v2/monotonic-counter\n{\"marbleType\":\"backend\",\"marbleUUID\":\"6d3c7d1e-0b0c-4d5f-8f2a-1a2b3c4d5e6f\",\"name\":\"a\",\"value\":1}",
        "POST /api/v2/revoked admin\n{}",
        "POST /api/v2/read-requests admin\n{}",
        "POST /rpc.Marble/Activate admin\n\0\0\0\0\u{e}\n\u{1}Q\u{12}\u{1}C\u{1a}\u{1}m\"\u{1}u",
    ];
    for (number, request) in requests.iter().enumerate() {
        put("coordinator_api", &number.to_string(), request.as_bytes());
    }
}

/// Archives, programs and settings.
fn containers() {
    let manifest = "entrypoint = [\"x\"]\n[environment]\nA = { host = true }\n";
    put("manifest", "all", manifest.as_bytes());
    let mut archive = vec![0; 512 * 4];
    archive[..6].copy_from_slice(b"file.x");
    archive[100..107].copy_from_slice(b"0000644");
    archive[124..135].copy_from_slice(b"00000000005");
    archive[156] = b'0';
    archive[257..263].copy_from_slice(b"ustar\0");
    archive[148..156].fill(b' ');
    let sum: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum();
    archive[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    archive[512..517].copy_from_slice(b"hello");
    put("tar", "one", &archive);
    // The smallest program: one segment, and `syscall` in it.
    let mut program = Vec::new();
    program.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for (value, size) in [
        (2u64, 2),
        (62, 2),
        (1, 4),
        (0x40_0078, 8),
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (1, 2),
        (0, 2),
        (0, 2),
        (0, 2),
        (1, 4),
        (5, 4),
        (0, 8),
        (0x40_0000, 8),
        (0x40_0000, 8),
        (0x90, 8),
        (0x90, 8),
        (0x1000, 8),
    ] {
        program.extend(&value.to_le_bytes()[..size]);
    }
    program.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05, 0xf4, 0x0f, 0xa2, 0x0f, 0x31]);
    program.resize(0x90, 0x90);
    put("elf", "program", &program);
    put("elf", "script", b"#!/bin/sh -e\n");
}

/// Messages about an interface, its address and a route, as the host's kernel writes them.
fn network() {
    let tell = |name: &str, number: u8, what: What, fixed: &[u8], attributes: &[(u16, &[u8])]| {
        let mut body = fixed.to_vec();
        for (kind, value) in attributes {
            put_attribute(&mut body, *kind, value);
        }
        let header = Header {
            kind: what.kind(),
            flags: 2,
            sequence: 1,
            port: 0,
        };
        let mut stream = vec![number];
        put_message(&mut stream, header, &body);
        put("network", name, &stream);
    };
    let mut link = [0; 16];
    link[4] = 2;
    let known: [(u16, &[u8]); 3] = [(3, b"eth0\0"), (1, &[2; 6]), (4, &[220, 5, 0, 0])];
    tell("link", 0, What::Link, &link, &known);
    let address = [2, 24, 0, 0, 2, 0, 0, 0];
    let known: [(u16, &[u8]); 2] = [(1, &[10, 0, 0, 1]), (2, &[10, 0, 0, 1])];
    tell("address", 1, What::Address, &address, &known);
    let route = [2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    let known: [(u16, &[u8]); 2] = [(5, &[10, 0, 0, 254]), (4, &[2, 0, 0, 0])];
    tell("route", 2, What::Route, &route, &known);
}

/// A time inside the validity of the real collateral.
const NOW: u64 = 1_751_328_000;

libfuzzer_sys::fuzz_target!(
    init: {
        write();
        std::process::exit(0);
    },
    |_bytes| {}
);

fn write() {
    attestation();
    coordinator();
    containers();
    network();
    let corpus = Path::new("seeds/erofs");
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
