//! Extended attributes: inline after the inode, or shared between inodes.

use alloc::vec::Vec;

use super::{Erofs, Inode};
use crate::bytes::{u8_at, u16_at, u32_at};
use crate::source::BlockSource;
use crate::{Error, Result};

const HEADER_SIZE: u64 = 12;
const ENTRY_SIZE: u64 = 4;

/// Names are stored without these prefixes; the number says which.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// An attribute found: its name and where its value is.
struct Attribute {
    name: Vec<u8>,
    value: u64,
    value_size: u16,
    /// Position after it.
    end: u64,
}

impl<S: BlockSource> Erofs<S> {
    /// The full names (`security.capability`) of an inode's extended attributes.
    pub fn xattr_names(&self, inode: &Inode) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        self.attributes(inode, &mut |attribute| {
            names.push(attribute.name);
            Ok(false)
        })?;
        Ok(names)
    }

    /// The value of the extended attribute of this full name, `None` where there is none.
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        self.attributes(inode, &mut |attribute| {
            if attribute.name != name {
                return Ok(false);
            }
            let mut value = Vec::new();
            let size = usize::from(attribute.value_size);
            value.try_reserve_exact(size).map_err(|_| Error::NoMemory)?;
            value.resize(size, 0);
            self.read_bytes(attribute.value, &mut value)?;
            found = Some(value);
            Ok(true)
        })?;
        Ok(found)
    }

    /// Visits the attributes until `visit` says that it has enough.
    fn attributes(
        &self,
        inode: &Inode,
        visit: &mut dyn FnMut(Attribute) -> Result<bool>,
    ) -> Result<()> {
        if inode.xattrs_size <= HEADER_SIZE {
            return Ok(());
        }
        let end = inode.xattrs.saturating_add(inode.xattrs_size);
        let header = self.metadata::<{ HEADER_SIZE as usize }>(inode.xattrs)?;
        let shared = u64::from(u8_at(&header, 4));
        let ids = inode.xattrs.saturating_add(HEADER_SIZE);
        let mut position = ids.saturating_add(shared.saturating_mul(4));
        if position > end {
            return Err(inode.malformed("more shared attributes than room"));
        }
        // Each inline attribute takes at least 4 bytes, so this ends.
        while position < end {
            let attribute = self.attribute(position)?;
            if attribute.end > end {
                return Err(inode.malformed("attribute beyond its inode"));
            }
            position = attribute.end;
            if visit(attribute)? {
                return Ok(());
            }
        }
        for index in 0..shared {
            let at = ids.saturating_add(index.saturating_mul(4));
            let id = u64::from(u32_at(&self.metadata::<4>(at)?, 0));
            let position = self
                .super_block
                .shared_xattrs
                .saturating_add(id.saturating_mul(4));
            if visit(self.attribute(position)?)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn attribute(&self, position: u64) -> Result<Attribute> {
        let malformed = |what| Error::Malformed { what, position };
        let entry = self.metadata::<{ ENTRY_SIZE as usize }>(position)?;
        let (name_size, value_size) = (u8_at(&entry, 0), u16_at(&entry, 2));
        let prefix = PREFIXES
            .iter()
            .find(|(index, _)| *index == u8_at(&entry, 1));
        let (_, prefix) = prefix.ok_or(malformed("attribute of an unknown kind"))?;
        let rest = position.saturating_add(ENTRY_SIZE);
        let value = rest.saturating_add(u64::from(name_size));
        let end = value
            .saturating_add(u64::from(value_size))
            .next_multiple_of(4);
        self.check_range(position, end.saturating_sub(position))?;
        let mut name = prefix.to_vec();
        let suffix = name.len();
        name.resize(suffix.saturating_add(usize::from(name_size)), 0);
        self.read_bytes(rest, name.get_mut(suffix..).unwrap_or_default())?;
        if name.contains(&0) {
            return Err(malformed("attribute name with a NUL"));
        }
        Ok(Attribute {
            name,
            value,
            value_size,
            end,
        })
    }
}
