//! System V shared memory segments.
//!
//! A segment is a shared object with a key. Its home address is taken when it is made, so every
//! process attaches it there. A removed segment lives on while someone has it attached.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};

use super::allocator::{self, Wanted};
use super::map::Placement;
use super::residency;
use super::shared::SharedObject;
use super::view::Wish;
use super::{Backing, PAGE, Space, Vma, VmaFlags, accounting, page_up, random_mmap_base};
use crate::Result;
use crate::errno::{EEXIST, EIDRM, EINVAL, ENOENT, ENOMEM, ENOSPC};
use crate::fs::procfs::Setting;
use crate::ipc::NextId;
use crate::platform::{Protection, platform};
use crate::sync::SpinLock;

/// Most segments (/proc/sys/kernel/shmmni).
pub static SEGMENTS_MAX: Setting = Setting::new(4096, 32_768);
/// Most bytes of one (shmmax): by default more than any can have.
pub static SEGMENT_BYTES: Setting = Setting::new(18_446_744_073_692_774_399, u64::MAX);

/// What shmctl(IPC_STAT) shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    pub creator_uid: u32,
    pub creator_gid: u32,
    /// Permission bits, and SHM_DEST (0o1000) once removed, SHM_LOCKED (0o2000).
    pub mode: u32,
    /// Size in bytes as asked for.
    pub size: u64,
    /// Times in seconds.
    pub attached: u64,
    pub detached: u64,
    pub changed: u64,
    pub creator: u32,
    pub last: u32,
    /// How often it is attached.
    pub users: u64,
    /// Pages in memory.
    pub resident: u64,
}

/// SHM_DEST: removed, waiting for the last detach.
pub const DESTROYED: u32 = 0o1000;

struct Segment {
    object: Weak<SharedObject>,
    /// Keeps the object until the segment is removed.
    keep: Option<Arc<SharedObject>>,
    status: Status,
}

struct Segments {
    by_id: BTreeMap<i32, Segment>,
    next: i32,
}

static SEGMENTS: SpinLock<Segments> = SpinLock::new(Segments {
    by_id: BTreeMap::new(),
    next: 0,
});

/// /proc/sys/kernel/shm_next_id.
pub static NEXT_ID: NextId = NextId::new();

/// How shmget opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// 0 (IPC_PRIVATE) always makes a new one.
    pub key: i32,
    pub size: u64,
    pub create: bool,
    pub exclusive: bool,
}

/// Finds or makes a segment; its id. `status` describes a new one; `check` says whether the caller
/// may use an existing one.
pub fn get(open: Open, status: Status, check: impl Fn(&Status) -> Result<()>) -> Result<i32> {
    let mut segments = SEGMENTS.lock();
    segments.sweep();
    let found = segments.by_id.iter().find(|(_, segment)| {
        open.key != 0 && segment.status.key == open.key && segment.keep.is_some()
    });
    if let Some((&id, segment)) = found {
        if open.create && open.exclusive {
            return Err(EEXIST);
        }
        if open.size > segment.status.size {
            return Err(EINVAL.because("the segment is smaller"));
        }
        check(&segment.status)?;
        return Ok(id);
    }
    if open.key != 0 && !open.create {
        return Err(ENOENT);
    }
    let len = page_up(open.size).filter(|&len| len > 0).ok_or(EINVAL)?;
    if open.size > SEGMENT_BYTES.value() {
        return Err(EINVAL.because("kernel.shmmax"));
    }
    if segments.by_id.len() as u64 >= SEGMENTS_MAX.value() {
        return Err(ENOSPC.because("kernel.shmmni"));
    }
    if len > accounting::limit() {
        return Err(ENOMEM.because("more than the container's memory"));
    }
    let within = platform().user_range();
    let wanted = Wanted {
        len,
        align: PAGE,
        within,
        below: random_mmap_base(),
    };
    let start = allocator::allocate(&wanted)?;
    let object = SharedObject::new(start..start + len, None);
    let wish = NEXT_ID.take();
    let id = wish.filter(|id| !segments.by_id.contains_key(id));
    let id = id.unwrap_or_else(|| {
        while segments.by_id.contains_key(&segments.next) {
            segments.next = segments.next.wrapping_add(1).max(0);
        }
        let id = segments.next;
        segments.next = segments.next.wrapping_add(1).max(0);
        id
    });
    let status = Status {
        key: open.key,
        size: open.size,
        ..status
    };
    let weak = Arc::downgrade(&object);
    segments.by_id.insert(
        id,
        Segment {
            object: weak,
            keep: Some(object),
            status,
        },
    );
    Ok(id)
}

impl Segments {
    /// Forgets removed segments that nobody has attached any more.
    fn sweep(&mut self) {
        self.by_id
            .retain(|_, segment| segment.object.strong_count() > 0);
    }

    fn find(&mut self, id: i32) -> Result<&mut Segment> {
        self.sweep();
        self.by_id
            .get_mut(&id)
            .ok_or(EINVAL.because("no such segment"))
    }
}

/// A segment's status.
pub fn status(id: i32) -> Result<Status> {
    let (object, mut status) = {
        let mut segments = SEGMENTS.lock();
        let segment = segments.find(id)?;
        (segment.object.upgrade().ok_or(EIDRM)?, segment.status)
    };
    status.users = residency::users_of(&object);
    status.resident = object.count(&(0..object.capacity()));
    Ok(status)
}

