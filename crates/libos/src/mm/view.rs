//! Views of shared memory: MAP_SHARED, and aliases.
//!
//! A view is a mapping of a part of a [`SharedObject`]. Where it can be it is at the object's home,
//! which costs nothing. A view anywhere else (MAP_FIXED, a second one in the same process, mremap)
//! is an alias and owns its addresses as private memory does. A page that is elsewhere is moved
//! when an alias faults: the threads of all who see the object are stopped, the page is copied, and
//! the old one is given back. In the kernel nothing moves: copies go to wherever the page is.
//!
//! Whoever wants the addresses of an object's home gets them: the object moves to another home, and
//! its views there become aliases.
//!
//! In the static layout a page that was given up can only be hidden by the host's page tables, and
//! a host could show a program an old page. So there are no aliases there (ENOMEM).
//!
//! Lock order: making an object → residency → a space's state → the object's pages.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use super::allocator::Wanted;
use super::fault::effective;
use super::map::{Placement, Request, Source, maps_max};
use super::residency::{self, Residency};
use super::shared::{self, Found, SharedObject, View};
use super::vma::{Around, FileBacking};
use super::{Backing, Locked, PAGE, Space, Vma, VmaFlags, allocator, page_up, random_mmap_base};
use crate::Result;
use crate::errno::{EEXIST, EIDRM, EINVAL, ENOMEM};
use crate::fs::inode::FileId;
use crate::platform::{Protection, platform};
use crate::sync::{SpinGuard, SpinLock};

/// Two processes that map a file at once must find one object.
static MAKING: SpinLock<()> = SpinLock::new(());

/// Where shared memory should be seen.
pub(super) struct Wish {
    pub placement: Placement,
    pub len: u64,
    pub protection: Protection,
    pub flags: VmaFlags,
}

impl Space {
    /// MAP_SHARED.
    pub(super) fn map_shared(&self, request: Request, len: u64) -> Result<u64> {
        let populate = request.populate;
        let wish = Wish {
            placement: request.placement,
            len,
            protection: request.protection,
            flags: request.flags,
        };
        let file = match request.source {
            Source::Anonymous => None,
            Source::File(file) => Some(file),
        };
        let making = MAKING.lock();
        let found = match &file {
            Some(file) => shared::find(file.inode.id(), file.offset, len)?,
            None => Found::Nothing,
        };
        let (mut locked, view) = match found {
            Found::Whole(object, offset) => self.place_view(&object, offset, &wish)?,
            Found::Short(object, wanted) => {
                residency::lock().make_room(&object, wanted)?;
                let offset = file.as_ref().map_or(0, |file| file.offset);
                self.place_view(&object, offset, &wish)?
            }
            Found::Nothing => self.make_shared(file, &wish)?,
        };
        let range = view.range.clone();
        locked.add_view(view, &wish)?;
        drop(making);
        if populate || locked.lock_future || platform().must_commit_at_once() {
            let _ = locked.populate(&range);
        }
        Ok(range.start)
    }

    /// remap_file_pages(2): shows another part of a shared mapping's object, from `offset` on, in
    /// a range of it. EINVAL where the range is not all of one object.
    pub fn remap_shared(&self, start: u64, len: u64, offset: u64) -> Result<()> {
        let range = start..start + len;
        let (object, protection, flags) = {
            let locked = self.lock();
            let first = locked.vmas.find(start).ok_or(EINVAL)?;
            let Backing::Shared(object, _) = &first.backing else {
                return Err(EINVAL.because("not a shared mapping"));
            };
            let shows = |vma: &Vma| {
                matches!(&vma.backing, Backing::Shared(other, _) if Arc::ptr_eq(other, object))
                    && vma.flags == first.flags
            };
            if !locked.vmas.covers(&range) || !locked.vmas.overlapping(&range).all(shows) {
                return Err(EINVAL.because("the range is not all of one shared mapping"));
            }
            (object.clone(), first.protection, first.flags)
        };
        let placement = Placement::Fixed(start);
        let Some(file) = object.file() else {
            // Linux takes the old mapping away first, and with its last one a removed segment goes.
            if len == object.capacity() && super::sysv::is_ending(&object) {
                self.lock().unmap(&range);
                return Err(EIDRM.because("the segment was removed"));
            }
            let wish = Wish {
                placement,
                len,
                protection,
                flags,
            };
            if offset + len > object.capacity() {
                return Err(EINVAL.because("beyond the end of the object"));
            }
            return self.map_view(&object, offset, &wish).map(|_| ());
        };
        let request = Request {
            placement,
            len,
            protection,
            flags,
            source: Source::File(FileBacking {
                offset,
                ..file.clone()
            }),
            populate: false,
        };
        self.map_shared(request, len).map(|_| ())
    }

