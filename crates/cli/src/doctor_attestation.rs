//! The part of `bulla doctor` about attestation: quoting service, provisioning, collateral, clock.
//!
//! Sensible on a machine with nothing at all: then emulated quotes are all there is, and it says so.

use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use bulla_attest::{Aesm, Collateral, date};

use crate::doctor::{Finding, Level};
use crate::quoter::now;
use crate::state::State;

/// Where Intel's quote provider library keeps the address of its PCCS.
const PROVIDER_SETTINGS: &str = "/etc/sgx_default_qcnl.conf";
const LIBRARY_DIRECTORIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/opt/intel/sgxsdk/lib64",
];
/// The clock cannot be before this was written (1 October 2025).
const WRITTEN: u64 = 1_759_276_800;

/// What was found.
pub fn examine(hardware: bool) -> Vec<Finding> {
    let mut findings = vec![service(hardware)];
    findings.extend(libraries());
    findings.extend(pod());
    findings.extend(cpu());
    findings.push(provider());
    findings.push(cache());
    findings.push(clock());
    findings
}

/// AESM answers, and has a key.
fn service(hardware: bool) -> Finding {
    let name = "quoting service";
    let aesm = Aesm::of_machine().with_timeout(Duration::from_secs(3));
    if !aesm.socket().exists() {
        let level = if hardware {
            Level::Missing
        } else {
            Level::Note
        };
        let what = format!("there is no AESM at {}", aesm.socket().display());
        let remedy = if hardware {
            "apt-get install sgx-aesm-service libsgx-aesm-ecdsa-plugin libsgx-aesm-quote-ex-plugin; \
             in a pod mount /var/run/aesmd"
        } else {
            "nothing to do: emulated enclaves are quoted by bulla itself"
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

/// Intel's libraries, which AESM needs on this machine (bulla does not).
fn libraries() -> Option<Finding> {
    let missing: Vec<&str> = ["libsgx_dcap_ql.so.1", "libdcap_quoteprov.so.1"]
        .into_iter()
        .filter(|library| {
            !LIBRARY_DIRECTORIES
                .iter()
                .any(|directory| Path::new(directory).join(library).exists())
        })
        .collect();
    let here = Path::new(bulla_attest::AESM_SOCKET).exists();
    match (missing.is_empty(), here) {
        (true, _) => Some(Finding::ok("quote libraries", "installed")),
        (false, true) => Some(Finding::with(
            "quote libraries",
            Level::Note,
            format!("not here: {}", missing.join(", ")),
            "where AESM runs: apt-get install libsgx-dcap-ql libsgx-dcap-default-qpl",
        )),
        (false, false) => None,
    }
}

/// What a Kubernetes pod must ask for.
fn pod() -> Option<Finding> {
    std::env::var_os("KUBERNETES_SERVICE_HOST")?;
    if Path::new(crate::platform::ENCLAVE_DEVICE).exists() {
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

/// The PCCS that the machine's provider library uses, and whether it can be reached.
fn provider() -> Finding {
    let name = "collateral service";
    let Ok(text) = fs::read_to_string(PROVIDER_SETTINGS) else {
        return Finding::with(
            name,
            Level::Note,
            format!("there is no {PROVIDER_SETTINGS}; Intel's service is used"),
            "name a PCCS with --pccs URL, on Azure use --azure, offline --collateral DIR",
        );
    };
    let Some(address) = address(&text) else {
        return Finding::with(
            name,
            Level::Note,
            format!("{PROVIDER_SETTINGS} names no pccs_url"),
            "set \"pccs_url\" in it",
        );
    };
    let connected = address.to_socket_addrs().ok().and_then(|mut addresses| {
        addresses
            .find(|address| TcpStream::connect_timeout(address, Duration::from_secs(3)).is_ok())
    });
    match connected {
        Some(_) => Finding::ok(name, format!("{address} can be reached")),
        None => Finding::with(
            name,
            Level::Note,
            format!("{address} cannot be reached"),
            format!(
                "check the address in {PROVIDER_SETTINGS}, the network, and that the PCCS runs"
            ),
        ),
    }
}

/// `host:port` of `"pccs_url": "https://host:port/…"`.
fn address(settings: &str) -> Option<String> {
    let line = settings.lines().map(str::trim_start).find(|line| {
        line.contains("pccs_url") && !line.starts_with("//") && !line.starts_with('#')
    })?;
    let url = line.split("://").nth(1)?;
    let authority: &str = url.split(['/', '"', '\'', ' ', ',']).next()?;
    let named = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Some(if named {
        authority.to_string()
    } else {
        format!("{authority}:443")
    })
}

/// Saved collateral that has run out.
fn cache() -> Finding {
    let name = "saved collateral";
    let directory = State::of_user().collateral();
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    let (mut good, mut expired) = (0, Vec::new());
    for entry in entries.take(1024) {
        let until = fs::read(entry.path())
            .ok()
            .and_then(|bytes| Collateral::from_json(&bytes).ok())
            .and_then(|collateral| collateral.next_update());
        match until {
            Some(until) if now() < until => good += 1,
            Some(until) => expired.push(format!(
                "{} ({})",
                entry.file_name().to_string_lossy(),
                date(until)
            )),
            None => {}
        }
    }
    if expired.is_empty() {
        return Finding::ok(name, format!("{good} in date in {}", directory.display()));
    }
    Finding::with(
        name,
        Level::Note,
        format!("expired: {}", expired.join(", ")),
        "it is fetched again when it is needed and the service can be reached",
    )
}

/// Certificates and collateral have dates.
fn clock() -> Finding {
    let time = now();
    if time < WRITTEN {
        return Finding::with(
            "clock",
            Level::Missing,
            format!("it says {}", date(time)),
            "set the clock: timedatectl set-ntp true",
        );
    }
    let synchronized = Path::new("/run/systemd/timesync/synchronized").exists();
    let with = if synchronized { ", synchronized" } else { "" };
    Finding::ok("clock", format!("{}{with}", date(time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_the_providers_settings() {
        let json = "{\n  // \"pccs_url\": \"https://no\"\n  \"pccs_url\": \"https://localhost:8081/sgx/certification/v4/\",\n}";
        assert_eq!(address(json).unwrap(), "localhost:8081");
        let old = "PCCS_URL=x\npccs_url=https://pccs.example/sgx";
        assert_eq!(address(old).unwrap(), "pccs.example:443");
        assert_eq!(address(""), None);
    }

    #[test]
    fn a_machine_with_nothing_gets_an_answer() {
        let findings = examine(false);
        assert!(findings.iter().any(|finding| finding.name == "clock"));
        assert!(findings.iter().all(|finding| !finding.what.is_empty()));
    }
}
