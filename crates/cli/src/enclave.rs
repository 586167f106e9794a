//! The enclave image of a workload: built from the embedded programs, measured, signed.

use crate::args::Layout;
use crate::failure::Failure;
use crate::state::State;
use crate::workload::Prepared;
use bulla_abi::config::Config;
use bulla_abi::layout::LayoutKind;
use bulla_image::embedded;
use bulla_image::{
    Bytes, Content, Date, Description, EnclaveImage, Options, SigStruct, SigningKey,
};
use bulla_oci::built::Built;
use bulla_sgx::xfrm;
use std::time::{SystemTime, UNIX_EPOCH};

impl From<Layout> for LayoutKind {
    fn from(layout: Layout) -> LayoutKind {
        match layout {
            Layout::Dynamic => LayoutKind::Dynamic,
            Layout::Static => LayoutKind::Static,
        }
    }
}

/// The enclave's own programs.
pub struct Programs {
    bootstrap: Bytes,
    runtime: Bytes,
}

impl Programs {
    /// Those of this bulla.
    pub fn embedded() -> Programs {
        Programs {
            bootstrap: Bytes::from_static(embedded::BOOTSTRAP),
            runtime: Bytes::from_static(embedded::RUNTIME),
        }
    }

    /// The programs of a confidential image.
    pub fn of(built: &Built) -> Result<Programs, Failure> {
        Ok(Programs {
            bootstrap: built.read("bootstrap")?.into(),
            runtime: built.read("runtime")?.into(),
        })
    }
}

/// Lays an enclave out and measures it.
pub fn lay_out(
    programs: &Programs,
    config: &Config,
    kind: LayoutKind,
    options: &Options,
) -> Result<EnclaveImage, Failure> {
    let (bootstrap, runtime) = (programs.bootstrap.clone(), programs.runtime.clone());
    Ok(bulla_image::layout_of(
        bootstrap, runtime, config, kind, options,
    )?)
}

/// Lays the workload's enclave out and measures it.
pub fn build(
    prepared: &Prepared,
    kind: LayoutKind,
    options: &Options,
) -> Result<EnclaveImage, Failure> {
    lay_out(&prepared.programs, prepared.config(kind), kind, options)
}

/// XFRM of the workload's enclave on a machine that offers `offered`: as much as it has, as far as
/// the signature that the image brings leaves it open. One of an older Bulla has a runtime that
/// knows of less.
pub fn extended_state(prepared: &Prepared, kind: LayoutKind, offered: u64) -> u64 {
    let most = xfrm::most(xfrm::LEGACY | xfrm::OPTIONAL, offered);
    match prepared.signature(kind) {
        Some(signed) => {
            let mask = signed.attribute_mask.xfrm;
            signed.attributes.xfrm & mask | most & !mask
        }
        None => most,
    }
}

/// A confidential image's own SIGSTRUCT; else one by the key that was named, or by this machine's development
/// key, which is kept so that the next start of the same enclave need not sign.
pub fn sign(
    prepared: &Prepared,
    image: &EnclaveImage,
    state: &State,
) -> Result<SigStruct, Failure> {
    if let Some(signed) = prepared.signature(image.kind) {
        if signed.enclave_hash != image.mrenclave {
            return Err(Failure::new(format!(
                "the image's signature is for MRENCLAVE {}, but its content has {}: the image was \
                 changed after it was signed; fetch it again",
                crate::state::hex(&signed.enclave_hash),
                crate::state::hex(&image.mrenclave)
            )));
        }
        return Ok(signed.clone());
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH);
    let date = Date::from_unix(seconds.map_or(0, |time| time.as_secs()));
    let wanted = describe(image, date, prepared.product_id, prepared.security_version);
    if let Some(path) = &prepared.sign_key {
        return Ok(wanted.sign(&SigningKey::read(path)?)?);
    }
    let unsigned = wanted.unsigned()?;
    if let Some(known) = state.signature(&image.mrenclave)
        && let Some(known) = SigStruct::from_bytes(&known)
    {
        let blank = SigStruct {
            date: unsigned.date,
            modulus: unsigned.modulus,
            signature: unsigned.signature,
            q1: unsigned.q1,
            q2: unsigned.q2,
            ..known.clone()
        };
        if blank == unsigned {
            return Ok(known);
        }
    }
    let signed = wanted.sign(&state.development_key()?)?;
    state.keep_signature(&image.mrenclave, &signed.to_bytes());
    Ok(signed)
}

/// What the signature of an image says.
pub fn describe(
    image: &EnclaveImage,
    date: Date,
    product_id: u16,
    security_version: u16,
) -> Description {
    // The image's runtime adapts to the CPU; the signature is the same for all.
    let description = Description::of(image, date).allow_less_state(xfrm::OPTIONAL);
    Description {
        isv_prod_id: product_id,
        isv_svn: security_version,
        ..description
    }
}

/// The image in the loader's terms.
pub fn for_loader(image: EnclaveImage, signature: &SigStruct) -> bulla_loader::Enclave {
    let slots = image.boot.slots;
    let runs = image.runs.into_iter().map(|run| bulla_loader::PageRun {
        address: run.address,
        flags: run.info.0,
        measured: run.measured,
        content: match run.content {
            Content::Data(bytes) => bulla_loader::Content::Data(bytes),
            Content::Zero(len) => bulla_loader::Content::Zero(len),
        },
    });
    bulla_loader::Enclave {
        kind: image.kind,
        secs: image.secs.to_bytes(),
        runs: runs.collect(),
        sigstruct: signature.to_bytes(),
        slots,
    }
}
