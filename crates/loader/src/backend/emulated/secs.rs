//! ECREATE's and EINIT's checks (SDM 38.3: ECREATE, EINIT).

use super::enclave::{Enclave, Identity};
use super::profile::Profile;
use super::ssa;
use super::sys::XsaveLayout;
use crate::backend::Error;
use bulla_sgx::{Attributes, ErrorCode, Secs, SigStruct, flags, misc, xfrm};

fn refused(reason: impl Into<String>) -> Error {
    Error::Refused(format!("ECREATE: {}", reason.into()))
}

/// The attributes that a profile knows.
fn known_flags(profile: &Profile) -> u64 {
    let mut known = flags::DEBUG | flags::MODE64BIT | flags::PROVISION_KEY | flags::EINITTOKEN_KEY;
    if profile.features.kss {
        known |= flags::KSS;
    }
    if profile.features.aex_notify {
        known |= flags::AEX_NOTIFY;
    }
    known
}

/// Whether XSETBV would take this value: x87 and SSE always, dependent components together.
fn legal_xfrm(value: u64) -> bool {
    const MPX: u64 = 0b11 << 3;
    const AMX: u64 = 0b11 << 17;
    let all_or_none = |mask: u64| value & mask == 0 || value & mask == mask;
    value & xfrm::LEGACY == xfrm::LEGACY
        && all_or_none(MPX)
        && all_or_none(xfrm::AVX512)
        && all_or_none(AMX)
        && (value & xfrm::AVX512 == 0 || value & xfrm::AVX != 0)
}

/// ECREATE: returns the SECS and the layout of its XSAVE areas.
pub fn check(bytes: &[u8; 4096], profile: &Profile) -> Result<(Secs, XsaveLayout), Error> {
    let secs = Secs::from_bytes(bytes).ok_or_else(|| refused("a reserved field is not zero"))?;
    let attributes = secs.attributes;
    if !secs.size.is_power_of_two() || secs.size < 2 * 4096 {
        return Err(refused("SIZE is not a power of two of at least two pages"));
    }
    if secs.size > 1 << profile.enclave_bits {
        return Err(refused(format!(
            "SIZE is larger than the 2^{} bytes of this platform; use the static layout",
            profile.enclave_bits
        )));
    }
    if secs.base_addr & (secs.size - 1) != 0 {
        return Err(refused("BASEADDR is not a multiple of SIZE"));
    }
    // Above it system calls are the host's (see `signals`).
    if secs.base_addr + secs.size > super::entry::HOST_START {
        return Err(refused("the emulator needs ELRANGE below 2^46"));
    }
    if attributes.flags & flags::INIT != 0 {
        return Err(refused("ATTRIBUTES.INIT is set"));
    }
    let unknown = attributes.flags & !known_flags(profile);
    if unknown != 0 {
        return Err(refused(format!(
            "ATTRIBUTES has bits {unknown:#x} that this platform does not have"
        )));
    }
    if attributes.flags & flags::MODE64BIT == 0 {
        return Err(refused("only 64-bit enclaves are emulated; set MODE64BIT"));
    }
    if attributes.flags & flags::KSS == 0 && (secs.config_id != [0; 64] || secs.config_svn != 0) {
        return Err(refused("CONFIGID and CONFIGSVN must be zero without KSS"));
    }
    let offered = profile.features().xfrm;
    if !legal_xfrm(attributes.xfrm) || attributes.xfrm & !offered != 0 {
        return Err(refused(format!(
            "XFRM {:#x} is not a combination that this machine has (of {offered:#x})",
            attributes.xfrm,
        )));
    }
    let supported = if profile.features.exinfo {
        misc::EXINFO
    } else {
        0
    };
    if secs.misc_select & !supported != 0 {
        return Err(refused(
            "MISCSELECT has bits that this platform does not have",
        ));
    }
    if secs.cet_leg_bitmap_offset != 0 || secs.cet_attributes != 0 {
        return Err(refused(
            "CET fields are set, which this platform does not have",
        ));
    }
    let xsave = XsaveLayout::of(attributes.xfrm);
    let need = ssa::minimal_frame(xsave.size, secs.misc_select & misc::EXINFO != 0);
    if u64::from(secs.ssa_frame_size) * 4096 < need {
        return Err(refused(format!(
            "SSAFRAMESIZE is too small: {need} bytes are needed"
        )));
    }
    Ok((secs, xsave))
}

fn failed(code: ErrorCode, reason: impl Into<String>) -> Error {
    Error::Sgx {
        leaf: "EINIT",
        code: code as u64,
        reason: reason.into(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// EINIT's checks, in the SDM's order. `mrenclave` is the finished measurement.
pub fn verify(
    enclave: &Enclave,
    bytes: &[u8; 1808],
    mrenclave: [u8; 32],
) -> Result<Identity, Error> {
    let attributes = enclave.secs.attributes;
    let sigstruct = SigStruct::from_bytes(bytes).ok_or_else(|| {
        failed(
            ErrorCode::InvalidSigStruct,
            "a header or reserved field of SIGSTRUCT is wrong",
        )
    })?;
    if !matches!(sigstruct.vendor, 0 | 0x8086) || sigstruct.exponent != 3 {
        return Err(failed(
            ErrorCode::InvalidSigStruct,
            "SIGSTRUCT's vendor must be 0 or 0x8086 and its exponent 3",
        ));
    }
    sigstruct
        .verify()
        .map_err(|error| failed(ErrorCode::InvalidSignature, error.to_string()))?;
    let kss = attributes.flags & flags::KSS != 0;
    if !kss && (sigstruct.isv_family_id != [0; 16] || sigstruct.isv_ext_prod_id != [0; 16]) {
        return Err(failed(
            ErrorCode::InvalidSigStruct,
            "ISVFAMILYID and ISVEXTPRODID must be zero without KSS",
        ));
    }
    if sigstruct.enclave_hash != mrenclave {
        return Err(failed(
            ErrorCode::InvalidMeasurement,
            format!(
                "the enclave measures {}, SIGSTRUCT is for {}",
                hex(&mrenclave),
                hex(&sigstruct.enclave_hash)
            ),
        ));
    }
    // Launch control is flexible on every machine we emulate and the driver writes the signer's
    // hash, so that any signer may start enclaves, but none may ask for a launch key.
    if !enclave.profile.privileged
        && attributes.flags & (flags::EINITTOKEN_KEY | flags::PROVISION_KEY) != 0
    {
        return Err(failed(
            ErrorCode::InvalidAttribute,
            "the launch and provisioning keys are not for this enclave",
        ));
    }
    // INIT is compared as it will be, and no enclave is signed with it.
    let compared = Attributes {
        flags: attributes.flags,
        xfrm: attributes.xfrm,
    };
    if !sigstruct.allows(&compared, enclave.secs.misc_select) {
        return Err(failed(
            ErrorCode::InvalidAttribute,
            "ATTRIBUTES or MISCSELECT are not what SIGSTRUCT allows",
        ));
    }
    Ok(Identity {
        mrenclave,
        mrsigner: sigstruct.mrsigner(),
        isv_prod_id: sigstruct.isv_prod_id,
        isv_svn: sigstruct.isv_svn,
        isv_family_id: sigstruct.isv_family_id,
        isv_ext_prod_id: sigstruct.isv_ext_prod_id,
    })
}
