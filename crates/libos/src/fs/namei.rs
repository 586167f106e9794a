//! Operations on names: open, create, link, rename, remove. Permissions, read-only mounts, mount
//! points and the dentry cache are dealt with here; inodes do the rest.
//!
//! Every change of names holds the namespace lock from the lookup to the change of the cache.

use alloc::sync::Arc;

use super::acl;
use super::dentry::{Dentry, namespace};
use super::dnotify;
use super::file::{OpenFile, PathOnly, flags};
use super::inode::{FileType, Inode, LinkTarget, NewNode, Owner, SetAttributes};
use super::inotify::{self, mask};
use super::lease;
use super::mount::{self, Mount};
use super::path::{Follow, Last, Parent, PathRef, Walk, check_name, lookup_locked};
use super::permission::{Caller, EXECUTE, READ, WRITE};
use crate::Result;
use crate::errno::{
    EACCES, EBUSY, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EROFS, EXDEV,
};
use crate::process::credentials::CAP_FSETID;

/// How to open.
#[derive(Clone, Copy, Debug)]
pub struct OpenHow {
    pub flags: u32,
    /// Permission bits for a new file, before the umask.
    pub mode: u32,
}

/// Opens `path`, creating it where asked to.
pub fn open(walk: &mut Walk<'_>, path: &[u8], how: OpenHow) -> Result<Arc<OpenFile>> {
    if how.flags & flags::TMPFILE == flags::TMPFILE {
        return open_unnamed(walk, path, how);
    }
    if how.flags & flags::CREAT != 0 && how.flags & flags::PATH == 0 {
        return open_create(walk, path, how);
    }
    let follow = if how.flags & flags::NOFOLLOW != 0 {
        Follow::No
    } else {
        Follow::Yes
    };
    let found = walk.find(path, follow)?;
    open_path(&walk.caller, found, how.flags)
}

/// Opens a place that was found.
pub fn open_path(caller: &Caller<'_>, path: PathRef, flags: u32) -> Result<Arc<OpenFile>> {
    let inode = path.inode().clone();
    let kind = inode.kind();
    if flags & flags::DIRECTORY != 0 && kind != FileType::Directory {
        return Err(ENOTDIR);
    }
    if flags & flags::PATH != 0 {
        let kept = flags & (flags::PATH | flags::DIRECTORY | flags::NOFOLLOW | flags::CLOEXEC);
        return Ok(OpenFile::with_path(Arc::new(PathOnly), kept, Some(path)));
    }
    let access = flags & flags::ACCESS_MODE;
    let writes = access != flags::RDONLY || flags & flags::TRUNC != 0;
    match kind {
        FileType::Link => return Err(ELOOP),
        FileType::Directory if writes || flags & flags::CREAT != 0 => return Err(EISDIR),
        FileType::Character | FileType::Block if path.mount.flags() & mount::flags::NODEV != 0 => {
            return Err(EACCES.because("mounted nodev"));
        }
        _ => {}
    }
    let wanted = match access {
        flags::RDONLY => READ,
        flags::WRONLY => WRITE,
        _ => READ | WRITE,
    };
    let truncates = flags & flags::TRUNC != 0;
    caller.check(&*inode, if truncates { wanted | WRITE } else { wanted })?;
    let is_content = matches!(kind, FileType::Regular | FileType::Directory);
    if writes && is_content && path.mount.is_read_only() {
        return Err(EROFS);
    }
    if flags & flags::NOATIME != 0 {
        caller.check_owner(&*inode)?;
    }
    if kind == FileType::Regular {
        let nonblocking = flags & flags::NONBLOCK != 0;
        lease::break_for(caller.thread, &inode, writes, nonblocking)?;
    }
    let file = open_granted(caller, path, inode.clone(), flags)?;
    if truncates && kind == FileType::Regular {
        inode.truncate(0)?;
        inotify::notify_file(&file, mask::MODIFY);
    }
    Ok(file)
}

/// The open itself, permissions being granted.
fn open_granted(
    caller: &Caller<'_>,
    path: PathRef,
    inode: Arc<dyn Inode>,
    flags: u32,
) -> Result<Arc<OpenFile>> {
    let ops = inode.open(caller, &path, flags)?;
    let dropped = flags::CREAT | flags::EXCL | flags::NOCTTY | flags::TRUNC | flags::CLOEXEC;
    let file = OpenFile::with_path(ops, flags & !dropped, Some(path));
    inotify::notify_file(&file, mask::OPEN);
    Ok(file)
}

