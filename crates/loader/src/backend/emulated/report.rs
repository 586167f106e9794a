//! EREPORT (SDM 38.4), and what software on the emulated machine needs to check a report.

use super::enclave::Enclave;
use super::keys::{self, CPU_SVN, Fuses};
use super::leaves::{Operands, Output};
use super::thread::Fault;
use bulla_sgx::{Attributes, Report, TargetInfo, flags};

impl Enclave {
    /// SECS.ATTRIBUTES as it stands after EINIT.
    pub fn attributes(&self) -> Attributes {
        Attributes {
            flags: self.secs.attributes.flags | flags::INIT,
            xfrm: self.secs.attributes.xfrm,
        }
    }

    /// This enclave as a target of reports.
    pub fn target_info(&self) -> TargetInfo {
        TargetInfo {
            mrenclave: self
                .identity
                .get()
                .map_or([0; 32], |identity| identity.mrenclave),
            attributes: self.attributes(),
            cet_attributes: 0,
            config_svn: self.secs.config_svn,
            misc_select: self.secs.misc_select,
            config_id: self.secs.config_id,
        }
    }
}

/// Whether a report was made on the machine with these fuses, for `target`.
pub fn verify(fuses: &Fuses, target: &TargetInfo, report: &Report) -> bool {
    let bytes = report.to_bytes();
    let key = fuses.report_key(target, &report.key_id);
    // Timing tells nothing that an emulated machine would have to hide.
    keys::mac(&key, &bytes[..Report::BODY_SIZE]) == report.mac
}

/// EREPORT: RBX = TARGETINFO, RCX = REPORTDATA, RDX = where the report goes.
pub fn ereport(enclave: &Enclave, operands: Operands) -> Result<Output, Fault> {
    const DATA_SIZE: u64 = 64;
    if operands.rbx & 511 != 0 || operands.rcx & 127 != 0 || operands.rdx & 511 != 0 {
        return Err(Fault::GP);
    }
    enclave.check_access(operands.rbx, TargetInfo::SIZE as u64, 1)?;
    enclave.check_access(operands.rcx, DATA_SIZE, 1)?;
    enclave.check_access(operands.rdx, Report::SIZE as u64, 2)?;
    // SAFETY: readable as just checked.
    let (target, data) = unsafe {
        (
            (operands.rbx as *const [u8; TargetInfo::SIZE]).read_volatile(),
            (operands.rcx as *const [u8; DATA_SIZE as usize]).read_volatile(),
        )
    };
    let target = TargetInfo::from_bytes(&target).ok_or(Fault::GP)?;
    let identity = enclave.identity.get().ok_or(Fault::GP)?;
    let mut report = Report {
        cpu_svn: CPU_SVN,
        misc_select: enclave.secs.misc_select,
        cet_attributes: 0,
        isv_ext_prod_id: identity.isv_ext_prod_id,
        attributes: enclave.attributes(),
        mrenclave: identity.mrenclave,
        mrsigner: identity.mrsigner,
        config_id: enclave.secs.config_id,
        isv_prod_id: identity.isv_prod_id,
        isv_svn: identity.isv_svn,
        config_svn: enclave.secs.config_svn,
        isv_family_id: identity.isv_family_id,
        report_data: data,
        key_id: enclave.report_key_id,
        mac: [0; 16],
    };
    let key = enclave.fuses.report_key(&target, &report.key_id);
    report.mac = keys::mac(&key, &report.to_bytes()[..Report::BODY_SIZE]);
    // SAFETY: writable as just checked.
    unsafe { (operands.rdx as *mut [u8; Report::SIZE]).write_volatile(report.to_bytes()) };
    Ok(Output::Nothing)
}
