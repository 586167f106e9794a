//! Access control lists (acl(5)): more classes of a file's users than owner, group and others.
//!
//! A list is kept as an extended attribute of its inode, in the form in which programs read and write
//! it, so images and volumes keep it like any other. The permission bits show it too: the group's are
//! the mask. [`super::permission::Caller::check`] asks the list, `namei` lets new objects inherit.

use alloc::vec::Vec;

use super::inode::{FileType, Inode, SetAttributes};
use super::permission::Caller;
use crate::Result;
use crate::errno::{EACCES, EINVAL, ENODATA, EOPNOTSUPP};
use crate::process::credentials::CAP_FSETID;

/// Version of the attribute's form (POSIX_ACL_XATTR_VERSION).
const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;
const NO_ID: u32 = u32::MAX;

/// Which list of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who may do what with it.
    Access,
    /// What is made in a directory gets this as its access list.
    Default,
}

impl Kind {
    pub const fn attribute(self) -> &'static [u8] {
        match self {
            Kind::Access => b"system.posix_acl_access",
            Kind::Default => b"system.posix_acl_default",
        }
    }

    pub fn of_attribute(name: &[u8]) -> Option<Kind> {
        [Kind::Access, Kind::Default]
            .into_iter()
            .find(|kind| kind.attribute() == name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    Owner,
    User,
    Group,
    NamedGroup,
    Mask,
    Other,
}

impl Tag {
    fn parse(tag: u16) -> Option<Tag> {
        Some(match tag {
            0x01 => Tag::Owner,
            0x02 => Tag::User,
            0x04 => Tag::Group,
            0x08 => Tag::NamedGroup,
            0x10 => Tag::Mask,
            0x20 => Tag::Other,
            _ => return None,
        })
    }

    const fn number(self) -> u16 {
        match self {
            Tag::Owner => 0x01,
            Tag::User => 0x02,
            Tag::Group => 0x04,
            Tag::NamedGroup => 0x08,
            Tag::Mask => 0x10,
            Tag::Other => 0x20,
        }
    }

    const fn is_named(self) -> bool {
        matches!(self, Tag::User | Tag::NamedGroup)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    permissions: u32,
    id: u32,
}

/// A valid list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// From an attribute's value; `None` for one without entries, which takes the list away.
    pub fn parse(value: &[u8]) -> Result<Option<Acl>> {
        let (header, entries) = value.split_at_checked(HEADER).ok_or(EINVAL)?;
        if header != VERSION.to_le_bytes() {
            return Err(EOPNOTSUPP.because("a version of access lists that Linux never had"));
        }
        let (entries, rest) = entries.as_chunks::<ENTRY>();
        if !rest.is_empty() {
            return Err(EINVAL.because("half an entry of an access list"));
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let entries = entries.iter().map(|bytes| {
            let tag = Tag::parse(u16::from_le_bytes([bytes[0], bytes[1]])).ok_or(EINVAL)?;
            let id = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            Ok(Entry {
                tag,
                permissions: u32::from(u16::from_le_bytes([bytes[2], bytes[3]])),
                id: if tag.is_named() { id } else { NO_ID },
            })
        });
        let acl = Acl(entries.collect::<Result<_>>()?);
        acl.check()?;
        Ok(Some(acl))
    }

    /// In order of the classes; owner, group and others once; a mask where anyone is named.
    fn check(&self) -> Result<()> {
        let wrong = EINVAL.because("not a valid access list");
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let once = [Tag::Owner, Tag::Group, Tag::Other];
        let named = count(Tag::User) + count(Tag::NamedGroup) > 0;
        let masks = count(Tag::Mask);
        let fits = self.0.is_sorted_by_key(|entry| entry.tag)
            && once.into_iter().all(|tag| count(tag) == 1)
            && masks <= 1
            && (masks == 1 || !named)
            && self.0.iter().all(|entry| {
                entry.permissions & !7 == 0 && !(entry.tag.is_named() && entry.id == NO_ID)
            });
        if fits { Ok(()) } else { Err(wrong) }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.0.len() * ENTRY);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.number().to_le_bytes());
            bytes.extend_from_slice(&(entry.permissions as u16).to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    fn entry(&self, tag: Tag) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.tag == tag)
    }

    fn entry_mut(&mut self, tag: Tag) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.tag == tag)
    }

    fn permissions(&self, tag: Tag) -> u32 {
        self.entry(tag).map_or(0, |entry| entry.permissions)
    }

    /// The class that the permission bits of the group stand for.
    fn group_class(&self) -> Tag {
        self.entry(Tag::Mask).map_or(Tag::Group, |entry| entry.tag)
    }

    /// Whether the permission bits say all of it.
    fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The nine permission bits that show it.
    fn mode(&self) -> u32 {
        self.permissions(Tag::Owner) << 6
            | self.permissions(self.group_class()) << 3
            | self.permissions(Tag::Other)
    }

    /// What chmod(2) makes of it.
    pub fn with_mode(mut self, mode: u32) -> Acl {
        self.each_class(|permissions, shift| *permissions = mode >> shift & 7);
        self
    }

    /// The permissions of owner, group class and others, each with the place of its bits in a mode.
    fn each_class(&mut self, mut change: impl FnMut(&mut u32, u32)) {
        for (tag, shift) in [(Tag::Owner, 6), (self.group_class(), 3), (Tag::Other, 0)] {
            if let Some(entry) = self.entry_mut(tag) {
                change(&mut entry.permissions, shift);
            }
        }
    }

    /// Whether someone who is not the owner may: `uid` and the test for groups are theirs, `group`
    /// is the file's.
    pub fn permits(
        &self,
        uid: u32,
        group: u32,
        in_group: impl Fn(u32) -> bool,
        wanted: u32,
    ) -> bool {
        let mask = self.entry(Tag::Mask).map_or(7, |entry| entry.permissions);
        let grants = |entry: &Entry| entry.permissions & mask & wanted == wanted;
        let mut users = self.0.iter().filter(|entry| entry.tag == Tag::User);
        if let Some(user) = users.find(|entry| entry.id == uid) {
            return grants(user);
        }
        let mut member = false;
        for entry in &self.0 {
            let id = match entry.tag {
                Tag::Group => group,
                Tag::NamedGroup => entry.id,
                _ => continue,
            };
            if in_group(id) {
                member = true;
                if grants(entry) {
                    return true;
                }
            }
        }
        !member && self.permissions(Tag::Other) & wanted == wanted
    }

    /// As the access list of an object that is made with `mode` in a directory that has this as its
    /// default: the mode takes rights away, and the list from the mode.
    fn inherited(mut self, mode: u32) -> (u32, Acl) {
        let narrowed = mode & self.mode();
        self.each_class(|permissions, shift| *permissions &= narrowed >> shift);
        (mode & !0o777 | narrowed & 0o777, self)
    }
}

