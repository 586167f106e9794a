//! The part of `bulla doctor` about attestation: quoting service, provisioning, collateral, clock.
//!
//! Sensible on a machine with nothing at all: then emulated quotes are all there is, and it says so.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bulla_attest::fetch::{AZURE, INTEL, Options, Service, Trust};
use bulla_attest::{Aesm, Collateral, date};

use crate::doctor::{Finding, Level};
use crate::quoter::now;
use crate::state::State;

/// Where Intel's quote provider library keeps the address of its PCCS.
const PROVIDER_SETTINGS: &str = "etc/sgx_default_qcnl.conf";
const LIBRARY_DIRECTORIES: [&str; 4] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "opt/intel/sgxsdk/lib64",
];
/// What makes quotes in-process, and where it gets its certificates: Intel's or Azure's.
const QUOTE_LIBRARY: &str = "libsgx_dcap_ql.so.1";
const PROVIDER_LIBRARY: &str = "libdcap_quoteprov.so.1";
/// The clock cannot be before this was written (1 October 2025).
const WRITTEN: u64 = 1_759_276_800;
/// A service that takes longer is as good as none.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is looked at; tests make up their own.
pub struct Surroundings {
    /// `/`.
    pub root: PathBuf,
    /// Enclaves are real here.
    pub hardware: bool,
    pub aesm: PathBuf,
    /// In a Kubernetes pod.
    pub pod: bool,
    /// Saved collateral.
    pub cache: PathBuf,
    pub now: u64,
}

