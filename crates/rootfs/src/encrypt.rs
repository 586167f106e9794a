//! An encrypted copy of an image: the same blocks under a cipher, a tree over those.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bulla_abi::config::Rootfs;

use crate::BLOCK;
use crate::error::{Result, io_error};
use crate::verity::ImageWriter;

/// Writes the image at `from` to `out`, each block changed by `cipher` (number, bytes); the
/// parameters of the copy. What follows the tree (site lists: places of instructions, no content)
/// stays as it is, at the same place.
pub fn encrypt(
    from: &Path,
    rootfs: &Rootfs,
    out: File,
    cipher: &mut dyn FnMut(u64, &mut [u8]),
) -> Result<Rootfs> {
    let read = |error: io::Error| io_error("reading", from)(error);
    let mut source = File::open(from).map_err(read)?;
    let copy = out
        .try_clone()
        .map_err(io_error("writing", Path::new("the image")))?;
    let mut writer = ImageWriter::new(out);
    let mut block = [0; BLOCK as usize];
    let mut first = [0; BLOCK as usize];
    for number in 0..rootfs.data_size / BLOCK {
        source.read_exact(&mut block).map_err(read)?;
        cipher(number, &mut block);
        if number == 0 {
            first = block;
        }
        writer.write(&block)?;
    }
    let mut encrypted = writer.finish(&first)?;
    if let Some(sites) = &rootfs.sites {
        let mut blob = vec![0; sites.size as usize];
        source
            .read_exact_at(&mut blob, sites.offset)
            .map_err(read)?;
        copy.write_all_at(&blob, sites.offset)
            .map_err(io_error("writing", Path::new("the image")))?;
        encrypted.sites = Some(sites.clone());
    }
    Ok(encrypted)
}