/// What a new object gets of its directory's default list.
pub struct Inheritance {
    access: Option<Acl>,
    default: Option<Acl>,
}

/// The mode of a new object, and the lists that it gets. The umask counts only where the directory has
/// no default list.
pub fn inherit(
    directory: &dyn Inode,
    kind: FileType,
    mode: u32,
    umask: u32,
) -> Result<(u32, Option<Inheritance>)> {
    if kind == FileType::Link {
        return Ok((mode, None));
    }
    let Some(default) = directory.acl(Kind::Default)? else {
        return Ok((mode & !umask, None));
    };
    let (mode, access) = default.clone().inherited(mode);
    let inheritance = Inheritance {
        access: Some(access).filter(|access| !access.is_minimal()),
        default: Some(default).filter(|_| kind == FileType::Directory),
    };
    Ok((mode, Some(inheritance)))
}

impl Inheritance {
    pub fn apply(self, inode: &dyn Inode) -> Result<()> {
        for (kind, acl) in [(Kind::Access, self.access), (Kind::Default, self.default)] {
            if let Some(acl) = acl {
                inode.set_xattr(kind.attribute(), &acl.bytes(), 0)?;
            }
        }
        Ok(())
    }
}

/// Sets a list, or takes it away (`None`), as the owner may.
pub fn set(caller: &Caller<'_>, inode: &dyn Inode, kind: Kind, value: Option<&[u8]>) -> Result<()> {
    let acl = value.map_or(Ok(None), Acl::parse)?;
    if inode.kind() == FileType::Link {
        return Err(EOPNOTSUPP.because("symbolic links have no access list"));
    }
    // A file system without attributes has no lists either.
    inode.get_xattr(kind.attribute()).map_or_else(
        |error| if error == ENODATA { Ok(()) } else { Err(error) },
        |_| Ok(()),
    )?;
    if kind == Kind::Default && !inode.is_directory() {
        return match acl {
            Some(_) => Err(EACCES.because("only directories have a default access list")),
            None => Ok(()),
        };
    }
    caller.check_owner(inode)?;
    let mut kept = acl;
    if kind == Kind::Access
        && let Some(acl) = &kept
    {
        let mut mode = inode.mode() & 0o7000 | acl.mode();
        if !caller.has(CAP_FSETID) && !caller.in_group(inode.metadata().gid) {
            mode &= !0o2000;
        }
        inode.set_attributes(&SetAttributes {
            mode: Some(mode),
            ..SetAttributes::default()
        })?;
        kept = kept.filter(|acl| !acl.is_minimal());
    }
    match kept {
        Some(acl) => inode.set_xattr(kind.attribute(), &acl.bytes(), 0),
        None => match inode.remove_xattr(kind.attribute()) {
            Err(error) if error == ENODATA => Ok(()),
            done => done,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    /// Owner rw-, user 5 rw-, group r--, group 7 -w-, mask r--, others nothing.
    fn example() -> Acl {
        let entries = [
            (0x01, 6, NO_ID),
            (0x02, 6, 5),
            (0x04, 4, NO_ID),
            (0x08, 2, 7),
            (0x10, 4, NO_ID),
            (0x20, 0, NO_ID),
        ];
        Acl::parse(&list(&entries)).unwrap().unwrap()
    }

    #[test]
    fn what_is_parsed_is_written_again() {
        let acl = example();
        assert_eq!(Acl::parse(&acl.bytes()), Ok(Some(acl.clone())));
        assert_eq!(acl.mode(), 0o640);
        assert_eq!(Acl::parse(&VERSION.to_le_bytes()), Ok(None));
    }

    #[test]
    fn wrong_lists_are_refused() {
        let minimal = [(1, 6, NO_ID), (4, 4, NO_ID), (0x20, 0, NO_ID)];
        assert!(Acl::parse(&list(&minimal)).is_ok());
        let wrong: [&[(u16, u16, u32)]; 6] = [
            &minimal[..2],
            &[minimal[1], minimal[0], minimal[2]],
            &[minimal[0], (2, 6, 5), minimal[1], minimal[2]],
            &[
                minimal[0],
                (2, 6, NO_ID),
                minimal[1],
                (0x10, 7, NO_ID),
                minimal[2],
            ],
            &[minimal[0], minimal[1], minimal[2], minimal[2]],
            &[(1, 8, NO_ID), minimal[1], minimal[2]],
        ];
        for entries in wrong {
            assert_eq!(Acl::parse(&list(entries)), Err(EINVAL), "{entries:?}");
        }
        assert_eq!(Acl::parse(&[2, 0, 0]), Err(EINVAL));
        assert_eq!(Acl::parse(&[3, 0, 0, 0]), Err(EOPNOTSUPP));
    }

    #[test]
    fn the_mask_limits_all_but_the_owner_and_others() {
        let acl = example();
        let member = |of: u32| move |gid| gid == of;
        assert!(acl.permits(5, 1, member(0), 4));
        assert!(!acl.permits(5, 1, member(0), 2));
        assert!(acl.permits(6, 1, member(1), 4));
        assert!(!acl.permits(6, 1, member(7), 4));
        assert!(!acl.permits(6, 1, member(7), 2));
        assert!(!acl.permits(6, 1, member(0), 4));
    }

    #[test]
    fn modes_narrow_what_is_inherited() {
        let (mode, acl) = example().inherited(0o2604);
        assert_eq!(mode, 0o2600);
        assert_eq!(acl.permissions(Tag::Mask), 0);
        assert_eq!(acl.permissions(Tag::Group), 4);
        assert_eq!(example().with_mode(0o751).mode(), 0o751);
        assert_eq!(example().with_mode(0o751).permissions(Tag::Group), 4);
    }
}