impl Surroundings {
    pub fn this(hardware: bool) -> Surroundings {
        Surroundings {
            root: "/".into(),
            hardware,
            aesm: Aesm::of_machine().socket().to_owned(),
            pod: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
            cache: State::of_user().collateral(),
            now: now(),
        }
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

/// What was found.
pub fn examine(here: &Surroundings) -> Vec<Finding> {
    let mut findings = vec![service(here)];
    findings.extend(libraries(here));
    findings.extend(provision_device(here));
    findings.extend(pod(here));
    findings.extend(cpu());
    findings.extend(provider(here));
    findings.push(cache(here));
    findings.push(clock(here));
    findings
}

/// AESM answers, and has a key.
fn service(here: &Surroundings) -> Finding {
    let name = "quoting service";
    let aesm = Aesm::at(&here.aesm).with_timeout(PATIENCE);
    if !aesm.socket().exists() {
        let level = if here.hardware {
            Level::Missing
        } else {
            Level::Note
        };
        let what = format!("there is no AESM at {}", aesm.socket().display());
        let remedy = match (here.hardware, library(here, QUOTE_LIBRARY)) {
            (false, _) => "nothing to do: emulated enclaves are quoted by bulla itself",
            (true, true) => {
                "apt-get install sgx-aesm-service libsgx-aesm-ecdsa-plugin \
                 libsgx-aesm-quote-ex-plugin; in a pod mount /var/run/aesmd; or let \
                 bulla-quote-helper serve the quote library that is installed"
            }
            (true, false) => {
                "apt-get install sgx-aesm-service libsgx-aesm-ecdsa-plugin \
                 libsgx-aesm-quote-ex-plugin; in a pod mount /var/run/aesmd (AKS: \
                 the confcom add-on with the quote helper)"
            }
        };
        return Finding::with(name, level, what, remedy);
    }
    match aesm.target_info() {
        Ok(_) => Finding::ok(name, "AESM answers and has an ECDSA key"),
        Err(error) => Finding::with(
            name,
            Level::Missing,
            error.to_string(),
            "systemctl restart aesmd; journalctl -u aesmd",
        ),
    }
}

fn library(here: &Surroundings, name: &str) -> bool {
    LIBRARY_DIRECTORIES
        .iter()
        .any(|directory| here.has(&format!("{directory}/{name}")))
}

/// Intel's libraries, which AESM needs on this machine (bulla does not).
fn libraries(here: &Surroundings) -> Option<Finding> {
    let missing: Vec<&str> = [QUOTE_LIBRARY, PROVIDER_LIBRARY]
        .into_iter()
        .filter(|name| !library(here, name))
        .collect();
    match (missing.is_empty(), here.hardware || here.aesm.exists()) {
        (true, _) => Some(Finding::ok("quote libraries", "installed")),
        (false, true) => Some(Finding::with(
            "quote libraries",
            Level::Note,
            format!("not here: {}", missing.join(", ")),
            "where AESM runs: apt-get install libsgx-dcap-ql libsgx-dcap-default-qpl (on Azure \
             az-dcap-client instead of the latter)",
        )),
        (false, false) => None,
    }
}

/// Only the quoting service needs it; where it runs elsewhere it may be missing.
fn provision_device(here: &Surroundings) -> Option<Finding> {
    if !here.hardware || here.has("dev/sgx_provision") || here.aesm.exists() {
        return None;
    }
    Some(Finding::with(
        "provisioning device",
        Level::Note,
        "there is no /dev/sgx_provision, which a quoting service on this machine opens",
        "in a container pass it in (--device /dev/sgx_provision; in a pod the device plugin's \
         sgx.intel.com/provision: 1)",
    ))
}

/// What a Kubernetes pod must ask for.
fn pod(here: &Surroundings) -> Option<Finding> {
    if !here.pod {
        return None;
    }
    if here.has("dev/sgx_enclave") {
        return Some(Finding::ok(
            "device plugin",
            "the pod has the enclave device",
        ));
    }
    Some(Finding::with(
        "device plugin",
        Level::Note,
        "this pod has no enclave device",
        "resources: limits: sgx.intel.com/epc: 64Mi (AKS: enable the confcom add-on)",
    ))
}

/// KSS and the size of the enclave page cache.
fn cpu() -> Vec<Finding> {
    let Some(info) = raw_cpuid::CpuId::new().get_sgx_info() else {
        return Vec::new();
    };
    let mut bytes = 0;
    for section in info.iter() {
        let raw_cpuid::SgxSectionInfo::Epc(section) = section;
        bytes += section.size();
    }
    let (attributes, _) = info.secs_attributes();
    let kss = attributes & bulla_sgx::flags::KSS != 0;
    let mut findings = vec![Finding::ok(
        "KSS",
        if kss {
            "offered"
        } else {
            "not offered; nothing here needs it"
        },
    )];
    findings.push(if bytes == 0 {
        Finding::with(
            "EPC",
            Level::Note,
            "the BIOS reserves no memory for enclaves",
            "raise PRMRR in the BIOS",
        )
    } else {
        Finding::ok("EPC", format!("{} MiB", bytes >> 20))
    });
    findings
}

/// The service that the machine's provider library uses, and whether it answers as one. Without
/// SGX nobody here needs it, and nothing is asked.
fn provider(here: &Surroundings) -> Vec<Finding> {
    let name = "collateral service";
    let path = here.root.join(PROVIDER_SETTINGS);
    let settings = fs::read_to_string(&path).ok();
    let (base, trust, hint) = match settings.as_deref().map(base) {
        Some(Some(base)) => {
            let any = settings.is_some_and(|text| insecure(&text));
            let trust = if any {
                Trust::InsecureAny
            } else {
                Trust::System
            };
            let hint = format!(
                "check the address in /{PROVIDER_SETTINGS}, the network, and that the service \
                 runs; a PCCS with a certificate of its own needs \"use_secure_cert\": false"
            );
            (base, trust, hint)
        }
        Some(None) => {
            return vec![Finding::with(
                name,
                Level::Note,
                format!("/{PROVIDER_SETTINGS} names no pccs_url"),
                "set \"pccs_url\" in it",
            )];
        }
        None if here.hardware => {
            let hint = format!(
                "let this machine reach it, name a PCCS with --pccs URL, on Azure use --azure \
                 ({AZURE}), offline --collateral DIR"
            );
            (INTEL.into(), Trust::System, hint)
        }
        None => {
            return vec![Finding::with(
                name,
                Level::Note,
                format!("there is no /{PROVIDER_SETTINGS}; `bulla verify` asks Intel's service"),
                "name a PCCS with --pccs URL, on Azure use --azure, offline --collateral DIR",
            )];
        }
    };
    let service = Service::new(Options {
        trust,
        ..Options::new(&base, PATIENCE)
    });
    vec![match service.and_then(|service| service.probe()) {
        Ok(()) => Finding::ok(name, format!("{base} answers")),
        Err(error) => Finding::with(name, Level::Note, error.to_string(), hint),
    }]
}

/// A setting of Intel's quote provider library: JSON with comments, or lines of `NAME=value`.
fn setting<'a>(settings: &'a str, name: &str) -> Option<&'a str> {
    settings.lines().map(str::trim_start).find_map(|line| {
        if line.starts_with("//") || line.starts_with('#') {
            return None;
        }
        let rest = line.trim_start_matches('"');
        let rest = rest
            .get(..name.len())
            .filter(|start| start.eq_ignore_ascii_case(name))
            .and(rest.get(name.len()..))?;
        let value = rest.trim_start_matches('"').trim_start();
        let value = value.strip_prefix([':', '='])?.trim();
        Some(value.trim_end_matches(',').trim().trim_matches(['"', '\'']))
    })
}

