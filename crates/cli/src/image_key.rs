//! Keys of encrypted images: from files, to be given to the coordinator or by the host.

use crate::failure::Failure;
use bulla_abi::config::{Config, Encryption, ImageKey, ImageKeySource};
use bulla_image::manifest::Manifest;
use bulla_vault::ImageCipher;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of a key.
const SIZE: usize = 32;

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// Reads a key.
pub fn read(path: &Path) -> Result<ImageKey, Failure> {
    let failed = |error| {
        Failure::new(format!(
            "cannot read the key {}: {error}; name the file with the image's key (for a new image \
             make one with `head -c {SIZE} /dev/urandom > FILE`)",
            path.display()
        ))
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(SIZE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let key: [u8; SIZE] = bytes.try_into().map_err(|_| {
        Failure::new(format!(
            "{} is not a key of {SIZE} bytes; make one with `head -c {SIZE} /dev/urandom > FILE`",
            path.display()
        ))
    })?;
    Ok(ImageKey(key))
}

/// What the configuration says of an image encrypted with this key.
pub fn describe(key: &ImageKey, source: ImageKeySource) -> Encryption {
    Encryption {
        check: ImageCipher::check(&hash, &key.0),
        key: source,
    }
}

/// Whether the manifest leaves the key of the image to the coordinator.
pub fn is_coordinators(manifest: &Manifest) -> bool {
    let coordinator = manifest.coordinator.as_ref();
    coordinator.is_some_and(|coordinator| coordinator.image_key.is_some())
}

/// For an image whose files are in clear.
pub fn refuse_in_clear(manifest: &Manifest) -> Result<(), Failure> {
    match is_coordinators(manifest) {
        true => Err(Failure::new(
            "the manifest has coordinator.image_key, but the image is not encrypted; build it with \
             `bulla build --encrypt KEYFILE`, or leave the key out of the manifest",
        )),
        false => Ok(()),
    }
}

/// Whether the host has to give the key of an image.
pub fn is_hosts(config: &Config) -> bool {
    let source = config.encryption.as_ref().map(|encryption| encryption.key);
    source == Some(ImageKeySource::InsecureHost)
}

/// The cipher of a key.
pub fn cipher(key: &ImageKey) -> ImageCipher {
    ImageCipher::new(&hash, &key.0)
}

/// A wrong key is better explained before the enclave is built.
pub fn check(config: &Config, key: Option<&ImageKey>) -> Result<(), Failure> {
    match (&config.encryption, key) {
        (Some(encryption), Some(key)) if ImageCipher::check(&hash, &key.0) != encryption.check => {
            Err(Failure::new(
                "the key is not the one that the image was encrypted with; give the file that was \
                 given to `bulla build --encrypt`",
            ))
        }
        _ => Ok(()),
    }
}
