//! Package updates: a manifest that only raises security versions.

use super::check::ManifestError;
use super::model::{Manifest, Package};
use std::collections::BTreeMap;

/// One package's new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageChange {
    pub package: String,
    pub version: u32,
}

/// Whether an update names packages only, and so needs no acknowledgements.
pub fn is_package_update(update: &Manifest) -> bool {
    update.infrastructures.is_empty()
        && update.marbles.is_empty()
        && update.secrets.is_empty()
        && update.users.is_empty()
        && update.roles.is_empty()
        && update.recovery_keys.is_empty()
        && update.tls.is_empty()
        && update.boards.is_empty()
}

/// Applies an update to the packages in force; tells what changed.
pub fn apply_package_update(
    packages: &BTreeMap<String, Package>,
    update: &Manifest,
) -> Result<(BTreeMap<String, Package>, Vec<PackageChange>), ManifestError> {
    if update.packages.is_empty() {
        return Err(ManifestError::NoPackages);
    }
    if !is_package_update(update) {
        return Err(ManifestError::Unupdatable);
    }
    let mut result = packages.clone();
    let mut changes = Vec::new();
    for (name, wanted) in &update.packages {
        let current = result
            .get_mut(name)
            .ok_or_else(|| ManifestError::UnknownPackage(name.clone()))?;
        let only_version = Package {
            security_version: wanted.security_version,
            ..Package::default()
        };
        let (Some(from), Some(to)) = (current.security_version, wanted.security_version) else {
            return Err(ManifestError::Unupdatable);
        };
        if *wanted != only_version {
            return Err(ManifestError::Unupdatable);
        }
        if to < from {
            return Err(ManifestError::Downgrade {
                package: name.clone(),
                from,
                to,
            });
        }
        if to > from {
            current.security_version = Some(to);
            changes.push(PackageChange {
                package: name.clone(),
                version: to,
            });
        }
    }
    Ok((result, changes))
}
