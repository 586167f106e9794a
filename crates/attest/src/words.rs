//! TCB statuses and advisories in words.
//!
//! Statuses are Intel's ("Get TCB Info" of the provisioning certification service). The advisories
//! are those that Intel names for SGX and TDX platforms; one that is not listed here is shown with the
//! address of Intel's page about it, and is treated like any other.

use crate::verify::Status;

/// What a status means for someone who wants to send a secret there.
pub fn meaning(status: Status) -> &'static str {
    match status {
        Status::UpToDate => "firmware and microcode have every fix that Intel has published",
        Status::SwHardeningNeeded => {
            "firmware is current; some attacks (mostly speculative execution) must be countered by the software in the enclave"
        }
        Status::ConfigurationNeeded => {
            "firmware is current; a BIOS setting (often hyper-threading or an undervolting interface) leaves a known attack open"
        }
        Status::ConfigurationAndSwHardeningNeeded => {
            "firmware is current; a BIOS setting leaves a known attack open, and others must be countered by the software in the enclave"
        }
        Status::OutOfDate => "published fixes for known attacks are not installed",
        Status::OutOfDateConfigurationNeeded => {
            "published fixes are not installed, and a BIOS setting leaves a known attack open"
        }
        Status::TdRelaunchAdvised => {
            "the platform has been updated since the virtual machine started, which runs with the old level"
        }
        Status::TdRelaunchAdvisedConfigurationNeeded => {
            "the platform has been updated since the virtual machine started, and a BIOS setting leaves a known attack open"
        }
        Status::Revoked => "the platform's keys or its level are known to be compromised",
    }
}

/// What to do about a status.
pub fn remedy(status: Status) -> &'static str {
    match status {
        Status::UpToDate => "nothing",
        Status::SwHardeningNeeded => {
            "if the advisories below are acceptable, add {status = \"SWHardeningNeeded\", until = DATE} to [tcb].accept"
        }
        Status::ConfigurationNeeded | Status::ConfigurationAndSwHardeningNeeded => {
            "change the BIOS setting (see the advisories), or accept the status in [tcb].accept with a date"
        }
        Status::OutOfDate | Status::OutOfDateConfigurationNeeded => {
            "update BIOS and microcode (on a cloud: move to an updated node pool), or accept the status in [tcb].accept with a date"
        }
        Status::TdRelaunchAdvised | Status::TdRelaunchAdvisedConfigurationNeeded => {
            "restart the virtual machine"
        }
        Status::Revoked => "do not use this machine; no policy can accept it",
    }
}

/// Advisories by number: the common name of the attack, and what it lets an attacker do. Only those
/// that this summary is sure of.
static ADVISORIES: &[(&str, &str)] = &[
    (
        "INTEL-SA-00088",
        "Spectre (bounds check bypass, branch target injection): speculation leaks memory across boundaries",
    ),
    (
        "INTEL-SA-00115",
        "Speculative Store Bypass and rogue register read: speculation leaks data",
    ),
    (
        "INTEL-SA-00161",
        "Foreshadow / L1 Terminal Fault: reads enclave memory and keys out of the cache",
    ),
    (
        "INTEL-SA-00219",
        "the integrated graphics can get at protected memory; countered by a BIOS setting",
    ),
    (
        "INTEL-SA-00220",
        "SGX and TXT: a privileged user gets more than they should",
    ),
    (
        "INTEL-SA-00233",
        "ZombieLoad / RIDL / Fallout (microarchitectural data sampling): reads data out of CPU buffers",
    ),
    (
        "INTEL-SA-00270",
        "TSX Asynchronous Abort: reads data out of CPU buffers",
    ),
    (
        "INTEL-SA-00289",
        "Plundervolt: undervolting makes enclaves compute wrong results; lock the interface in the BIOS",
    ),
    (
        "INTEL-SA-00320",
        "CrossTalk (special register buffer data sampling): reads random numbers of other cores",
    ),
    (
        "INTEL-SA-00329",
        "vector register and L1D eviction sampling (CacheOut): reads data out of CPU buffers",
    ),
    (
        "INTEL-SA-00334",
        "Load Value Injection: makes an enclave compute with the attacker's values; countered in software",
    ),
    (
        "INTEL-SA-00381",
        "vector registers can be sampled, and the fast store forwarding predictor leaks data",
    ),
    (
        "INTEL-SA-00389",
        "Platypus: power readings show what an enclave computes",
    ),
    (
        "INTEL-SA-00528",
        "a debug mode that can be switched on with physical access",
    ),
    (
        "INTEL-SA-00561",
        "fast store forwarding predictor: speculation leaks data",
    ),
    (
        "INTEL-SA-00614",
        "probing the JTAG interface, with physical access, shows secrets of enclaves",
    ),
    (
        "INTEL-SA-00615",
        "MMIO stale data: reads data out of CPU buffers by way of device memory; countered in microcode and in software",
    ),
    (
        "INTEL-SA-00617",
        "BIOS firmware: a privileged user gets more than they should",
    ),
    (
        "INTEL-SA-00657",
        "AEPIC leak: reads enclave data out of the interrupt controller; needs microcode",
    ),
    (
        "INTEL-SA-00730",
        "some Xeons of the third generation: the microcode computes keys wrongly, and data can be read",
    ),
    (
        "INTEL-SA-00738",
        "memory controller settings of some Xeons are too permissive when SGX is used",
    ),
    (
        "INTEL-SA-00767",
        "shared resources are not isolated well enough when SGX is used: data can be read",
    ),
    (
        "INTEL-SA-00828",
        "Downfall (gather data sampling): reads vector registers of others; needs microcode",
    ),
    (
        "INTEL-SA-00837",
        "errors can be injected into memory of SGX or TDX by a privileged user",
    ),
    (
        "INTEL-SA-00960",
        "Trusted Execution Configuration Register Access: BIOS or SMM firmware of some Xeons can weaken the protection of SGX and TDX",
    ),
    (
        "INTEL-SA-01036",
        "TDX module: input is not checked well enough",
    ),
    (
        "INTEL-SA-01045",
        "some Xeon D: the microcode computes keys of SGX wrongly",
    ),
    (
        "INTEL-SA-01079",
        "memory controller settings of some Xeons are too permissive when SGX is used",
    ),
    (
        "INTEL-SA-01103",
        "the power interface (RAPL) shows data to a privileged user",
    ),
    (
        "INTEL-SA-01153",
        "Indirect Target Selection: speculation leaks data",
    ),
];

/// An advisory in words.
pub fn advisory(id: &str) -> String {
    let known = ADVISORIES.iter().find(|(number, _)| *number == id);
    let link = "https://www.intel.com/content/www/us/en/security-center/advisory/";
    let page = id.to_ascii_lowercase();
    match known {
        Some((_, words)) => format!("{words}; {link}{page}.html"),
        None => format!(
            "not known to this version of bulla: read {link}{page}.html before you accept it"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advisories_are_sorted_and_unique() {
        assert!(ADVISORIES.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(advisory("INTEL-SA-00334").contains("Load Value Injection"));
        let unknown = advisory("INTEL-SA-99999");
        assert!(unknown.contains("not known") && unknown.contains("intel-sa-99999"));
    }
}