    /// Maps a part of an object that exists; the address.
    pub(super) fn map_view(
        &self,
        object: &Arc<SharedObject>,
        offset: u64,
        wish: &Wish,
    ) -> Result<u64> {
        let _making = MAKING.lock();
        let (mut locked, view) = self.place_view(object, offset, wish)?;
        let start = view.range.start;
        locked.add_view(view, wish)?;
        Ok(start)
    }

    /// Finds the addresses for a view: at home where that is possible, else as an alias.
    fn place_view(
        &self,
        object: &Arc<SharedObject>,
        offset: u64,
        wish: &Wish,
    ) -> Result<(Locked<'_>, View)> {
        let guard = residency::lock();
        let view = |start: u64| View {
            object: object.clone(),
            offset,
            range: start..start + wish.len,
        };
        let home = view(object.home().start + offset);
        let fits = offset + wish.len <= object.capacity();
        let at_home = fits
            && match wish.placement {
                Placement::Fixed(at) | Placement::Free(at) => at == home.range.start,
                Placement::Low(_) => home.range.end <= 1 << 31,
                Placement::Hint(_) => true,
            };
        if object.is_aliased() {
            guard.make_aliased(object, Some(self));
        }
        if at_home {
            let mut locked = self.lock_with(guard);
            let free = locked.vmas.overlapping(&home.range).next().is_none();
            match wish.placement {
                Placement::Free(_) if !free => return Err(EEXIST),
                Placement::Fixed(_) if !free => {
                    locked.unmap(&home.range);
                    return Ok((locked, home));
                }
                _ if free => return Ok((locked, home)),
                _ => {
                    drop(locked);
                    residency::lock().make_aliased(object, Some(self));
                }
            }
        } else {
            guard.make_aliased(object, Some(self));
            drop(guard);
        }
        check_aliases_possible()?;
        let shown = Some((object, offset));
        let (locked, start) = self.take_addresses(wish.placement, wish.len, shown)?;
        Ok((locked, view(start)))
    }

    /// A new shared object, and where the part of it that is to be mapped goes.
    fn make_shared(&self, file: Option<FileBacking>, wish: &Wish) -> Result<(Locked<'_>, View)> {
        let len = wish.len;
        let (file, offset) = match file {
            Some(file) => (
                Some(FileBacking {
                    offset: 0,
                    ..file.clone()
                }),
                file.offset,
            ),
            None => (None, 0),
        };
        let view = |object: Arc<SharedObject>, offset: u64, start: u64| View {
            object,
            offset,
            range: start..start + len,
        };
        if let Placement::Hint(_) = wish.placement {
            let mut locked = self.lock();
            if locked.dead || locked.vmas.len() >= maps_max() {
                return Err(ENOMEM.because("too many mappings"));
            }
            let room = match &file {
                Some(file) => room_for(file, offset + len)?,
                None => len,
            };
            // A hint is worth keeping where the mapping is all there is.
            let hint = if file.is_some() {
                Placement::Hint(0)
            } else {
                wish.placement
            };
            if let Ok(start) = locked.find_addresses(hint, room) {
                let object = SharedObject::new(start..start + room, file);
                return Ok((locked, view(object, offset, start + offset)));
            }
            // No room for all of the file: this part of it will do.
            let start = locked.find_addresses(Placement::Hint(0), len)?;
            let file = file.map(|file| FileBacking { offset, ..file });
            let object = SharedObject::new(start..start + len, file);
            return Ok((locked, view(object, 0, start)));
        }
        let (locked, start) = self.take_addresses(wish.placement, len, None)?;
        let range = start..start + len;
        let free = locked.without_reserved(&range);
        let whole = file.is_none() || offset == 0;
        if whole && free == [range.clone()] && allocator::at_most_one_user(&range) {
            let object = SharedObject::new(range, file);
            return Ok((locked, view(object, 0, start)));
        }
        // A home elsewhere, and an alias here.
        free.into_iter().for_each(allocator::release);
        drop(locked);
        check_aliases_possible()?;
        let room = match &file {
            Some(file) => room_for(file, offset + len)?,
            None => len,
        };
        let home = allocator::allocate(&anywhere(room))?;
        let object = SharedObject::new(home..home + room, file);
        self.place_view(&object, offset, wish)
    }
}

