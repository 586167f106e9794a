//! Paths and their resolution, as path_resolution(7) describes it.
//!
//! [`Walk`] resolves: symbolic links (40 at most), "..", mounts, roots, the restrictions of
//! openat2(2). A walk that finds everything in the dentry cache allocates nothing.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::acl;
use super::context::FsContext;
use super::dentry::Dentry;
use super::inode::{FileType, Inode, LinkTarget, NAME_MAX};
use super::mount::{self, Mount};
use super::permission::{Caller, EXECUTE};
use crate::Result;
use crate::errno::{EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EXDEV};

/// Most symbolic links that one walk follows.
const LINKS_MAX: u32 = 40;

/// A resolved location: a name, and the mount through which it was reached.
#[derive(Clone)]
pub struct PathRef {
    pub mount: Arc<Mount>,
    pub dentry: Arc<Dentry>,
}

impl PathRef {
    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.dentry.inode()
    }

    pub fn is_same(&self, other: &PathRef) -> bool {
        Arc::ptr_eq(&self.dentry, &other.dentry) && Arc::ptr_eq(&self.mount, &other.mount)
    }

    /// The directory above, crossing mounts; stays at `root`.
    pub fn parent(&self, root: &PathRef) -> PathRef {
        let mut here = self.clone();
        loop {
            if here.is_same(root) {
                return here;
            }
            if Arc::ptr_eq(&here.dentry, &here.mount.root) {
                match here.mount.point.clone() {
                    Some(point) => here = point,
                    None => return here,
                }
                continue;
            }
            return match here.dentry.parent() {
                Some(dentry) => PathRef {
                    mount: here.mount,
                    dentry,
                },
                None => here,
            };
        }
    }

    /// What is mounted here, if anything, else the place itself.
    fn enter_mounts(mut self) -> (PathRef, bool) {
        let mut crossed = false;
        while self.dentry.is_mounted() {
            let Some(mount) = mount::mounted_on(&self) else {
                break;
            };
            self = PathRef {
                dentry: mount.root.clone(),
                mount,
            };
            crossed = true;
        }
        (self, crossed)
    }

    /// The path as seen from `root`: absolute; `None` when it cannot be reached from there.
    pub fn path_from(&self, root: &PathRef) -> Option<Vec<u8>> {
        let mut names: Vec<Arc<[u8]>> = Vec::new();
        let mut here = self.clone();
        while !here.is_same(root) {
            if Arc::ptr_eq(&here.dentry, &here.mount.root) {
                here = here.mount.point.clone()?;
                continue;
            }
            names.push(here.dentry.name());
            here = PathRef {
                dentry: here.dentry.parent()?,
                mount: here.mount,
            };
        }
        if names.is_empty() {
            return Some(b"/".to_vec());
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Some(path)
    }

    /// The path for /proc: with " (deleted)" where the name is gone.
    pub fn display_path(&self, root: &PathRef) -> Vec<u8> {
        let mut path = match self.path_from(root) {
            Some(path) => path,
            None => {
                let mut path = b"/".to_vec();
                let name = self.dentry.name();
                path.extend_from_slice(name.strip_prefix(b"/").unwrap_or(&name));
                path
            }
        };
        if self.dentry.is_deleted() {
            path.extend_from_slice(b" (deleted)");
        }
        path
    }
}

bitflags::bitflags! {
    /// The restrictions of openat2(2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Resolve: u64 {
        const NO_XDEV = 1;
        const NO_MAGICLINKS = 2;
        const NO_SYMLINKS = 4;
        const BENEATH = 8;
        const IN_ROOT = 16;
        const CACHED = 32;
    }
}

/// Whether the last component, if it is a symbolic link, is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    Yes,
    No,
}

/// The directory in which the last component of a path is, and that component.
pub struct Parent {
    pub directory: PathRef,
    pub last: Last,
    /// The path ended in a slash.
    pub trailing_slash: bool,
}

/// The last component of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Last {
    Name(Vec<u8>),
    Dot,
    DotDot,
    /// The path was "/".
    Root,
}

/// One resolution: who asks, from where, under which restrictions.
pub struct Walk<'a> {
    pub caller: Caller<'a>,
    /// Where root and base come from when they are needed; most walks need only one of them.
    context: Option<Arc<FsContext>>,
    root: Option<PathRef>,
    base: Option<PathRef>,
    resolve: Resolve,
    links: u32,
}

enum Stop {
    At(PathRef),
    Before(Parent),
}