/// `https://host:port` and the path before `/sgx/certification` of the PCCS.
fn base(settings: &str) -> Option<String> {
    let url = setting(settings, "pccs_url")?;
    let base = url.split("/sgx/certification").next()?;
    base.contains("://")
        .then(|| base.trim_end_matches('/').to_string())
}

/// Whether any certificate of the PCCS is good enough.
fn insecure(settings: &str) -> bool {
    setting(settings, "use_secure_cert").is_some_and(|value| value.eq_ignore_ascii_case("false"))
}

/// Saved collateral that has run out.
fn cache(here: &Surroundings) -> Finding {
    let name = "saved collateral";
    let directory = &here.cache;
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let (mut good, mut expired) = (0, Vec::new());
    for entry in entries.take(1024) {
        let until = fs::read(entry.path())
            .ok()
            .and_then(|bytes| Collateral::from_json(&bytes).ok())
            .and_then(|collateral| collateral.next_update());
        match until {
            Some(until) if here.now < until => good += 1,
            Some(until) => expired.push(format!(
                "{} ({})",
                entry.file_name().to_string_lossy(),
                date(until)
            )),
            None => {}
        }
    }
    if expired.is_empty() {
        let directory = directory.display();
        return Finding::ok(
            name,
            match good {
                0 => format!("no saved collateral in {directory} yet"),
                _ => format!("saved collateral of {good} platforms is in date in {directory}"),
            },
        );
    }
    Finding::with(
        name,
        Level::Note,
        format!("expired: {}", expired.join(", ")),
        "it is fetched again when it is needed and the service can be reached",
    )
}