fn open_create(walk: &mut Walk<'_>, path: &[u8], how: OpenHow) -> Result<Arc<OpenFile>> {
    let caller = walk.caller;
    let mut parent = walk.find_parent(path)?;
    loop {
        let name = match &parent.last {
            Last::Name(name) => name,
            // "." and ".." and "/" are directories that exist.
            _ if how.flags & flags::EXCL != 0 => return Err(EEXIST),
            _ => return Err(EISDIR),
        };
        if parent.trailing_slash {
            return Err(EISDIR);
        }
        match walk.child(&parent.directory, name) {
            Ok(_) if how.flags & flags::EXCL != 0 => return Err(EEXIST),
            Ok(found) if found.inode().kind() == FileType::Link => {
                if how.flags & flags::NOFOLLOW != 0 {
                    return Err(ELOOP);
                }
                match walk.follow(&found)? {
                    LinkTarget::Jump(to) => return open_path(&caller, to, how.flags),
                    LinkTarget::Path(target) => {
                        parent = walk.find_parent_from(parent.directory.clone(), &target)?;
                    }
                }
            }
            Ok(found) => {
                check_sticky_create(&caller, parent.directory.inode(), found.inode(), how.flags)?;
                return open_path(&caller, found, how.flags);
            }
            Err(error) if error == ENOENT => {
                if how.flags & flags::DIRECTORY != 0 {
                    return Err(EINVAL);
                }
                match create_at(&caller, &parent.directory, name, NewNode::Regular, how.mode) {
                    // Someone else was faster.
                    Err(error) if error == EEXIST && how.flags & flags::EXCL == 0 => continue,
                    Err(error) => return Err(error),
                    Ok(path) => {
                        // The mode of a new file does not restrict the open that created it.
                        let inode = path.inode().clone();
                        let file = open_granted(&caller, path, inode, how.flags)?;
                        file.created
                            .store(true, core::sync::atomic::Ordering::Relaxed);
                        return Ok(file);
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// protected_regular and protected_fifos (sysctl fs, value 1): O_CREAT does not open a file of
/// someone else in a sticky directory that everyone may write.
fn check_sticky_create(
    caller: &Caller<'_>,
    directory: &Arc<dyn Inode>,
    inode: &Arc<dyn Inode>,
    flags: u32,
) -> Result<()> {
    let mode = directory.mode();
    if flags & flags::CREAT == 0 || mode & 0o1002 != 0o1002 {
        return Ok(());
    }
    if !matches!(inode.kind(), FileType::Regular | FileType::Fifo) {
        return Ok(());
    }
    let owner = inode.metadata().uid;
    if owner == caller.ids().0 || owner == directory.metadata().uid {
        return Ok(());
    }
    Err(EACCES.because("file of another user in a sticky directory"))
}

fn open_unnamed(walk: &mut Walk<'_>, path: &[u8], how: OpenHow) -> Result<Arc<OpenFile>> {
    if how.flags & flags::ACCESS_MODE == flags::RDONLY {
        return Err(EINVAL.because("O_TMPFILE needs write access"));
    }
    let directory = walk.find(path, Follow::Yes)?;
    if !directory.inode().is_directory() {
        return Err(ENOTDIR);
    }
    if directory.mount.is_read_only() {
        return Err(EROFS);
    }
    walk.caller.check(&**directory.inode(), WRITE | EXECUTE)?;
    let kind = FileType::Regular;
    let (owner, lists) = new_owner(&walk.caller, directory.inode(), kind, how.mode)?;
    let inode = directory.inode().create_unnamed(owner)?;
    lists.map_or(Ok(()), |lists| lists.apply(&*inode))?;
    if how.flags & flags::EXCL == 0
        && let Some(state) = inode.state()
    {
        state.make_linkable();
    }
    let name = alloc::format!("#{}", inode.id().inode);
    let dentry = Dentry::unnamed(inode.clone(), name.as_bytes());
    let path = PathRef {
        mount: directory.mount,
        dentry,
    };
    open_granted(
        &walk.caller,
        path,
        inode,
        how.flags & !(flags::TMPFILE & !flags::DIRECTORY),
    )
}

/// Owner and mode of a new object, and its access lists: the group comes from a setgid directory.
fn new_owner(
    caller: &Caller<'_>,
    directory: &Arc<dyn Inode>,
    kind: FileType,
    mode: u32,
) -> Result<(Owner, Option<acl::Inheritance>)> {
    let (uid, mut gid) = caller.ids();
    let (mut mode, lists) = acl::inherit(&**directory, kind, mode & 0o7777, caller.umask())?;
    if directory.mode() & 0o2000 != 0 {
        gid = directory.metadata().gid;
        if kind == FileType::Directory {
            mode |= 0o2000;
        } else if mode & 0o2010 == 0o2010 && !caller.in_group(gid) && !caller.has(CAP_FSETID) {
            mode &= !0o2000;
        }
    }
    Ok((Owner { mode, uid, gid }, lists))
}

fn check_create(caller: &Caller<'_>, directory: &PathRef, name: &[u8]) -> Result<()> {
    check_name(name)?;
    if !directory.inode().is_directory() {
        return Err(ENOTDIR);
    }
    if directory.dentry.is_deleted() {
        return Err(ENOENT.because("the directory was removed"));
    }
    if directory.mount.is_read_only() {
        return Err(EROFS);
    }
    caller.check(&**directory.inode(), WRITE | EXECUTE)
}

/// Creates `name` in `directory`.
pub fn create_at(
    caller: &Caller<'_>,
    directory: &PathRef,
    name: &[u8],
    node: NewNode<'_>,
    mode: u32,
) -> Result<PathRef> {
    let is_directory = node.kind() == FileType::Directory;
    let names = namespace();
    match lookup_locked(caller, &directory.dentry, name) {
        Ok(_) => return Err(EEXIST),
        Err(error) if error == ENOENT => {}
        Err(error) => return Err(error),
    }
    check_create(caller, directory, name)?;
    let (owner, lists) = new_owner(caller, directory.inode(), node.kind(), mode)?;
    let inode = directory.inode().create(name, node, owner)?;
    if let Some(lists) = lists
        && let Err(error) = lists.apply(&*inode)
    {
        // Without its list it would grant more than it should.
        let undone = if is_directory {
            directory.inode().rmdir(name)
        } else {
            directory.inode().unlink(name)
        };
        return undone.and(Err(error));
    }
    let dentry = directory.dentry.keep(name, inode);
    drop(names);
    inotify::notify_child(directory.inode(), name, mask::CREATE, is_directory, 0);
    Ok(PathRef {
        mount: directory.mount.clone(),
        dentry,
    })
}

/// The last component as a name to create: EEXIST for ".", "..", "/".
fn new_name(parent: &Parent) -> Result<&[u8]> {
    match &parent.last {
        Last::Name(name) => Ok(name),
        _ => Err(EEXIST),
    }
}

/// mkdir(2), mknod(2), symlink(2): creates the last component of `path`.
pub fn create(walk: &mut Walk<'_>, path: &[u8], node: NewNode<'_>, mode: u32) -> Result<PathRef> {
    let parent = walk.find_parent(path)?;
    let name = new_name(&parent)?;
    if parent.trailing_slash && node.kind() != FileType::Directory {
        // A slash after a name that does not exist asks for a directory.
        let exists = walk.child(&parent.directory, name).is_ok();
        return Err(if exists { EEXIST } else { ENOENT });
    }
    create_at(&walk.caller, &parent.directory, name, node, mode)
}

/// link(2): a new name for `old`.
pub fn link(walk: &mut Walk<'_>, old: &PathRef, new: &[u8]) -> Result<()> {
    let caller = walk.caller;
    let parent = walk.find_parent(new)?;
    let name = new_name(&parent)?;
    if parent.trailing_slash {
        let exists = walk.child(&parent.directory, name).is_ok();
        return Err(if exists { EEXIST } else { ENOENT });
    }
    let names = namespace();
    match lookup_locked(&caller, &parent.directory.dentry, name) {
        Ok(_) => return Err(EEXIST),
        Err(error) if error == ENOENT => {}
        Err(error) => return Err(error),
    }
    if !Arc::ptr_eq(&old.mount, &parent.directory.mount) {
        return Err(EXDEV);
    }
    check_create(&caller, &parent.directory, name)?;
    let inode = old.inode();
    if inode.is_directory() {
        return Err(EPERM.because("directories have no hard links"));
    }
    check_hard_link(&caller, &**inode)?;
    let may_return = inode.state().filter(|state| state.is_linkable());
    if inode.metadata().links == 0 && may_return.is_none() {
        return Err(ENOENT.because("the file lost its last name"));
    }
    parent.directory.inode().link(name, inode)?;
    if let Some(state) = may_return {
        state.has_been_linked();
    }
    parent.directory.dentry.keep(name, inode.clone());
    drop(names);
    inotify::notify_child(parent.directory.inode(), name, mask::CREATE, false, 0);
    inotify::notify_inode(inode, mask::ATTRIB);
    Ok(())
}

/// protected_hardlinks (sysctl fs, value 1).
fn check_hard_link(caller: &Caller<'_>, inode: &dyn Inode) -> Result<()> {
    if caller.check_owner(inode).is_ok() {
        return Ok(());
    }
    let mode = inode.mode();
    let safe = FileType::from_mode(mode) == Some(FileType::Regular)
        && mode & 0o4000 == 0
        && mode & 0o2010 != 0o2010
        && caller.check(inode, READ | WRITE).is_ok();
    if safe {
        Ok(())
    } else {
        Err(EPERM.because("hard link to a file of someone else"))
    }
}

/// Whether the name may go, as far as permissions say.
fn check_remove(caller: &Caller<'_>, directory: &PathRef, child: &Arc<Dentry>) -> Result<()> {
    if directory.mount.is_read_only() {
        return Err(EROFS);
    }
    caller.check_delete(&**directory.inode(), &**child.inode())
}

fn check_not_mounted(child: &Arc<Dentry>) -> Result<()> {
    if child.is_mounted() {
        Err(EBUSY.because("a mount point"))
    } else {
        Ok(())
    }
}

/// unlink(2).
pub fn unlink(walk: &mut Walk<'_>, path: &[u8]) -> Result<()> {
    let parent = walk.find_parent(path)?;
    let Last::Name(name) = &parent.last else {
        return Err(EISDIR);
    };
    let directory = &parent.directory;
    let names = namespace();
    let child = lookup_locked(&walk.caller, &directory.dentry, name)?;
    let inode = child.inode().clone();
    if parent.trailing_slash {
        return Err(if inode.is_directory() {
            EISDIR
        } else {
            ENOTDIR
        });
    }
    check_remove(&walk.caller, directory, &child)?;
    if inode.is_directory() {
        return Err(EISDIR);
    }
    check_not_mounted(&child)?;
    directory.inode().unlink(name)?;
    directory.dentry.forget(name);
    drop(names);
    inotify::notify_inode(&inode, mask::ATTRIB);
    inotify::notify_child(directory.inode(), name, mask::DELETE, false, 0);
    if inode.metadata().links == 0 {
        inotify::unlinked(&inode, &child);
    }
    Ok(())
}

/// rmdir(2).
pub fn rmdir(walk: &mut Walk<'_>, path: &[u8]) -> Result<()> {
    let parent = walk.find_parent(path)?;
    let name = match &parent.last {
        Last::Name(name) => name,
        Last::Dot => return Err(EINVAL),
        Last::DotDot => return Err(ENOTEMPTY),
        Last::Root => return Err(EBUSY),
    };
    let directory = &parent.directory;
    let names = namespace();
    let child = lookup_locked(&walk.caller, &directory.dentry, name)?;
    let inode = child.inode().clone();
    check_remove(&walk.caller, directory, &child)?;
    if !inode.is_directory() {
        return Err(ENOTDIR);
    }
    check_not_mounted(&child)?;
    directory.inode().rmdir(name)?;
    directory.dentry.forget(name);
    drop(names);
    inotify::notify_child(directory.inode(), name, mask::DELETE, true, 0);
    inotify::removed(&inode);
    Ok(())
}

/// What renameat2(2) does with an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rename {
    Replace,
    NoReplace,
    Exchange,
}

/// rename(2).
pub fn rename(
    old_walk: &mut Walk<'_>,
    old: &[u8],
    new_walk: &mut Walk<'_>,
    new: &[u8],
    how: Rename,
) -> Result<()> {
    let caller = old_walk.caller;
    let from = old_walk.find_parent(old)?;
    let to = new_walk.find_parent(new)?;
    if !Arc::ptr_eq(&from.directory.mount, &to.directory.mount) {
        return Err(EXDEV);
    }
    let Last::Name(old_name) = &from.last else {
        return Err(EBUSY);
    };
    let new_name = match &to.last {
        Last::Name(name) => name,
        _ if how == Rename::NoReplace => return Err(EEXIST),
        _ => return Err(EBUSY),
    };
    let (source, target) = (&from.directory, &to.directory);
    let names = namespace();
    let child = lookup_locked(&caller, &source.dentry, old_name)?;
    let replaced = match lookup_locked(&caller, &target.dentry, new_name) {
        Ok(replaced) => Some(replaced),
        Err(error) if error == ENOENT => None,
        Err(error) => return Err(error),
    };
    if how == Rename::NoReplace && replaced.is_some() {
        return Err(EEXIST);
    }
    if how == Rename::Exchange && replaced.is_none() {
        return Err(ENOENT);
    }
    let inode = child.inode().clone();
    if !inode.is_directory() {
        // A slash asks for a directory.
        let exchanged = replaced
            .as_ref()
            .is_some_and(|other| other.inode().is_directory());
        if from.trailing_slash || to.trailing_slash && !(how == Rename::Exchange && exchanged) {
            return Err(ENOTDIR);
        }
    }
    if target.dentry.is_within(&child) {
        return Err(EINVAL.because("a directory cannot move below itself"));
    }
    if let Some(replaced) = &replaced
        && source.dentry.is_within(replaced)
    {
        return Err(if how == Rename::Exchange {
            EINVAL
        } else {
            ENOTEMPTY
        });
    }
    if let Some(replaced) = &replaced
        && inode.id() == replaced.inode().id()
    {
        // Two names of one object: nothing to do.
        return Ok(());
    }
    check_remove(&caller, source, &child)?;
    match &replaced {
        Some(replaced) => {
            check_remove(&caller, target, replaced)?;
            if how != Rename::Exchange {
                match (inode.is_directory(), replaced.inode().is_directory()) {
                    (true, false) => return Err(ENOTDIR),
                    (false, true) => return Err(EISDIR),
                    _ => {}
                }
            }
        }
        None => check_create(&caller, target, new_name)?,
    }
    // A directory that moves elsewhere has its ".." rewritten.
    let same_directory = Arc::ptr_eq(&source.dentry, &target.dentry);
    if !same_directory && inode.is_directory() {
        caller.check(&*inode, WRITE)?;
    }
    check_not_mounted(&child)?;
    replaced.as_ref().map_or(Ok(()), check_not_mounted)?;
    let exchange = how == Rename::Exchange;
    source
        .inode()
        .rename(old_name, target.inode(), new_name, exchange)?;
    if exchange {
        source
            .dentry
            .exchange_children(old_name, &target.dentry, new_name);
    } else {
        target.dentry.forget(new_name);
        source.dentry.move_child(old_name, &target.dentry, new_name);
    }
    drop(names);
    let cookie = inotify::next_cookie();
    let is_directory = inode.is_directory();
    if same_directory {
        dnotify::tell(source.inode(), dnotify::RENAMED);
    }
    inotify::notify_child(
        source.inode(),
        old_name,
        mask::MOVED_FROM,
        is_directory,
        cookie,
    );
    inotify::notify_child(
        target.inode(),
        new_name,
        mask::MOVED_TO,
        is_directory,
        cookie,
    );
    inotify::notify_inode(&inode, mask::MOVE_SELF);
    if let Some(replaced) = replaced.filter(|_| !exchange) {
        let gone = replaced.inode();
        if gone.is_directory() {
            inotify::removed(gone);
        } else if gone.metadata().links == 0 {
            inotify::unlinked(gone, &replaced);
        }
    }
    Ok(())
}

/// Changes attributes that only the owner may change (chmod, utimes with times).
pub fn set_attributes(path: &PathRef, change: &SetAttributes) -> Result<()> {
    if path.mount.is_read_only() {
        return Err(EROFS);
    }
    path.inode().set_attributes(change)?;
    inotify::notify_path(path, mask::ATTRIB);
    Ok(())
}

/// truncate(2) and ftruncate(2), permission being granted.
pub fn truncate(path: &PathRef, size: u64) -> Result<()> {
    if path.mount.is_read_only() {
        return Err(EROFS);
    }
    match path.inode().kind() {
        FileType::Regular => {}
        FileType::Directory => return Err(EISDIR),
        _ => return Err(EINVAL),
    }
    path.inode().truncate(size)?;
    inotify::notify_path(path, mask::MODIFY);
    Ok(())
}

/// Clears set-user-id and set-group-id after a write by someone who is not root.
pub fn drop_privilege_bits(caller: &Caller<'_>, inode: &dyn Inode) -> Result<()> {
    let mode = inode.mode();
    if mode & 0o6000 == 0 || caller.has(CAP_FSETID) {
        return Ok(());
    }
    let drop = if mode & 0o010 != 0 { 0o6000 } else { 0o4000 };
    let mode = Some(mode & 0o7777 & !drop);
    inode.set_attributes(&SetAttributes {
        mode,
        ..SetAttributes::default()
    })
}

/// The mount whose root `path` is; EINVAL.
pub fn mount_at(path: &PathRef) -> Result<Arc<Mount>> {
    if !Arc::ptr_eq(&path.dentry, &path.mount.root) {
        return Err(EINVAL.because("not a mount point"));
    }
    Ok(path.mount.clone())
}
