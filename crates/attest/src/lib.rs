//! Attestation: who is at the other end, and should it be trusted?
//!
//! - [`verify()`]: is a quote genuine? `dcap-qvl` does the work; Intel's root is built in.
//! - [`Policy`]: is that software, on that machine, the one that was meant? [`Verdict`] says why
//!   not, and what to do.
//! - [`ratls`]: certificates that carry a quote, and TLS with them. [`Judge`] puts all together.
//! - Collateral: [`Saved`], [`LocalEmulated`], and with the feature `fetch` a service over HTTP.
//! - [`bundle`]: evidence to keep. [`endpoint`]: looking at a live peer, [`coordinator`]: at one that
//!   knows a cluster. [`Aesm`]: hardware quotes.
//! - [`Device`]: this program's own enclave, as `/dev/attestation` shows it.
//! - [`emulated`]: the provisioning chain and quoting enclave of emulated platforms.
//!
//! Nothing here trusts its input; everything is closed by default: an error of any kind is a
//! refusal, and only a [`Verdict`] whose every check passed is trusted.
//!
//! Not here: keeping secrets for enclaves (the coordinator does that), and SGX itself.
#![forbid(unsafe_code)]

mod aesm;
pub mod aesm_server;
mod approve;
pub mod bundle;
mod bytes;
mod certificate;
mod collateral;
pub mod coordinator;
mod device;
pub mod emulated;
pub mod endpoint;
#[cfg(feature = "fetch")]
pub mod fetch;
mod policy;
#[cfg(feature = "proxy")]
pub mod proxy;
mod quote;
pub mod ratls;
mod remember;
mod signed_json;
mod source;
mod verdict;
mod verify;
pub mod words;

pub use aesm::{Aesm, AesmError, SOCKET as AESM_SOCKET};
pub use approve::{CertificateUnjudged, CollateralSource, Judge, Judged, NoSource, Unjudged};
pub use bytes::{HexBytes, base64url, nonce, pem_certificates, sha256, unbase64};
pub use certificate::{Certificate, CertificateError, SelfSignature};
pub use collateral::{Collateral, CollateralError, date, seconds};
pub use device::Device;
pub use policy::{
    Accept, AcceptedAdvisory, AcceptedStatus, Disclosed, ImageDigest, PlatformRules, Policy,
    PolicyError, TcbRules, Until,
};
pub use quote::{EnclaveIdentity, Identity, MachineIdentity, Quote, QuoteError, Tee};
pub use source::{FirstOf, LocalEmulated, Needed, Saved};
pub use verdict::{Check, Verdict};
pub use verify::{
    EMULATED_ROOT_NAME, Evidence, INTEL_ROOT, Machine, Platform, Reason, Status, Tcb, VerifyError,
    verify,
};