/// Certificates and collateral have dates.
fn clock(here: &Surroundings) -> Finding {
    let time = here.now;
    if time < WRITTEN {
        return Finding::with(
            "clock",
            Level::Missing,
            format!("it says {}", date(time)),
            "set the clock: timedatectl set-ntp true",
        );
    }
    let synchronized = here.has("run/systemd/timesync/synchronized");
    let with = if synchronized { ", synchronized" } else { "" };
    Finding::ok("clock", format!("{}{with}", date(time)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    #[test]
    fn addresses_are_found_in_the_providers_settings() {
        let json = "{\n  // \"pccs_url\": \"https://no\"\n  \"pccs_url\": \"https://localhost:8081/sgx/certification/v4/\",\n  \"use_secure_cert\": false,\n}";
        assert_eq!(base(json).unwrap(), "https://localhost:8081");
        assert!(insecure(json));
        let old = "#PCCS_URL=https://no\nPCCS_URL=https://pccs.example/sgx/certification/v3/\nUSE_SECURE_CERT=TRUE";
        assert_eq!(base(old).unwrap(), "https://pccs.example");
        assert!(!insecure(old));
        let local = "\"pccs_url\": \"http://169.254.169.254/metadata/THIM/sgx/certification/v4/\"";
        assert_eq!(base(local).unwrap(), "http://169.254.169.254/metadata/THIM");
        for nothing in ["", "pccs_url", "\"pccs_url\": 1", "pccs_url_x=https://x"] {
            assert_eq!(base(nothing), None, "{nothing}");
        }
    }

    struct MadeUp(tempfile::TempDir);

    impl MadeUp {
        fn new() -> MadeUp {
            MadeUp(tempfile::tempdir().unwrap())
        }

        fn file(&self, path: &str, content: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn surroundings(&self, hardware: bool) -> Surroundings {
            Surroundings {
                root: self.0.path().into(),
                hardware,
                aesm: self.0.path().join("aesm.socket"),
                pod: false,
                cache: self.0.path().join("cache"),
                now: WRITTEN + 1,
            }
        }
    }

    fn level(findings: &[Finding], name: &str) -> Option<Level> {
        findings
            .iter()
            .find(|finding| finding.name == name)
            .map(|finding| finding.level)
    }

    /// Every complaint says what to do.
    fn check(findings: &[Finding]) {
        for finding in findings {
            assert!(!finding.what.is_empty(), "{finding:?}");
            assert_eq!(
                finding.level == Level::Ok,
                finding.remedy().is_none(),
                "{finding:?}"
            );
        }
    }

    #[test]
    fn a_machine_with_nothing_gets_an_answer_and_no_alarm() {
        let findings = examine(&MadeUp::new().surroundings(false));
        check(&findings);
        assert!(
            findings
                .iter()
                .all(|finding| finding.level != Level::Missing)
        );
        assert_eq!(level(&findings, "quote libraries"), None);
        assert_eq!(level(&findings, "device plugin"), None);
        assert_eq!(level(&findings, "clock"), Some(Level::Ok));
    }

    #[test]
    fn hardware_without_a_quoting_service_is_told_so() {
        let place = MadeUp::new();
        place.file(
            PROVIDER_SETTINGS,
            "{ \"pccs_url\": \"http://127.0.0.1:1/sgx/certification/v4/\" }"
                .replace("{ ", "{\n")
                .as_str(),
        );
        let here = place.surroundings(true);
        let findings = examine(&here);
        check(&findings);
        assert_eq!(level(&findings, "quoting service"), Some(Level::Missing));
        assert_eq!(level(&findings, "quote libraries"), Some(Level::Note));
        assert_eq!(level(&findings, "provisioning device"), Some(Level::Note));
        assert_eq!(level(&findings, "collateral service"), Some(Level::Note));
        for library in [QUOTE_LIBRARY, PROVIDER_LIBRARY] {
            place.file(&format!("usr/lib/x86_64-linux-gnu/{library}"), "");
        }
        place.file("dev/sgx_provision", "");
        let findings = examine(&here);
        check(&findings);
        assert_eq!(level(&findings, "quote libraries"), Some(Level::Ok));
        assert_eq!(level(&findings, "provisioning device"), None);
    }

    #[test]
    fn a_quoting_service_that_does_not_answer_is_named() {
        let place = MadeUp::new();
        let here = place.surroundings(false);
        let listener = UnixListener::bind(&here.aesm).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                drop(stream);
            }
        });
        let findings = examine(&here);
        check(&findings);
        assert_eq!(level(&findings, "quoting service"), Some(Level::Missing));
    }

    #[test]
    fn pods_devices_and_clocks() {
        let place = MadeUp::new();
        let mut here = place.surroundings(false);
        here.pod = true;
        here.now = 1_000_000;
        let findings = examine(&here);
        check(&findings);
        assert_eq!(level(&findings, "device plugin"), Some(Level::Note));
        assert_eq!(level(&findings, "clock"), Some(Level::Missing));
        place.file("dev/sgx_enclave", "");
        assert_eq!(level(&examine(&here), "device plugin"), Some(Level::Ok));
    }

    #[test]
    fn collateral_services_are_asked_and_expired_copies_named() {
        let data = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../attest/tests/data/sgx_quote_collateral.json"
        );
        let saved = fs::read_to_string(data).unwrap();
        let list = Collateral::from_json(saved.as_bytes()).unwrap().root_ca_crl;
        let serve = |body: Vec<u8>| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request);
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    let _ = stream.write_all(head.as_bytes());
                    let _ = stream.write_all(&body);
                }
            });
            format!("PCCS_URL=http://{address}/sgx/certification/v4/\n")
        };
        let place = MadeUp::new();
        let mut here = place.surroundings(true);
        place.file(PROVIDER_SETTINGS, &serve(list));
        place.file("cache/x.json", &saved);
        here.now = WRITTEN + 1;
        let findings = examine(&here);
        check(&findings);
        assert_eq!(level(&findings, "collateral service"), Some(Level::Ok));
        assert_eq!(level(&findings, "saved collateral"), Some(Level::Note));
        place.file(
            PROVIDER_SETTINGS,
            &serve(b"<html>It works!</html>".to_vec()),
        );
        assert_eq!(
            level(&examine(&here), "collateral service"),
            Some(Level::Note)
        );
        place.file(PROVIDER_SETTINGS, "{}");
        assert_eq!(
            level(&examine(&here), "collateral service"),
            Some(Level::Note)
        );
    }
}
