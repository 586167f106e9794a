//! stat, fstat, lstat, newfstatat, statx, access, faccessat, faccessat2, statfs, fstatfs.

use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::at::{
    AT_EACCESS, AT_EMPTY_PATH, AT_FDCWD, AT_NO_AUTOMOUNT, AT_SYMLINK_NOFOLLOW, check_flags,
};
use super::{Arguments, Context};
use crate::Result;
use crate::errno::{EINVAL, EROFS};
use crate::fs::inode::{FileType, FsStatistics, Metadata, Time};
use crate::fs::lower::split_device;
use crate::fs::path::{Follow, PathRef};
use crate::fs::permission::{Caller, WRITE};
use crate::user::UserPtr;

/// `struct stat` (x86-64).
#[derive(Clone, Copy, FromZeros, IntoBytes, Immutable)]
#[repr(C)]
pub struct Stat {
    device: u64,
    inode: u64,
    links: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    pad: u32,
    rdev: u64,
    size: i64,
    block_size: i64,
    blocks: i64,
    atime: [i64; 2],
    mtime: [i64; 2],
    ctime: [i64; 2],
    reserved: [i64; 3],
}

const _: () = assert!(size_of::<Stat>() == 144);

fn pair(time: Time) -> [i64; 2] {
    [time.seconds, i64::from(time.nanoseconds)]
}

impl From<&Metadata> for Stat {
    fn from(metadata: &Metadata) -> Stat {
        Stat {
            device: metadata.device,
            inode: metadata.inode,
            links: metadata.links,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            pad: 0,
            rdev: metadata.rdev,
            size: metadata.size as i64,
            block_size: i64::from(metadata.block_size),
            blocks: metadata.blocks as i64,
            atime: pair(metadata.atime),
            mtime: pair(metadata.mtime),
            ctime: pair(metadata.ctime),
            reserved: [0; 3],
        }
    }
}

fn put(context: &Context<'_>, address: u64, metadata: &Metadata) -> Result<usize> {
    UserPtr::<Stat>::new(address).write(&context.mm(), &Stat::from(metadata))?;
    Ok(0)
}

fn metadata_of_fd(context: &Context<'_>, fd: i32) -> Result<Metadata> {
    let file = context.thread.file(fd)?;
    Ok(match file.inode() {
        Some(inode) => inode.metadata(),
        None => file.ops.metadata(),
    })
}

fn metadata_at(context: &Context<'_>, dirfd: i32, path: u64, flags: u32) -> Result<Metadata> {
    let path = context.path_or_empty(path, flags)?;
    if path.is_empty() && flags & AT_EMPTY_PATH != 0 && dirfd != AT_FDCWD {
        return metadata_of_fd(context, dirfd);
    }
    Ok(context
        .find_at(dirfd, &path, flags, Follow::Yes)?
        .inode()
        .metadata())
}

pub fn stat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let metadata = metadata_at(context, AT_FDCWD, arguments.u64(0), 0)?;
    put(context, arguments.u64(1), &metadata)
}

pub fn lstat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let metadata = metadata_at(context, AT_FDCWD, arguments.u64(0), AT_SYMLINK_NOFOLLOW)?;
    put(context, arguments.u64(1), &metadata)
}

pub fn fstat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let metadata = metadata_of_fd(context, arguments.i32(0))?;
    put(context, arguments.u64(1), &metadata)
}

pub fn newfstatat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let flags = arguments.u32(3);
    check_flags(flags, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH)?;
    let metadata = metadata_at(context, arguments.i32(0), arguments.u64(1), flags)?;
    put(context, arguments.u64(2), &metadata)
}

/// `struct statx_timestamp`.
#[derive(Clone, Copy, FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct StatxTime {
    seconds: i64,
    nanoseconds: u32,
    reserved: i32,
}

impl From<Time> for StatxTime {
    fn from(time: Time) -> StatxTime {
        StatxTime {
            seconds: time.seconds,
            nanoseconds: time.nanoseconds,
            reserved: 0,
        }
    }
}

/// `struct statx`.
#[derive(Clone, Copy, FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct Statx {
    mask: u32,
    block_size: u32,
    attributes: u64,
    links: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    pad: u16,
    inode: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: StatxTime,
    btime: StatxTime,
    ctime: StatxTime,
    mtime: StatxTime,
    rdev: [u32; 2],
    device: [u32; 2],
    mount: u64,
    reserved: [u64; 13],
}

const _: () = assert!(size_of::<Statx>() == 256);

/// STATX_BASIC_STATS | STATX_BTIME.
const STATX_GIVEN: u32 = 0x7ff | 0x800;
const STATX_MNT_ID: u32 = 0x1000;
const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;
const STATX_RESERVED: u32 = 0x8000_0000;
/// AT_STATX_SYNC_TYPE.
const SYNC_TYPE: u32 = 0x6000;

