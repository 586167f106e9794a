//! What an emulated machine offers: any combination of features, and four named machines.

use bulla_sgx::xfrm;

use crate::backend::Features;
use crate::sys::cpu::xcr0;

/// An emulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    pub name: &'static str,
    pub features: Features,
    /// The largest enclave is 2^n bytes (CPUID leaf 12H reports it).
    pub enclave_bits: u32,
    /// Pages that the enclave has not accepted yet fault, as on hardware. Off by default: then
    /// such a page can be used at once, which saves a host system call for each run of pages and
    /// makes no difference to an enclave that accepts its pages.
    pub strict: bool,
    /// Every EEXIT traps, and what its registers show the host is examined (see `exits`).
    pub examined: bool,
    /// The enclave's system calls are caught by seccomp, as on kernels without Syscall User
    /// Dispatch.
    pub seccomp: bool,
    /// Enclaves may ask for the launch and provisioning keys, which the driver grants to few.
    pub privileged: bool,
}

/// Coffee Lake servers (Azure DCsv2): no EDMM, no EXINFO, no AVX-512, no RDTSC (legal only since
/// SGX2).
const DCSV2: Profile = Profile {
    name: "dcsv2",
    features: Features {
        edmm: false,
        exinfo: false,
        rdtsc: false,
        kss: false,
        aex_notify: false,
        xfrm: xfrm::LEGACY | xfrm::AVX,
    },
    enclave_bits: 36,
    strict: false,
    examined: false,
    seccomp: false,
    privileged: false,
};

/// Ice Lake servers (Azure DCsv3) whose kernel cannot do EDMM.
const DCSV3_5_15: Profile = Profile {
    name: "dcsv3-5.15",
    features: Features {
        edmm: false,
        exinfo: true,
        rdtsc: true,
        kss: true,
        aex_notify: false,
        xfrm: xfrm::LEGACY | xfrm::AVX | xfrm::AVX512,
    },
    enclave_bits: 56,
    strict: false,
    examined: false,
    seccomp: false,
    privileged: false,
};

/// Ice Lake servers with a kernel that has EDMM.
const DCSV3_6_8: Profile = Profile {
    name: "dcsv3-6.8",
    features: Features {
        edmm: true,
        ..DCSV3_5_15.features
    },
    ..DCSV3_5_15
};

/// Everything the emulator can do.
const FULL: Profile = Profile {
    name: "full",
    features: Features {
        aex_notify: true,
        ..DCSV3_6_8.features
    },
    ..DCSV3_6_8
};

impl Profile {
    /// What the machine has of the features: the CPU beneath must save the extended state.
    pub fn features(&self) -> Features {
        Features {
            xfrm: xfrm::most(self.features.xfrm, xcr0()),
            ..self.features
        }
    }

    /// The four named machines.
    pub const NAMED: [Profile; 4] = [DCSV2, DCSV3_5_15, DCSV3_6_8, FULL];

    /// The machine with this name.
    pub fn named(name: &str) -> Option<Profile> {
        Self::NAMED.into_iter().find(|profile| profile.name == name)
    }

    /// A machine with any combination of features.
    pub fn custom(features: Features) -> Profile {
        Profile {
            name: "custom",
            features,
            ..FULL
        }
    }

    /// The same machine with keys for launch and provisioning enclaves.
    pub fn privileged(self) -> Profile {
        Profile {
            privileged: true,
            ..self
        }
    }

    /// The same machine, which examines the registers at every EEXIT.
    pub fn examined(self) -> Profile {
        Profile {
            examined: true,
            ..self
        }
    }

    /// The same machine, emulated with seccomp.
    pub fn seccomp(self) -> Profile {
        Profile {
            seccomp: true,
            ..self
        }
    }

    /// The same machine with faults on pages that are not accepted yet.
    pub fn strict(self) -> Profile {
        Profile {
            strict: true,
            ..self
        }
    }
}
