//! `bulla doctor`: which platform this machine offers, and why, in words with remedies.

use crate::args::DoctorArguments;
use crate::doctor_attestation::Surroundings;
use crate::failure::Failure;
use crate::platform::ENCLAVE_DEVICE;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::path::Path;

/// ELRANGE of the dynamic layout, which must fit into the address space.
const RANGE: u64 = bulla_abi::layout::LayoutKind::Dynamic.elrange_size();

/// How a finding bears on a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Worth knowing; works without.
    Note,
    /// The platform cannot be used.
    Missing,
}

#[derive(Debug, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub level: Level,
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    pub fn ok(name: &'static str, what: impl Into<String>) -> Finding {
        Finding {
            name,
            level: Level::Ok,
            what: what.into(),
            remedy: None,
        }
    }

    pub fn with(
        name: &'static str,
        level: Level,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding {
            name,
            level,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    #[cfg(test)]
    pub fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }
}

#[derive(Debug, Serialize)]
struct Report {
    /// What `--platform auto` uses: "hardware", "emulated" or "none".
    platform: &'static str,
    /// The layout it uses there.
    layout: &'static str,
    reason: String,
    hardware: Vec<Finding>,
    emulated: Vec<Finding>,
    machine: Vec<Finding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attestation: Vec<Finding>,
}

/// Runs the command: exit code 0 when containers can run here, else 1.
pub fn run(arguments: &DoctorArguments) -> Result<u8, Failure> {
    let mut report = examine(&Machine::this());
    report.attestation =
        crate::doctor_attestation::examine(&Surroundings::this(report.platform == "hardware"));
    if arguments.json {
        crate::print_json(&report)?;
    } else {
        crate::print(&report.to_string())?;
    }
    Ok(u8::from(report.platform == "none"))
}

/// What is looked at; separate from the conclusions, so that they can be tested.
#[derive(Clone, Debug, Default)]
struct Machine {
    cpu: String,
    hypervisor: bool,
    /// CPUID leaf 7 says SGX.
    sgx: bool,
    /// CPUID leaf 12H: SGX1, SGX2, EXINFO; and the largest enclave as a power of two.
    sgx1: bool,
    sgx2: bool,
    exinfo: bool,
    enclave_bits: u8,
    /// Flexible launch control.
    launch_control: bool,
    sha: bool,
    aes: bool,
    rdrand: bool,
    avx: bool,
    /// Opening the device: `None` worked.
    enclave_device: Option<ErrorKind>,
    provision_device: bool,
    kernel: (u32, u32),
    fsgsbase: bool,
    address_space_limit: Option<u64>,
    mmap_min_addr: u64,
    overcommit: u32,
    memory_kib: u64,
    cpus: usize,
    seccomp: bool,
}

