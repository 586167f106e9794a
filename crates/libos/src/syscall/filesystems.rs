//! sysfs, ustat, name_to_handle_at, open_by_handle_at: what there is to ask of file systems beyond
//! statfs.

use super::at::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, check_flags};
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, EOPNOTSUPP, EOVERFLOW, EPERM};
use crate::fs::mount;
use crate::fs::path::Follow;
use crate::fs::procfs::filesystem_names;
use crate::user::read_path;

/// sysfs(2): the kinds of file systems, by number.
pub fn sysfs(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    const INDEX_OF: i32 = 1;
    const NAME_OF: i32 = 2;
    const COUNT: i32 = 3;
    let mut names = filesystem_names();
    match arguments.i32(0) {
        INDEX_OF => {
            let wanted = read_path(&context.mm(), arguments.u64(1))?;
            let found = names.position(|name| name.as_bytes() == wanted);
            found.ok_or(EINVAL.because("no such kind of file system"))
        }
        NAME_OF => {
            let name = names.nth(arguments.u32(1) as usize);
            let name = name.ok_or(EINVAL.because("not so many kinds of file systems"))?;
            let mut bytes = name.as_bytes().to_vec();
            bytes.push(0);
            context.mm().write(arguments.u64(2), &bytes)?;
            Ok(0)
        }
        COUNT => Ok(names.count()),
        _ => Err(EINVAL.because("unknown sysfs option")),
    }
}

/// ustat(2): free blocks and inodes of a mounted file system, by its device.
pub fn ustat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let wanted = arguments.u32(0);
    let root = context.thread.fs().root();
    let mounts = mount::all().into_iter();
    let roots = mounts.map(|mount| mount.root.inode().clone());
    let mut inodes = core::iter::once(root.inode().clone()).chain(roots);
    let found = inodes.find(|inode| inode.metadata().device == u64::from(wanted));
    let inode = found.ok_or(EINVAL.because("no mounted file system has this device"))?;
    let statistics = inode.statistics();
    // struct ustat: free blocks (int), padding, free inodes (long), two names.
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&(statistics.free as u32).to_le_bytes());
    bytes[8..16].copy_from_slice(&statistics.files_free.to_le_bytes());
    context.mm().write(arguments.u64(1), &bytes)?;
    Ok(0)
}

/// Most bytes of a handle (MAX_HANDLE_SZ).
const HANDLE_MAX: u32 = 128;

/// name_to_handle_at(2): as on Linux's overlay, handles only name a file; they do not open one.
pub fn name_to_handle_at(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    const AT_HANDLE_MNT_ID_UNIQUE: u32 = 1;
    const AT_HANDLE_CONNECTABLE: u32 = 2;
    const AT_HANDLE_FID: u32 = 0x200;
    /// Inode and generation (FILEID_INO64_GEN).
    const TYPE: u32 = 0x81;
    const LEN: u32 = 12;
    let (dirfd, path, handle) = (arguments.i32(0), arguments.u64(1), arguments.u64(2));
    let (mount_id, flags) = (arguments.u64(3), arguments.u32(4));
    let kinds = AT_HANDLE_FID | AT_HANDLE_CONNECTABLE | AT_HANDLE_MNT_ID_UNIQUE;
    check_flags(flags, kinds | AT_SYMLINK_FOLLOW | AT_EMPTY_PATH)?;
    if flags & AT_HANDLE_CONNECTABLE != 0 && flags & (AT_HANDLE_FID | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL.because("such handles cannot be connected"));
    }
    let mm = context.mm();
    let path = context.path_or_empty(path, flags)?;
    let place = context.find_at(dirfd, &path, flags, Follow::No)?;
    if flags & AT_HANDLE_FID == 0 {
        return Err(EOPNOTSUPP.because("files cannot be opened by handles"));
    }
    let mut room = [0; 4];
    mm.read(handle, &mut room)?;
    let room = u32::from_le_bytes(room);
    if room > HANDLE_MAX {
        return Err(EINVAL.because("longer than any handle"));
    }
    let mut header = [0; 8];
    header[..4].copy_from_slice(&LEN.to_le_bytes());
    if flags & AT_HANDLE_MNT_ID_UNIQUE != 0 {
        mm.write(mount_id, &place.mount.id.to_le_bytes())?;
    } else {
        mm.write(mount_id, &(place.mount.id as u32).to_le_bytes())?;
    }
    if room < LEN {
        header[4..].copy_from_slice(&0xff_u32.to_le_bytes());
        mm.write(handle, &header)?;
        return Err(EOVERFLOW.because("the handle needs more room"));
    }
    header[4..].copy_from_slice(&TYPE.to_le_bytes());
    let mut bytes = [0; LEN as usize];
    bytes[..8].copy_from_slice(&place.inode().id().inode.to_le_bytes());
    mm.write(handle, &header)?;
    mm.write(handle + 8, &bytes)?;
    Ok(0)
}

/// open_by_handle_at(2) needs CAP_DAC_READ_SEARCH, which a container does not have.
pub fn open_by_handle_at(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mut len = [0; 4];
    context.mm().read(arguments.u64(1), &mut len)?;
    if !(1..=HANDLE_MAX).contains(&u32::from_le_bytes(len)) {
        return Err(EINVAL.because("no handle is so long"));
    }
    let dirfd = arguments.i32(0);
    if dirfd != AT_FDCWD {
        context.thread.file(dirfd)?;
    }
    Err(EPERM.because("opening by handle needs CAP_DAC_READ_SEARCH"))
}