impl<'a> Walk<'a> {
    /// From the caller's root and working directory.
    pub fn new(caller: Caller<'a>, context: &FsContext) -> Walk<'a> {
        Self::at(caller, context, context.cwd())
    }

    /// Relative paths start at `base`.
    pub fn at(caller: Caller<'a>, context: &FsContext, base: PathRef) -> Walk<'a> {
        Walk {
            caller,
            context: None,
            root: Some(context.root()),
            base: Some(base),
            resolve: Resolve::default(),
            links: 0,
        }
    }

    /// From the root and working directory that `context` has when the walk starts.
    pub fn from(caller: Caller<'a>, context: Arc<FsContext>) -> Walk<'a> {
        let context = Some(context);
        Walk {
            caller,
            context,
            root: None,
            base: None,
            resolve: Resolve::default(),
            links: 0,
        }
    }

    /// With the restrictions of openat2(2).
    pub fn restricted(mut self, resolve: Resolve) -> Walk<'a> {
        if resolve.contains(Resolve::IN_ROOT) {
            self.root = self.base.clone();
        }
        self.resolve = resolve;
        self
    }

    fn root(&self) -> PathRef {
        match (&self.root, &self.context) {
            (Some(root), _) => root.clone(),
            (None, Some(context)) => context.root(),
            (None, None) => super::empty_root(),
        }
    }

    /// Where relative paths start.
    pub fn base(&self) -> PathRef {
        match (&self.base, &self.context) {
            (Some(base), _) => base.clone(),
            (None, Some(context)) => context.cwd(),
            (None, None) => super::empty_root(),
        }
    }

    /// Resolves `path` completely. ENOENT for an empty path.
    pub fn find(&mut self, path: &[u8], follow: Follow) -> Result<PathRef> {
        match self.run(None, path, follow, false)? {
            Stop::At(path) => Ok(path),
            Stop::Before(_) => Err(ENOENT),
        }
    }

    /// Resolves all but the last component, which need not exist.
    pub fn find_parent(&mut self, path: &[u8]) -> Result<Parent> {
        self.parent_of(None, path)
    }

    /// The same, relative paths starting elsewhere (symbolic links met by open).
    pub fn find_parent_from(&mut self, base: PathRef, path: &[u8]) -> Result<Parent> {
        self.parent_of(Some(base), path)
    }

    fn parent_of(&mut self, base: Option<PathRef>, path: &[u8]) -> Result<Parent> {
        match self.run(base, path, Follow::No, true)? {
            Stop::Before(parent) => Ok(parent),
            Stop::At(directory) => Ok(Parent {
                directory,
                last: Last::Root,
                trailing_slash: true,
            }),
        }
    }

    /// The child `name` of `directory`, mounts entered, links not followed.
    pub fn child(&self, directory: &PathRef, name: &[u8]) -> Result<PathRef> {
        let dentry = lookup(&self.caller, &directory.dentry, name)?;
        self.enter(directory, dentry)
    }

    fn enter(&self, directory: &PathRef, dentry: Arc<Dentry>) -> Result<PathRef> {
        let (path, crossed) = PathRef {
            mount: directory.mount.clone(),
            dentry,
        }
        .enter_mounts();
        if crossed && self.resolve.contains(Resolve::NO_XDEV) {
            return Err(EXDEV);
        }
        Ok(path)
    }

    /// Follows the symbolic link `link` found in `directory`.
    pub fn follow(&mut self, link: &PathRef) -> Result<LinkTarget> {
        self.links += 1;
        if self.links > LINKS_MAX || self.resolve.contains(Resolve::NO_SYMLINKS) {
            return Err(ELOOP);
        }
        let target = link.inode().follow(&self.caller)?;
        match &target {
            LinkTarget::Jump(to) => {
                if self.resolve.intersects(Resolve::NO_MAGICLINKS) {
                    return Err(ELOOP.because("magic link"));
                }
                let leaves = !Arc::ptr_eq(&to.mount, &link.mount);
                if leaves && self.resolve.contains(Resolve::NO_XDEV)
                    || self.resolve.intersects(Resolve::BENEATH | Resolve::IN_ROOT)
                {
                    return Err(EXDEV);
                }
            }
            LinkTarget::Path(path) if path.is_empty() => return Err(ENOENT),
            LinkTarget::Path(_) => {}
        }
        Ok(target)
    }

    fn up(&self, here: &PathRef) -> Result<PathRef> {
        if self.resolve.contains(Resolve::BENEATH) && here.is_same(&self.base()) {
            return Err(EXDEV);
        }
        let parent = here.parent(&self.root());
        if self.resolve.contains(Resolve::NO_XDEV) && !Arc::ptr_eq(&parent.mount, &here.mount) {
            return Err(EXDEV);
        }
        Ok(parent.enter_mounts_above(here))
    }

    fn run(
        &mut self,
        base: Option<PathRef>,
        path: &[u8],
        follow: Follow,
        parent_only: bool,
    ) -> Result<Stop> {
        if path.is_empty() {
            return Err(ENOENT);
        }
        // What is left of the path: borrowed until a symbolic link is put in front of it.
        let mut owned: Vec<u8>;
        let mut rest: &[u8] = path;
        let mut here = match base {
            _ if path[0] == b'/' => self.restart()?,
            Some(base) => base,
            None => self.base(),
        };
        loop {
            let start = rest.iter().position(|&byte| byte != b'/');
            let Some(start) = start else {
                return Ok(Stop::At(here));
            };
            rest = &rest[start..];
            let end = rest
                .iter()
                .position(|&byte| byte == b'/')
                .unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            let is_last = after.iter().all(|&byte| byte == b'/');
            let trailing_slash = is_last && !after.is_empty();
            if name.len() > NAME_MAX {
                return Err(ENAMETOOLONG);
            }
            // Nearly always: a directory that everyone may search.
            let inode = here.inode();
            if inode.mode() & 0o170111 != 0o040111 || inode.acl(acl::Kind::Access)?.is_some() {
                if !inode.is_directory() {
                    return Err(ENOTDIR);
                }
                self.caller.check(&**inode, EXECUTE)?;
            }
            if is_last && parent_only {
                let last = match name {
                    b"." => Last::Dot,
                    b".." => Last::DotDot,
                    name => Last::Name(name.to_vec()),
                };
                return Ok(Stop::Before(Parent {
                    directory: here,
                    last,
                    trailing_slash,
                }));
            }
            match name {
                b"." => {}
                b".." => here = self.up(&here)?,
                name => {
                    let dentry = lookup(&self.caller, &here.dentry, name)?;
                    // Nearly always: neither a mount point nor a symbolic link.
                    let is_link = dentry.inode().kind() == FileType::Link;
                    if !is_link && !dentry.is_mounted() {
                        here.dentry = dentry;
                        if trailing_slash && !here.inode().is_directory() {
                            return Err(ENOTDIR);
                        }
                        rest = after;
                        continue;
                    }
                    let child = self.enter(&here, dentry)?;
                    let kind = child.inode().kind();
                    if kind == FileType::Link
                        && (!is_last || trailing_slash || follow == Follow::Yes)
                    {
                        match self.follow(&child)? {
                            LinkTarget::Jump(to) => here = to,
                            LinkTarget::Path(mut target) => {
                                if target[0] == b'/' {
                                    here = self.restart()?;
                                }
                                target.extend_from_slice(after);
                                owned = target;
                                rest = &owned;
                                continue;
                            }
                        }
                    } else {
                        here = child;
                    }
                }
            }
            if trailing_slash && !here.inode().is_directory() {
                return Err(ENOTDIR);
            }
            rest = after;
        }
    }

    /// Where absolute paths start.
    pub fn restart(&self) -> Result<PathRef> {
        if self.resolve.contains(Resolve::BENEATH) {
            return Err(EXDEV);
        }
        let root = self.root();
        if self.resolve.contains(Resolve::NO_XDEV) && !Arc::ptr_eq(&root.mount, &self.base().mount)
        {
            return Err(EXDEV);
        }
        Ok(root)
    }
}

impl PathRef {
    /// ".." may arrive on a directory that something is mounted on.
    fn enter_mounts_above(self, from: &PathRef) -> PathRef {
        if self.is_same(from) {
            self
        } else {
            self.enter_mounts().0
        }
    }
}

/// The child `name` of a directory: from the cache, else from the file system.
pub fn lookup(caller: &Caller<'_>, directory: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
    if let Some(child) = directory.child(name) {
        return Ok(child);
    }
    let inode = directory.inode();
    if !inode.is_stable() {
        return Ok(Dentry::uncached(
            directory,
            name,
            inode.lookup(caller, name)?,
        ));
    }
    // What is not there costs no lock. What is there is looked up again under the lock, so that a
    // name that is being removed does not come back into the cache.
    inode.lookup(caller, name)?;
    let _names = super::dentry::namespace();
    lookup_locked(caller, directory, name)
}

/// The same, for callers that hold the namespace lock.
pub fn lookup_locked(
    caller: &Caller<'_>,
    directory: &Arc<Dentry>,
    name: &[u8],
) -> Result<Arc<Dentry>> {
    if let Some(child) = directory.child(name) {
        return Ok(child);
    }
    let inode = directory.inode().lookup(caller, name)?;
    Ok(directory.keep(name, inode))
}

/// EACCES where a name may not be created because of what it is.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(ENAMETOOLONG);
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(EACCES);
    }
    Ok(())
}