/// How much address room a file's object gets: for what is mapped of it later, and for growing.
/// Addresses cost nothing.
fn room_for(file: &FileBacking, end: u64) -> Result<u64> {
    const ROOM_MIN: u64 = 16 << 20;
    const ROOM_MAX: u64 = 16 << 30;
    let end = file.inode.size().max(end);
    let room = end.saturating_mul(2).clamp(ROOM_MIN, ROOM_MAX).max(end);
    page_up(room).ok_or(ENOMEM)
}

fn anywhere(len: u64) -> Wanted {
    Wanted {
        len,
        align: PAGE,
        within: platform().user_range(),
        below: random_mmap_base(),
    }
}

fn check_aliases_possible() -> Result<()> {
    if platform().must_commit_at_once() {
        platform().log(
            1,
            "a second view of shared memory needs the dynamic layout: refused",
        );
        return Err(ENOMEM.because("a second view of shared memory needs the dynamic layout"));
    }
    Ok(())
}

impl Residency {
    /// From now on an object has views at other addresses; `also` will see it too. Everyone who
    /// does takes the residency lock for copies.
    pub(super) fn make_aliased(&self, object: &Arc<SharedObject>, also: Option<&Space>) {
        object.set_aliased();
        for space in self.spaces() {
            let is_meant = also.is_some_and(|also| core::ptr::eq(also, &**space));
            if is_meant || sees(space, object) {
                space.aliased.store(true, Ordering::SeqCst);
                space.set_conflicted();
            }
        }
    }

    /// Stops the user code of all who see an object. `own` is a space whose state is locked.
    pub(super) fn stop_users(&self, object: &Arc<SharedObject>, own: Option<&Space>) {
        for space in self.spaces() {
            let is_own = own.is_some_and(|own| core::ptr::eq(own, &**space));
            if space.aliased.load(Ordering::SeqCst)
                && space.is_resident()
                && (is_own || sees(space, object))
            {
                space.stop_threads(None);
            }
        }
    }

    /// Lets an object grow to `wanted` bytes at least.
    pub(super) fn make_room(&self, object: &Arc<SharedObject>, wanted: u64) -> Result<()> {
        if wanted <= object.capacity() {
            return Ok(());
        }
        let capacity = page_up(wanted.saturating_mul(2)).ok_or(ENOMEM)?;
        self.rehome(object, capacity)
    }

    /// Gives an object another home with room for `capacity` bytes. Its views become aliases.
    pub(super) fn rehome(&self, object: &Arc<SharedObject>, capacity: u64) -> Result<()> {
        check_aliases_possible()?;
        let start = allocator::allocate(&anywhere(capacity))?;
        let old = object.home();
        self.make_aliased(object, None);
        self.stop_users(object, None);
        let mut views: Vec<View> = Vec::new();
        for space in self.spaces() {
            let state = space.state.lock();
            let of_object = state.vmas.iter().filter_map(Vma::view);
            views.extend(
                of_object.filter(|view| Arc::ptr_eq(&view.object, object) && view.is_home()),
            );
        }
        // When this fails, pages that went already are away at the new addresses, which therefore
        // stay taken.
        object.set_home(start..start + capacity, &views)?;
        for view in views {
            allocator::share(view.range);
        }
        allocator::release(old);
        Ok(())
    }
}

/// Whether any process may write to a file through a shared mapping (F_SEAL_WRITE is then refused).
pub fn is_mapped_writable(file: FileId) -> bool {
    let _making = MAKING.lock();
    let guard = residency::lock();
    let shows = |vma: &Vma| match &vma.backing {
        Backing::Shared(object, _) => {
            let id = object.file().map(|file| file.inode.id());
            id == Some(file) && !vma.flags.contains(VmaFlags::NO_WRITE)
        }
        _ => false,
    };
    let mut spaces = guard.spaces().iter();
    spaces.any(|space| space.state.lock().vmas.iter().any(shows))
}

fn sees(space: &Space, object: &Arc<SharedObject>) -> bool {
    let state: SpinGuard<'_, super::State> = space.state.lock();
    let shows =
        |vma: &Vma| matches!(&vma.backing, Backing::Shared(other, _) if Arc::ptr_eq(other, object));
    state.vmas.iter().any(shows)
}