/// Changes a segment's status.
pub fn update(id: i32, change: impl FnOnce(&mut Status)) -> Result<()> {
    change(&mut SEGMENTS.lock().find(id)?.status);
    Ok(())
}

/// Removes a segment: it goes with its last user.
pub fn remove(id: i32) -> Result<()> {
    let kept = {
        let mut segments = SEGMENTS.lock();
        let segment = segments.find(id)?;
        segment.status.mode |= DESTROYED;
        segment.status.key = 0;
        segment.keep.take()
    };
    // Its memory may be freed here, outside the lock.
    drop(kept);
    Ok(())
}

/// Whether an object is a removed segment that is attached once.
pub(super) fn is_ending(object: &Arc<SharedObject>) -> bool {
    let is_removed = {
        let segments = SEGMENTS.lock();
        let same = |segment: &&Segment| core::ptr::eq(segment.object.as_ptr(), &**object);
        let found = segments.by_id.values().find(same);
        found.is_some_and(|segment| segment.keep.is_none())
    };
    is_removed && residency::users_of(object) == 1
}

/// All ids, ascending.
pub fn all() -> alloc::vec::Vec<i32> {
    let mut segments = SEGMENTS.lock();
    segments.sweep();
    segments.by_id.keys().copied().collect()
}

/// The pages of all segments: how many there are, and how many are in memory.
pub fn pages() -> (u64, u64) {
    let every: alloc::vec::Vec<_> = {
        let segments = SEGMENTS.lock();
        let all = segments.by_id.values();
        all.filter_map(|segment| Some((segment.status.size, segment.object.upgrade()?)))
            .collect()
    };
    every
        .iter()
        .fold((0, 0), |(all, resident), (size, object)| {
            let there = object.count(&(0..object.capacity()));
            (all + size.div_ceil(PAGE), resident + there)
        })
}

impl Space {
    /// Attaches a segment: at its home address, or as an alias where another one is wanted or that
    /// one is in use.
    pub fn attach_segment(
        &self,
        id: i32,
        placement: Placement,
        protection: Protection,
    ) -> Result<u64> {
        let object = {
            let mut segments = SEGMENTS.lock();
            segments.find(id)?.object.upgrade().ok_or(EIDRM)?
        };
        let wish = Wish {
            placement,
            len: object.capacity(),
            protection,
            flags: VmaFlags::SHARED,
        };
        self.map_view(&object, 0, &wish)
    }

    /// Detaches the segment attached at an address; its id if it still has one. EINVAL.
    pub fn detach_segment(&self, address: u64) -> Result<Option<i32>> {
        let mut locked = self.lock();
        let object = match locked.vmas.find(address) {
            Some(Vma {
                backing: Backing::Shared(object, 0),
                start,
                ..
            }) if *start == address && !object.is_file() => object.clone(),
            _ => return Err(EINVAL.because("no segment is attached there")),
        };
        let id = {
            let segments = SEGMENTS.lock();
            let same = |segment: &Segment| core::ptr::eq(segment.object.as_ptr(), &*object);
            let found = segments.by_id.iter().find(|(_, segment)| same(segment));
            found
                .map(|(&id, _)| id)
                .ok_or(EINVAL.because("no segment is attached there"))?
        };
        locked.unmap(&(address..address + object.capacity()));
        drop(locked);
        Ok(Some(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::EFAULT;
    use crate::mm::AddressSpace;

    #[test]
    fn segments_are_shared_until_the_last_user_leaves() {
        crate::testing::platform();
        let any = |_: &Status| Ok(());
        let open = Open {
            key: 77,
            size: 5000,
            create: true,
            exclusive: true,
        };
        let id = get(open, Status::default(), any).unwrap();
        assert_eq!(get(open, Status::default(), any), Err(EEXIST));
        let again = Open {
            create: false,
            ..open
        };
        assert_eq!(get(again, Status::default(), any), Ok(id));
        assert_eq!(
            get(
                Open {
                    size: 6000,
                    ..again
                },
                Status::default(),
                any
            ),
            Err(EINVAL)
        );
        assert_eq!(
            get(Open { key: 78, ..again }, Status::default(), any),
            Err(ENOENT)
        );
        let (one, two) = (AddressSpace::new(), AddressSpace::new());
        let both = Protection::READ | Protection::WRITE;
        let at = one.attach_segment(id, Placement::Hint(0), both).unwrap();
        assert_eq!(
            two.attach_segment(id, Placement::Hint(0), Protection::READ),
            Ok(at)
        );
        one.write(at + 4096, b"segment").unwrap();
        let mut bytes = [0; 7];
        two.read(at + 4096, &mut bytes).unwrap();
        assert_eq!(&bytes, b"segment");
        assert_eq!(two.write(at, b"x"), Err(EFAULT));
        assert_eq!(status(id).unwrap().users, 2);
        remove(id).unwrap();
        assert_eq!(status(id).unwrap().mode & DESTROYED, DESTROYED);
        assert_eq!(one.detach_segment(at), Ok(Some(id)));
        assert_eq!(one.detach_segment(at), Err(EINVAL));
        drop(two);
        assert!(status(id).is_err());
        assert!(allocator::is_free(&(at..at + 8192)));
    }
}
