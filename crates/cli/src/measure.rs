//! `bulla measure`: the identity of what `run` would start, without any platform.

use crate::args::MeasureArguments;
use crate::enclave;
use crate::failure::Failure;
use crate::state::{State, hex};
use crate::workload;
use bulla_abi::layout::LayoutKind;
use bulla_image::Options;
use bulla_oci::listing::Files;
use serde::Serialize;

/// Measurements of one workload.
#[derive(Serialize)]
struct Report {
    /// The image's id, or the fingerprint of the directory.
    image: String,
    rootfs_hash: String,
    layouts: Vec<Measured>,
    mrsigner: String,
    development_key: bool,
    isv_prod_id: u16,
    isv_svn: u16,
}

#[derive(Serialize)]
struct Measured {
    layout: &'static str,
    mrenclave: String,
    /// Pages added before EINIT.
    pages: u64,
    measured_pages: u64,
}

/// Runs the command.
pub fn run(arguments: &MeasureArguments) -> Result<(), Failure> {
    let prepared = workload::prepare(&arguments.workload)?;
    if let Some(path) = &arguments.configuration {
        std::fs::write(path, crate::disclose::document(&prepared)?)
            .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?;
    }
    // The enclave will check each block; whoever trusts the measurement wants to know now.
    let config = prepared.config(LayoutKind::Dynamic);
    if config.encryption.is_some() {
        // Without the key there are no files to see, but the hash tree covers what is encrypted.
        bulla_rootfs::verify(&prepared.rootfs, &config.rootfs).map_err(Failure::new)?;
    } else {
        let files = Files::open(&prepared.rootfs, &config.rootfs)?;
        if prepared.signature(LayoutKind::Dynamic).is_some() {
            files.list()?;
        }
    }
    let kinds = match arguments.layout {
        Some(layout) => vec![layout.into()],
        None => vec![LayoutKind::Dynamic, LayoutKind::Static],
    };
    let mut layouts = Vec::new();
    let mut signed = None;
    for kind in kinds {
        let image = enclave::build(&prepared, kind, &Options::default())?;
        layouts.push(Measured {
            layout: kind.name(),
            mrenclave: hex(&image.mrenclave),
            pages: image.pages(),
            measured_pages: image.measured_pages(),
        });
        signed = Some(enclave::sign(&prepared, &image, &State::of_user())?);
    }
    let signed = signed.ok_or_else(|| Failure::new("no layout to measure"))?;
    let report = Report {
        image: prepared.digest.to_string(),
        rootfs_hash: hex(&prepared.config(LayoutKind::Dynamic).rootfs.root_hash),
        layouts,
        development_key: prepared.signature(LayoutKind::Dynamic).is_none()
            && prepared.sign_key.is_none(),
        mrsigner: hex(&signed.mrsigner()),
        isv_prod_id: signed.isv_prod_id,
        isv_svn: signed.isv_svn,
    };
    if arguments.json {
        crate::print_json(&report)
    } else {
        crate::print(&report.to_string())
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for measured in &self.layouts {
            let label = format!("MRENCLAVE ({})", measured.layout);
            writeln!(f, "{label:<20} {}", measured.mrenclave)?;
        }
        writeln!(
            f,
            "MRSIGNER             {}{}",
            self.mrsigner,
            if self.development_key {
                " (development key)"
            } else {
                ""
            }
        )?;
        writeln!(f, "product id           {}", self.isv_prod_id)?;
        writeln!(f, "SVN                  {}", self.isv_svn)?;
        writeln!(f, "image                {}", self.image)?;
        writeln!(f, "files (verity root)  {}", self.rootfs_hash)
    }
}
