//! The manifest: what its owner says about packages, marbles, secrets, people and links.
//!
//! [`Manifest::parse`] decodes ([`model`]) and checks ([`check`]): a value of this type is always a
//! manifest that may be set. [`update`] holds the rules for package updates.

mod certificate;
mod check;
mod model;
mod update;

pub use certificate::{Address, CertificateTemplate, Subject};
pub use check::{ManifestError, certificate_der, check, recovery_key};
pub use model::{
    Board, Config, File, Import, Infrastructure, Manifest, Marble, Package, Parameters, Resource,
    Role, SealMode, SecretSpec, SecretType, TlsIncoming, TlsOutgoing, TlsTag, User,
};
pub use update::{PackageChange, apply_package_update, is_package_update};

/// The name of a TCB status as manifests write it.
pub const UP_TO_DATE: &str = "UpToDate";
/// The only status with advisories to check.
pub const SW_HARDENING_NEEDED: &str = "SWHardeningNeeded";

#[cfg(test)]
mod tests;
