//! TCB statuses and advisories in words.
//!
//! Statuses are Intel's ("Get TCB Info" of the provisioning certification service). The advisories
//! are those that Intel names for SGX and TDX platforms; one that is not listed here is explained
//! by its number alone and is treated like any other.

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

/// Advisories by number: the common name of the attack, and what it lets an attacker do.
static ADVISORIES: &[(&str, &str)] = &[
    (
        "INTEL-SA-00079",
        "early EPID and quoting software flaw: enclave keys could be used wrongly",
    ),
    (
        "INTEL-SA-00088",
        "Spectre (bounds check bypass, branch target injection): speculation leaks memory across boundaries",
    ),
    (
        "INTEL-SA-00106",
        "firmware flaw in platform firmware that lets a privileged user break SGX",
    ),
    (
        "INTEL-SA-00115",
        "Speculative Store Bypass and rogue register read: speculation leaks data",
    ),
    (
        "INTEL-SA-00135",
        "firmware flaw that gives the host more than it should have",
    ),
    (
        "INTEL-SA-00161",
        "Foreshadow / L1 Terminal Fault: reads enclave memory and keys out of the cache",
    ),
    ("INTEL-SA-00202", "SGX SDK and platform software flaws"),
    (
        "INTEL-SA-00203",
        "firmware flaw: BIOS does not protect SGX settings",
    ),
    (
        "INTEL-SA-00219",
        "timing of the integrated graphics shows an enclave's memory accesses; set in the BIOS",
    ),
    (
        "INTEL-SA-00220",
        "firmware (TXT, SGX) flaw that lets a privileged user escalate",
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
    ("INTEL-SA-00293", "SGX SDK and platform software flaw"),
    (
        "INTEL-SA-00320",
        "CrossTalk (special register buffer data sampling): reads random numbers of other cores",
    ),
    (
        "INTEL-SA-00329",
        "Vector register and L1D eviction sampling (CacheOut): reads data out of CPU buffers",
    ),
    (
        "INTEL-SA-00334",
        "Load Value Injection: makes an enclave compute with the attacker's values; countered in software",
    ),
    (
        "INTEL-SA-00381",
        "Platypus follow-up: vector register sampling leaks data",
    ),
    (
        "INTEL-SA-00389",
        "Platypus: power readings show what an enclave computes",
    ),
    (
        "INTEL-SA-00391",
        "firmware (CSME, SPS) flaws that give a privileged user more than they should have",
    ),
    (
        "INTEL-SA-00477",
        "faults observed through the timing of page table accesses in the quoting software",
    ),
    (
        "INTEL-SA-00500",
        "firmware flaw in BIOS authenticated code modules",
    ),
    (
        "INTEL-SA-00528",
        "a debug interface that can be switched on by physical access",
    ),
    (
        "INTEL-SA-00561",
        "fast store forwarding predictor: speculation leaks data",
    ),
    (
        "INTEL-SA-00586",
        "the host can read stale data (cross-thread return address prediction)",
    ),
    (
        "INTEL-SA-00614",
        "out-of-bounds read under complex microarchitectural conditions in SGX",
    ),
    (
        "INTEL-SA-00615",
        "MMIO stale data: reads data out of CPU buffers by way of device memory; countered in microcode and in software",
    ),
    (
        "INTEL-SA-00617",
        "BIOS flaw that lets a privileged user break SGX",
    ),
    (
        "INTEL-SA-00657",
        "AEPIC leak: reads enclave data out of the interrupt controller; needs microcode",
    ),
    (
        "INTEL-SA-00730",
        "Return stack buffer and memory access flaws that leak data",
    ),
    (
        "INTEL-SA-00737",
        "BIOS and CPU flaws that let a privileged user break SGX",
    ),
    (
        "INTEL-SA-00738",
        "wrong isolation of shared resources (out-of-band management) in Xeon processors",
    ),
    (
        "INTEL-SA-00767",
        "SGX: wrong checks of the software guard extensions in microcode",
    ),
    (
        "INTEL-SA-00828",
        "Downfall (gather data sampling): reads vector registers of others; needs microcode",
    ),
    (
        "INTEL-SA-00837",
        "wrong access control in firmware of Xeon processors with SGX or TDX",
    ),
    (
        "INTEL-SA-00960",
        "Reptar (redundant prefixes): crash or privilege escalation; needs microcode",
    ),
    (
        "INTEL-SA-01036",
        "wrong finite state machine in the CPU's hardware logic: denial of service, escalation",
    ),
    (
        "INTEL-SA-01045",
        "SGX: leak through the sharing of resources, needs microcode",
    ),
    (
        "INTEL-SA-01079",
        "wrong protection of the TDX module or of SGX keys by a privileged user",
    ),
    (
        "INTEL-SA-01103",
        "flaw of the CPU's bus lock or power interface shows data",
    ),
    (
        "INTEL-SA-01153",
        "Native branch history injection: speculation leaks data",
    ),
    ("INTEL-SA-01192", "TDX module flaw"),
    (
        "INTEL-SA-01220",
        "Xeon processors with SGX: a privileged user can break isolation",
    ),
];

/// An advisory in words.
pub fn advisory(id: &str) -> String {
    let known = ADVISORIES.iter().find(|(number, _)| *number == id);
    let link = "https://www.intel.com/content/www/us/en/security-center/advisory/";
    let page = id.to_ascii_lowercase();
    match known {
        Some((_, words)) => format!("{words}; {link}{page}.html"),
        None => format!("see {link}{page}.html"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advisories_are_sorted_and_unique() {
        assert!(ADVISORIES.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(advisory("INTEL-SA-00334").contains("Load Value Injection"));
        assert!(advisory("INTEL-SA-99999").contains("intel-sa-99999"));
    }
}