impl Machine {
    fn this() -> Machine {
        let cpuid = raw_cpuid::CpuId::new();
        let extended = cpuid.get_extended_feature_info();
        let features = cpuid.get_feature_info();
        let sgx = extended.as_ref().is_some_and(|info| info.has_sgx());
        let leaf = sgx.then(|| cpuid.get_sgx_info()).flatten();
        let brand = cpuid.get_processor_brand_string();
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .open(ENCLAVE_DEVICE);
        let limit = rustix::process::getrlimit(rustix::process::Resource::As);
        let (_, hwcap2) = rustix::param::linux_hwcap();
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        Machine {
            cpu: brand.map_or("unknown CPU".into(), |brand| {
                brand.as_str().trim().to_owned()
            }),
            hypervisor: features.as_ref().is_some_and(|info| info.has_hypervisor()),
            sgx,
            sgx1: leaf.as_ref().is_some_and(|info| info.has_sgx1()),
            sgx2: leaf.as_ref().is_some_and(|info| info.has_sgx2()),
            exinfo: leaf.as_ref().is_some_and(|info| info.miscselect() & 1 != 0),
            enclave_bits: leaf
                .as_ref()
                .map_or(0, |info| info.max_enclave_size_64bit()),
            launch_control: extended.as_ref().is_some_and(|info| info.has_sgx_lc()),
            sha: extended.as_ref().is_some_and(|info| info.has_sha()),
            aes: features
                .as_ref()
                .is_some_and(|f| f.has_aesni() && f.has_pclmulqdq()),
            rdrand: features.as_ref().is_some_and(|info| info.has_rdrand()),
            avx: features.as_ref().is_some_and(|info| info.has_avx()),
            enclave_device: open.err().map(|error| error.kind()),
            provision_device: Path::new("/dev/sgx_provision").exists(),
            kernel: kernel_version(&release),
            // AT_HWCAP2 bit 1 (HWCAP2_FSGSBASE).
            fsgsbase: hwcap2 & 2 != 0,
            address_space_limit: limit.current,
            mmap_min_addr: number("/proc/sys/vm/mmap_min_addr").unwrap_or(0),
            overcommit: number("/proc/sys/vm/overcommit_memory").unwrap_or(0) as u32,
            memory_kib: memory_kib(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
        }
    }
}

/// Major and minor number; zeros when the text is odd.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut parts = release
        .split(['.', '-', '+'])
        .map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn number(path: &str) -> Option<u64> {
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(64)
        .read_to_string(&mut text)
        .ok()?;
    text.trim().parse().ok()
}

fn memory_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let value = line.and_then(|line| line.split_whitespace().nth(1));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

fn examine(machine: &Machine) -> Report {
    let hardware = hardware(machine);
    let emulated = emulated(machine);
    let usable = |findings: &[Finding]| findings.iter().all(|f| f.level != Level::Missing);
    let first_missing = |findings: &[Finding]| {
        let missing = findings
            .iter()
            .find(|finding| finding.level == Level::Missing);
        missing.map_or(String::new(), |finding| finding.what.clone())
    };
    let edmm = machine.sgx2 && machine.kernel >= (6, 0);
    let (platform, layout, reason) = if usable(&hardware) {
        let layout = if edmm { "dynamic" } else { "static" };
        ("hardware", layout, "SGX works here".to_owned())
    } else if usable(&emulated) {
        let reason = format!("no SGX: {}", first_missing(&hardware));
        ("emulated", "dynamic", reason)
    } else {
        let reason = format!(
            "no SGX: {}; no emulation either: {}",
            first_missing(&hardware),
            first_missing(&emulated)
        );
        ("none", "none", reason)
    };
    Report {
        platform,
        layout,
        reason,
        hardware,
        emulated,
        machine: common(machine),
        attestation: Vec::new(),
    }
}

fn hardware(machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(if machine.sgx && machine.sgx1 {
        Finding::ok(
            "cpu-sgx",
            "the CPU has SGX and the firmware has turned it on",
        )
    } else if machine.sgx {
        Finding::with(
            "cpu-sgx",
            Level::Missing,
            "the CPU has SGX, but the firmware has not turned it on",
            "turn SGX on in the firmware set-up (BIOS), with memory reserved for it (PRMRR)",
        )
    } else if machine.hypervisor {
        Finding::with(
            "cpu-sgx",
            Level::Missing,
            "the CPU of this virtual machine has no SGX",
            "take a machine type with SGX (Azure DCsv2, DCsv3, DCdsv3), or give the virtual \
             machine SGX (QEMU: -cpu host,+sgx and an EPC memory backend)",
        )
    } else {
        Finding::with(
            "cpu-sgx",
            Level::Missing,
            "the CPU has no SGX",
            "take a server CPU with SGX (Intel Xeon Scalable of the 3rd generation or later)",
        )
    });
    if machine.sgx {
        let dynamic = "memory and threads can be added while an enclave runs (dynamic layout)";
        findings.push(match (machine.sgx2, machine.kernel >= (6, 0)) {
            (true, true) => Finding::ok("edmm", format!("EDMM: {dynamic}")),
            (true, false) => Finding::with(
                "edmm",
                Level::Note,
                "the CPU has EDMM, but this kernel does not use it: static layout only",
                "boot Linux 6.0 or newer",
            ),
            (false, _) => Finding::with(
                "edmm",
                Level::Note,
                "the CPU has no EDMM (SGX2): static layout only",
                "give --memory and --threads, all of which is added at start",
            ),
        });
        findings.push(match machine.exinfo {
            true => Finding::ok(
                "exinfo",
                "the CPU reports addresses of page faults (EXINFO)",
            ),
            false => Finding::with(
                "exinfo",
                Level::Note,
                "the CPU does not report addresses of page faults (EXINFO): programs that handle \
                 SIGSEGV end instead",
                "use --insecure-host-faults if the program needs them",
            ),
        });
        if !machine.launch_control {
            findings.push(Finding::with(
                "flc",
                Level::Missing,
                "no flexible launch control: Linux does not start enclaves on this CPU",
                "take a CPU with FLC, and unlock it in the firmware",
            ));
        }
        if machine.enclave_bits != 0 && machine.enclave_bits < 36 {
            findings.push(Finding::with(
                "enclave-size",
                Level::Missing,
                format!(
                    "enclaves can have 2^{} bytes, bulla needs 2^36",
                    machine.enclave_bits
                ),
                "take a newer CPU",
            ));
        }
    }
    findings.push(match machine.enclave_device {
        None => Finding::ok("device", format!("{ENCLAVE_DEVICE} can be opened")),
        Some(ErrorKind::PermissionDenied) => Finding::with(
            "device",
            Level::Missing,
            format!("{ENCLAVE_DEVICE} is there, but this user may not open it"),
            "add the user to the group of the device (usually `sgx`), and mount /dev with exec",
        ),
        Some(ErrorKind::NotFound) if machine.kernel >= (5, 11) => Finding::with(
            "device",
            Level::Missing,
            format!("there is no {ENCLAVE_DEVICE}"),
            "in a container pass the device in (--device /dev/sgx_enclave); else look for SGX in \
             `dmesg`, the kernel needs CONFIG_X86_SGX",
        ),
        Some(ErrorKind::NotFound) => Finding::with(
            "device",
            Level::Missing,
            format!("there is no {ENCLAVE_DEVICE}: this kernel has no SGX driver"),
            "boot Linux 5.11 or newer",
        ),
        Some(other) => Finding::with(
            "device",
            Level::Missing,
            format!("{ENCLAVE_DEVICE} cannot be opened ({other})"),
            "look for SGX in `dmesg`",
        ),
    });
    if machine.sgx && !machine.provision_device {
        findings.push(Finding::with(
            "provision",
            Level::Note,
            "there is no /dev/sgx_provision: no quotes, so nobody can verify enclaves remotely",
            "in a container pass it in (--device /dev/sgx_provision)",
        ));
    }
    findings
}

fn emulated(machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(if machine.kernel >= (5, 11) {
        Finding::ok(
            "dispatch",
            "Syscall User Dispatch: the kernel hands system calls back",
        )
    } else if machine.seccomp {
        Finding::with(
            "dispatch",
            Level::Note,
            "no Syscall User Dispatch before Linux 5.11: seccomp is used, a little slower",
            "boot Linux 5.11 or newer",
        )
    } else {
        Finding::with(
            "dispatch",
            Level::Missing,
            "neither Syscall User Dispatch nor seccomp: system calls cannot be caught",
            "boot Linux 5.11 or newer, or allow seccomp in this container",
        )
    });
    findings.push(match machine.fsgsbase {
        true => Finding::ok("fsgsbase", "FSGSBASE instructions are enabled"),
        false => Finding::with(
            "fsgsbase",
            Level::Missing,
            "FSGSBASE instructions are not enabled",
            "boot Linux 5.9 or newer on a CPU that has them, without `nofsgsbase`",
        ),
    });
    findings.push(match machine.rdrand {
        true => Finding::ok(
            "rdrand",
            "RDRAND: the enclave has a source of randomness of its own",
        ),
        false => Finding::with(
            "rdrand",
            Level::Missing,
            "no RDRAND: an enclave has no other source of randomness",
            "take a CPU of 2013 or later; in a virtual machine pass RDRAND through",
        ),
    });
    findings.push(match machine.address_space_limit {
        Some(limit) if limit < RANGE + (RANGE >> 4) => Finding::with(
            "address-space",
            Level::Missing,
            format!(
                "the limit on address space (ulimit -v, {} GiB) is too small for an enclave's range \
                 of 1 TiB",
                limit >> 30
            ),
            "run `ulimit -v unlimited` first; sanitizers (ASan) take the range, build without",
        ),
        _ => Finding::ok("address-space", "an enclave's range of 1 TiB can be reserved"),
    });
    findings.push(if machine.mmap_min_addr <= 64 << 10 {
        Finding::ok(
            "low-memory",
            "low addresses can be mapped (programs linked at 0x400000 work)",
        )
    } else {
        Finding::with(
            "low-memory",
            Level::Missing,
            format!(
                "vm.mmap_min_addr is {}, above 64 KiB",
                machine.mmap_min_addr
            ),
            "run `sysctl vm.mmap_min_addr=65536`",
        )
    });
    findings.push(match machine.overcommit {
        2 => Finding::with(
            "overcommit",
            Level::Note,
            "vm.overcommit_memory is 2: large reservations of programs may fail",
            "run `sysctl vm.overcommit_memory=0` if a container ends for lack of memory",
        ),
        _ => Finding::ok("overcommit", "large reservations are allowed"),
    });
    findings
}

fn common(machine: &Machine) -> Vec<Finding> {
    let (major, minor) = machine.kernel;
    let mut findings = vec![
        Finding::ok("cpu", format!("{}, {} usable", machine.cpu, machine.cpus)),
        Finding::ok("kernel", format!("Linux {major}.{minor}")),
        match machine.memory_kib {
            0 => Finding::with(
                "memory",
                Level::Note,
                "unknown: there is no /proc/meminfo",
                "mount -t proc proc /proc",
            ),
            available => Finding::ok(
                "memory",
                format!("{:.1} GiB available", available as f64 / 1048576.0),
            ),
        },
    ];
    findings.push(match machine.sha {
        true => Finding::ok("sha", "SHA instructions: files are verified at full speed"),
        false => Finding::with(
            "sha",
            Level::Note,
            "no SHA instructions: reading files the first time is several times slower",
            "none but another CPU",
        ),
    });
    findings.push(match machine.aes {
        true => Finding::ok("aes", "AES and PCLMUL instructions"),
        false => Finding::with(
            "aes",
            Level::Note,
            "no AES instructions: encryption is slow",
            "none but another CPU",
        ),
    });
    if !machine.avx {
        findings.push(Finding::with(
            "avx",
            Level::Note,
            "no AVX: programs see a CPU without it",
            "none but another CPU",
        ));
    }
    findings
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.platform {
            "none" => writeln!(f, "Containers cannot run here.")?,
            platform => writeln!(f, "Platform: {platform} ({} layout)", self.layout)?,
        }
        writeln!(f, "Why: {}", self.reason)?;
        if self.platform == "emulated" {
            writeln!(
                f,
                "Emulated enclaves keep nothing secret: for development and tests only."
            )?;
        }
        for (title, findings) in [
            ("Hardware (SGX)", &self.hardware),
            ("Emulation", &self.emulated),
            ("Machine", &self.machine),
            ("Attestation", &self.attestation),
        ] {
            if findings.is_empty() {
                continue;
            }
            writeln!(f, "\n{title}")?;
            for finding in findings {
                let mark = match finding.level {
                    Level::Ok => "ok     ",
                    Level::Note => "note   ",
                    Level::Missing => "missing",
                };
                writeln!(f, "  {mark}  {}", finding.what)?;
                if let Some(remedy) = &finding.remedy {
                    writeln!(f, "           -> {remedy}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn azure() -> Machine {
        Machine {
            sgx: true,
            sgx1: true,
            sgx2: true,
            exinfo: true,
            enclave_bits: 56,
            launch_control: true,
            rdrand: true,
            fsgsbase: true,
            kernel: (6, 8),
            mmap_min_addr: 65536,
            ..Machine::default()
        }
    }

    #[test]
    fn an_azure_machine() {
        let report = examine(&azure());
        assert_eq!((report.platform, report.layout), ("hardware", "dynamic"));
        let report = examine(&Machine {
            kernel: (5, 15),
            ..azure()
        });
        assert_eq!((report.platform, report.layout), ("hardware", "static"));
    }

    #[test]
    fn in_a_container_without_the_device() {
        let report = examine(&Machine {
            enclave_device: Some(ErrorKind::NotFound),
            ..azure()
        });
        assert_eq!(report.platform, "emulated");
        assert!(
            report.reason.contains("/dev/sgx_enclave"),
            "{}",
            report.reason
        );
        assert!(report.to_string().contains("--device /dev/sgx_enclave"));
    }

    #[test]
    fn a_machine_without_anything() {
        let report = examine(&Machine {
            enclave_device: Some(ErrorKind::NotFound),
            ..Machine::default()
        });
        assert_eq!(report.platform, "none");
        for finding in report.hardware.iter().chain(&report.emulated) {
            assert_eq!(
                finding.level == Level::Ok,
                finding.remedy.is_none(),
                "{finding:?}"
            );
        }
    }

    #[test]
    fn limits_on_address_space() {
        let report = examine(&Machine {
            enclave_device: Some(ErrorKind::NotFound),
            address_space_limit: Some(8 << 30),
            ..azure()
        });
        assert_eq!(report.platform, "none");
        assert!(report.to_string().contains("ulimit -v unlimited"));
    }

    #[test]
    fn versions() {
        assert_eq!(kernel_version("6.18.0-rc1+"), (6, 18));
        assert_eq!(kernel_version("5.15-azure"), (5, 15));
        assert_eq!(kernel_version("odd"), (0, 0));
    }
}