pub fn statx(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (dirfd, flags, mask) = (arguments.i32(0), arguments.u32(2), arguments.u32(3));
    check_flags(
        flags,
        AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | SYNC_TYPE,
    )?;
    if mask & STATX_RESERVED != 0 || flags & SYNC_TYPE == SYNC_TYPE {
        return Err(EINVAL);
    }
    let path = context.path_or_empty(arguments.u64(1), flags)?;
    let found: Option<PathRef>;
    let metadata;
    if path.is_empty() && flags & AT_EMPTY_PATH != 0 && dirfd != AT_FDCWD {
        metadata = metadata_of_fd(context, dirfd)?;
        found = context.thread.file(dirfd)?.path.clone();
    } else {
        let path = context.find_at(dirfd, &path, flags, Follow::Yes)?;
        metadata = path.inode().metadata();
        found = Some(path);
    }
    let mut answer = Statx::new_zeroed();
    answer.mask = STATX_GIVEN;
    if let Some(path) = found {
        answer.mask |= STATX_MNT_ID;
        answer.mount = path.mount.id;
        answer.attributes_mask = STATX_ATTR_MOUNT_ROOT;
        if alloc::sync::Arc::ptr_eq(&path.mount.root, &path.dentry) {
            answer.attributes = STATX_ATTR_MOUNT_ROOT;
        }
    }
    answer.block_size = metadata.block_size;
    answer.links = metadata.links as u32;
    answer.uid = metadata.uid;
    answer.gid = metadata.gid;
    answer.mode = metadata.mode as u16;
    answer.inode = metadata.inode;
    answer.size = metadata.size;
    answer.blocks = metadata.blocks;
    answer.atime = metadata.atime.into();
    answer.btime = metadata.btime.into();
    answer.ctime = metadata.ctime.into();
    answer.mtime = metadata.mtime.into();
    answer.rdev = split_device(metadata.rdev).into();
    answer.device = split_device(metadata.device).into();
    UserPtr::<Statx>::new(arguments.u64(4)).write(&context.mm(), &answer)?;
    Ok(0)
}

fn access_at(context: &Context<'_>, dirfd: i32, path: u64, mode: u32, flags: u32) -> Result<usize> {
    if mode & !7 != 0 {
        return Err(EINVAL);
    }
    let path = context.path_or_empty(path, flags)?;
    // access(2) asks for the real user, whatever the effective one.
    let real;
    let mut caller = context.caller();
    if flags & AT_EACCESS == 0 {
        let mut credentials = context.thread.process.credentials.lock().clone();
        credentials.fsuid = credentials.ruid;
        credentials.fsgid = credentials.rgid;
        // Capabilities follow the real user too.
        real = crate::fs::hooks::credentials_for_access(credentials);
        caller = Caller {
            credentials: Some(&real),
            ..caller
        };
    }
    let found = if path.is_empty() {
        context.find_at(dirfd, &path, flags, Follow::Yes)?
    } else {
        let mut walk = context.walk_at(dirfd, &path)?;
        walk.caller = caller;
        let follow = if flags & AT_SYMLINK_NOFOLLOW != 0 {
            Follow::No
        } else {
            Follow::Yes
        };
        walk.find(&path, follow)?
    };
    if mode == 0 {
        return Ok(0);
    }
    let inode = found.inode();
    let is_special = matches!(
        inode.kind(),
        FileType::Character | FileType::Fifo | FileType::Socket
    );
    if mode & WRITE != 0 && found.mount.is_read_only() && !is_special {
        return Err(EROFS);
    }
    caller.check(&**inode, mode)?;
    Ok(0)
}

pub fn access(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    access_at(context, AT_FDCWD, arguments.u64(0), arguments.u32(1), 0)
}

pub fn faccessat(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    access_at(
        context,
        arguments.i32(0),
        arguments.u64(1),
        arguments.u32(2),
        0,
    )
}

pub fn faccessat2(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let flags = arguments.u32(3);
    check_flags(flags, AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)?;
    access_at(
        context,
        arguments.i32(0),
        arguments.u64(1),
        arguments.u32(2),
        flags,
    )
}

/// `struct statfs` (x86-64).
#[derive(Clone, Copy, FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct StatFs {
    kind: u64,
    block_size: u64,
    blocks: u64,
    free: u64,
    available: u64,
    files: u64,
    files_free: u64,
    id: [i32; 2],
    name_max: u64,
    fragment_size: u64,
    flags: u64,
    spare: [u64; 4],
}

const _: () = assert!(size_of::<StatFs>() == 120);

fn put_statfs(
    context: &Context<'_>,
    address: u64,
    statistics: FsStatistics,
    device: u64,
    mount_flags: u32,
) -> Result<usize> {
    // ST_VALID, and the flags that statfs shares with mount.
    let flags = 0x20 | u64::from(mount_flags & 0xf) | u64::from(mount_flags & 0x400);
    let answer = StatFs {
        kind: statistics.magic,
        block_size: statistics.block_size.max(4096),
        blocks: statistics.blocks,
        free: statistics.free,
        available: statistics.free,
        files: statistics.files,
        files_free: statistics.files_free,
        id: [device as i32, 0],
        name_max: 255,
        fragment_size: statistics.block_size.max(4096),
        flags,
        spare: [0; 4],
    };
    UserPtr::<StatFs>::new(address).write(&context.mm(), &answer)?;
    Ok(0)
}

fn statfs_of(context: &Context<'_>, address: u64, path: &PathRef) -> Result<usize> {
    let inode = path.inode();
    put_statfs(
        context,
        address,
        inode.statistics(),
        inode.id().device,
        path.mount.flags(),
    )
}

pub fn statfs(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let path = context.path(arguments.u64(0))?;
    let path = context.walk().find(&path, Follow::Yes)?;
    statfs_of(context, arguments.u64(1), &path)
}

pub fn fstatfs(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let file = context.thread.file(arguments.i32(0))?;
    match &file.path {
        Some(path) => statfs_of(context, arguments.u64(1), path),
        None => {
            const SOCKFS_MAGIC: u64 = 0x534f_434b;
            const PIPEFS_MAGIC: u64 = 0x5049_5045;
            const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;
            let magic = match file.ops.metadata().mode & 0o170000 {
                0o140000 => SOCKFS_MAGIC,
                0o010000 => PIPEFS_MAGIC,
                _ => ANON_INODE_FS_MAGIC,
            };
            let statistics = FsStatistics {
                magic,
                ..FsStatistics::default()
            };
            put_statfs(context, arguments.u64(1), statistics, 0, 0)
        }
    }
}