impl Locked<'_> {
    /// Maps a view whose addresses are free, and taken if it is an alias.
    pub(super) fn add_view(&mut self, view: View, wish: &Wish) -> Result<()> {
        let writable = wish.protection.contains(Protection::WRITE);
        if writable {
            view.object.set_dirty();
        }
        let alias = !view.is_home();
        if !alias {
            view.object
                .protect(&view, effective(wish.protection), false)?;
        }
        let backing = Backing::Shared(view.object.clone(), view.object.base() + view.offset);
        self.add(Vma {
            start: view.range.start,
            end: view.range.end,
            protection: wish.protection,
            flags: wish.flags | VmaFlags::SHARED,
            backing,
            around: Around::default(),
        });
        self.close(&view.range);
        Ok(())
    }

    /// An alias goes: the pages that it holds return to their home.
    pub(super) fn leave_alias(&self, view: &View) {
        if !view.object.holds_any(view) {
            return;
        }
        if let Some(guard) = &self.residency {
            guard.stop_users(&view.object, Some(self.space));
        }
        view.object.return_home(view);
    }

    /// Brings the page of a view in, or moves it there. Users of an object with aliases are stopped.
    pub(super) fn bring_in_view(
        &mut self,
        view: &View,
        window: Range<u64>,
        page: u64,
        protection: Protection,
    ) -> core::result::Result<(), super::Fault> {
        if !view.object.is_aliased() {
            return view.object.bring_in(view, &window, page, protection);
        }
        match view.object.location(view.offset_of(page)) {
            // The address is another process's at present; so is what the kernel copies.
            Some(_) if !self.resident && !view.is_home() => Ok(()),
            Some(at) if at != page => view
                .object
                .fetch(view, page, protection)
                .map_err(|_| super::Fault::NoMemory),
            Some(_) => Ok(()),
            None if !self.resident => view.object.bring_in_at_home(view, page, protection),
            None => view.object.bring_in(view, &window, page, protection),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::{AddressSpace, accounting};
    use crate::testing::{self, MemoryFile};

    const RW: Protection = Protection::READ.union(Protection::WRITE);
    const R: Protection = Protection::READ;

    fn shared(inode: &Arc<MemoryFile>, offset: u64, len: u64, placement: Placement) -> Request {
        let mut request = Request::anonymous(len, RW);
        request.flags = VmaFlags::SHARED;
        request.placement = placement;
        request.source = Source::File(FileBacking {
            inode: inode.clone(),
            offset,
            path: None,
        });
        request
    }

    fn text(mm: &Space, address: u64) -> [u8; 4] {
        let mut bytes = [0; 4];
        mm.read(address, &mut bytes).unwrap();
        bytes
    }

    /// A page as user code of the space would touch it.
    fn touch(mm: &Space, address: u64, access: Protection) {
        mm.handle_fault(address, access).unwrap();
        let page = address & !(PAGE - 1);
        assert!(
            testing::platform()
                .protection(page)
                .unwrap()
                .contains(access)
        );
    }

    fn is_committed(address: u64) -> bool {
        testing::platform().protection(address).is_some()
    }

    #[test]
    fn two_views_in_one_process_show_the_same_bytes() {
        let thread = testing::setup();
        let mm = thread.mm();
        let inode = MemoryFile::new(alloc::vec![7; 0x3000]);
        let used = accounting::used();
        let one = mm
            .map(shared(&inode, 0, 0x3000, Placement::Hint(0)))
            .unwrap();
        let two = mm
            .map(shared(&inode, 0x1000, 0x2000, Placement::Hint(0)))
            .unwrap();
        assert!(two + 0x2000 <= one || one + 0x3000 <= two);
        touch(&mm, one + 0x1000, RW);
        mm.write(one + 0x1000, b"home").unwrap();
        assert_eq!(&text(&mm, two), b"home");
        // The kernel's copies move nothing, user code does.
        assert!(is_committed(one + 0x1000) && !is_committed(two));
        touch(&mm, two, RW);
        assert!(!is_committed(one + 0x1000) && is_committed(two));
        mm.write(two, b"away").unwrap();
        assert_eq!(&text(&mm, one + 0x1000), b"away");
        assert_eq!(mm.shared_location(two), mm.shared_location(one + 0x1000));
        assert!(mm.shared_location(two) != mm.shared_location(one));
        // The file sees it wherever it is, and it sees the file.
        let id = crate::fs::inode::Inode::id(&*inode);
        shared::flush(id, 0, 0x3000).unwrap();
        assert_eq!(&inode.content.lock().unwrap()[0x1000..0x1004], b"away");
        inode.content.lock().unwrap()[0x1000..0x1004].copy_from_slice(b"file");
        shared::refresh(id, 0x1000, 4);
        assert_eq!(&text(&mm, two), b"file");
        // One view goes, with the page that it holds: the other has it.
        mm.write(two, b"last").unwrap();
        mm.unmap(two, 0x2000).unwrap();
        assert!(!is_committed(two) && allocator::is_free(&(two..two + 0x2000)));
        assert_eq!(&text(&mm, one + 0x1000), b"last");
        mm.unmap(one, 0x3000).unwrap();
        assert!(allocator::is_free(&(one..one + 0x3000)));
        assert_eq!(&inode.content.lock().unwrap()[0x1000..0x1004], b"last");
        assert_eq!(accounting::used(), used);
    }

    #[test]
    fn each_view_has_its_own_protection() {
        let thread = testing::setup();
        let mm = thread.mm();
        let inode = MemoryFile::new(alloc::vec![0; 0x1000]);
        let write = mm
            .map(shared(&inode, 0, 0x1000, Placement::Hint(0)))
            .unwrap();
        let mut request = shared(&inode, 0, 0x1000, Placement::Hint(0));
        request.protection = R | Protection::EXECUTE;
        let run = mm.map(request).unwrap();
        touch(&mm, write, RW);
        touch(&mm, run, R | Protection::EXECUTE);
        assert_eq!(
            testing::platform().protection(run),
            Some(R | Protection::EXECUTE)
        );
        assert_eq!(
            mm.handle_fault(run, Protection::WRITE),
            Err(crate::mm::Fault::NotAllowed)
        );
        mm.protect(run, 0x1000, R).unwrap();
        assert_eq!(testing::platform().protection(run), Some(R));
    }

    #[test]
    fn a_fixed_view_takes_any_address_and_fork_keeps_it() {
        let thread = testing::setup();
        let parent = thread.mm();
        let inode = MemoryFile::new(alloc::vec![1; 0x2000]);
        let home = parent
            .map(shared(&inode, 0, 0x2000, Placement::Hint(0)))
            .unwrap();
        let private = parent.map(Request::anonymous(0x4000, RW)).unwrap();
        let alias = private + 0x1000;
        assert_eq!(
            parent.map(shared(&inode, 0, 0x2000, Placement::Fixed(alias))),
            Ok(alias)
        );
        touch(&parent, alias, RW);
        parent.write(alias, b"both").unwrap();
        let child = parent.fork(&thread).unwrap();
        assert_eq!(
            (&text(&child, alias), &text(&child, home)),
            (b"both", b"both")
        );
        // Private memory of the child where the parent has its alias.
        let mut request = Request::anonymous(0x1000, RW);
        request.placement = Placement::Fixed(alias);
        child.map(request).unwrap();
        child.write(alias, b"mine").unwrap();
        assert_eq!(&text(&parent, alias), b"both");
        parent.write(alias, b"more").unwrap();
        assert_eq!(
            (&text(&child, alias), &text(&child, home)),
            (b"mine", b"more")
        );
        parent.make_resident(&mut residency::lock());
        touch(&parent, alias, RW);
        assert_eq!(
            (&text(&child, alias), &text(&child, home)),
            (b"mine", b"more")
        );
        child.make_resident(&mut residency::lock());
        assert_eq!(
            (&text(&child, alias), &text(&parent, alias)),
            (b"mine", b"more")
        );
        drop(child);
        assert_eq!(&text(&parent, alias), b"more");
    }

    #[test]
    fn a_home_gives_way_and_grows() {
        testing::platform();
        let (one, two) = (AddressSpace::new(), AddressSpace::new());
        let inode = MemoryFile::new(alloc::vec![3; 0x1000]);
        let home = one
            .map(shared(&inode, 0, 0x1000, Placement::Hint(0)))
            .unwrap();
        one.write(home, b"here").unwrap();
        // Another process wants just these addresses.
        let mut request = Request::anonymous(0x1000, RW);
        request.placement = Placement::Fixed(home);
        assert_eq!(two.map(request), Ok(home));
        two.write(home, b"mine").unwrap();
        assert_eq!((&text(&one, home), &text(&two, home)), (b"here", b"mine"));
        // The file grows far beyond its room.
        inode.content.lock().unwrap().resize(64 << 20, 9);
        let whole = two
            .map(shared(&inode, 0, 64 << 20, Placement::Hint(0)))
            .unwrap();
        assert_eq!(&text(&two, whole), b"here");
        assert_eq!(&text(&two, whole + (63 << 20)), &[9; 4]);
        two.write(whole + 0xff8, b"past").unwrap();
        assert_eq!(&text(&one, home + 0xff8), b"past");
        drop(two);
        assert_eq!(&text(&one, home + 0xff8), b"past");
    }
}
