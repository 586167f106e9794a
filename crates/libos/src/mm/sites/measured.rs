//! The measured site lists of the root file system.
//!
//! They are read once, at boot, checked as a whole against the configuration, and kept as they are;
//! a file's list is decoded when its text is first brought in. They hold for files whose content is
//! still the image's: a file that the container writes to loses its list.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bulla_abi::config::SitesBlob;
use bulla_abi::sites::{BLOB_MAX, SiteList, SiteLists};
use spin::Once;

use crate::fs::inode::Inode;
use crate::platform::platform;

struct Measured {
    /// Device number of the file system over the image.
    device: u64,
    lists: SiteLists,
}

static MEASURED: Once<Measured> = Once::new();

/// Reads the lists for the files of a device. The host may have changed the bytes: they are copied
/// in, and the copy is checked. One line that says what is wrong.
pub fn load(device: u64, blob: &SitesBlob) -> Result<(), String> {
    let lists = read(blob)?;
    MEASURED.call_once(|| Measured { device, lists });
    Ok(())
}

fn read(blob: &SitesBlob) -> Result<SiteLists, String> {
    let size = usize::try_from(blob.size)
        .ok()
        .filter(|_| blob.size <= BLOB_MAX)
        .ok_or_else(|| {
            format!(
                "{} bytes of site lists are too many; build the image again",
                blob.size
            )
        })?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(size)
        .map_err(|_| format!("no memory for {size} bytes of site lists; give the enclave more"))?;
    bytes.resize(size, 0);
    platform()
        .rootfs_read(blob.offset, &mut bytes)
        .map_err(|error| format!("the site lists cannot be read: {error:?}"))?;
    if platform().sha256(&[&bytes]) != blob.sha256 {
        return Err("the site lists were changed on the host; build the image again".into());
    }
    SiteLists::new(bytes)
        .ok_or_else(|| "the site lists are malformed; build the image again".into())
}

/// The list of a file, if it has one and was not written to.
pub(super) fn list_of(inode: &dyn Inode) -> Option<SiteList> {
    let measured = MEASURED.get()?;
    let id = inode.id();
    (id.device == measured.device && inode.is_immutable())
        .then(|| measured.lists.get(id.inode))
        .flatten()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::sync::SpinLock;
    use crate::testing;
    use alloc::collections::BTreeMap;
    use alloc::vec;
    use bulla_abi::sites::{Form, Kind, Site, VERSION};

    /// Held by tests that set the file of the host.
    pub static HOST: SpinLock<()> = SpinLock::new(());

    pub fn blob(offset: u64, bytes: &[u8]) -> SitesBlob {
        SitesBlob {
            offset,
            size: bytes.len() as u64,
            sha256: platform().sha256(&[bytes]),
        }
    }

    #[test]
    fn only_what_was_measured_is_read() {
        let _thread = testing::setup();
        let _host = HOST.lock();
        let list = SiteList {
            version: VERSION,
            sites: vec![Site {
                offset: 0x1003,
                kind: Kind::Syscall,
                form: Form::After { len: 6 },
            }],
        };
        let bytes = SiteLists::build(&BTreeMap::from([(9, list.clone())])).unwrap();
        let file = [&[0xaa; 4096], &bytes[..]].concat();
        testing::platform().set_rootfs(file.clone());
        let good = blob(4096, &bytes);
        assert_eq!(read(&good).unwrap().get(9), Some(list));

        let message = |blob: SitesBlob| read(&blob).unwrap_err();
        let changed = SitesBlob {
            sha256: [0; 32],
            ..good.clone()
        };
        assert!(message(changed).contains("were changed"));
        let offset = SitesBlob {
            offset: 4095,
            ..good.clone()
        };
        assert!(message(offset).contains("were changed"));
        for (offset, size) in [(4096, good.size + 1), (1 << 40, 1), (u64::MAX, 8)] {
            let beyond = SitesBlob {
                offset,
                size,
                ..good.clone()
            };
            assert!(message(beyond).contains("cannot be read"));
        }
        for size in [BLOB_MAX + 1, u64::MAX] {
            let huge = SitesBlob {
                size,
                ..good.clone()
            };
            assert!(message(huge).contains("too many"));
        }
        // Cut, but measured like that.
        assert!(message(blob(4096, &bytes[..bytes.len() - 1])).contains("malformed"));
        assert!(message(blob(0, &file[..4096])).contains("malformed"));
        assert!(message(blob(0, &[])).contains("malformed"));
    }
}
