//! The program break.

use core::ops::Range;

use super::vma::Around;
use super::{Backing, PAGE, Space, Vma, VmaFlags, accounting, allocator, page_up};
use crate::Result;
use crate::errno::ENOMEM;
use crate::platform::{Protection, platform};

/// The heap of brk(2).
#[derive(Clone, Default)]
pub struct Brk {
    /// Where it starts.
    pub start: u64,
    /// The current break.
    pub end: u64,
    /// Addresses kept free for it.
    pub limit: u64,
}

/// Room kept free for the heap where addresses are plenty.
const ROOM: u64 = 8 << 30;
/// With less, the heap goes elsewhere.
const ROOM_MIN: u64 = 64 << 20;

impl Space {
    /// Places the heap behind a program, with as much room as there is. Its addresses cost nothing
    /// until they are used.
    pub fn set_up_brk(&self, start: u64) -> Result<()> {
        let start = page_up(start).ok_or(ENOMEM)?;
        let user = platform().user_range();
        let all = user.end - user.start;
        let mut room = ROOM.min(all / if all < 64 << 30 { 32 } else { 256 });
        if start < 1 << 31 {
            // Leave most of the lowest 2 GiB to MAP_32BIT.
            room = room.min(1 << 30);
        }
        super::warm::leave(&(start..start.saturating_add(room)));
        let wanted = room;
        let mut locked = self.lock();
        while room >= PAGE && !allocator::allocate_at(start..start + room) {
            room = (room / 2) & !(PAGE - 1);
        }
        let mut start = start;
        if room < ROOM_MIN {
            // Another program is linked at the same addresses and has the room behind it. Nothing
            // says that the heap must be there.
            let elsewhere = allocator::allocate(&allocator::Wanted {
                len: ROOM_MIN.max(wanted),
                align: PAGE,
                within: user,
                below: locked.mmap_base,
            });
            if let Ok(at) = elsewhere {
                if room >= PAGE {
                    allocator::release(start..start + room);
                }
                start = at;
                room = ROOM_MIN.max(wanted);
            }
        }
        if room >= PAGE {
            locked.reserved.push(start..start + room);
        }
        locked.brk = Brk {
            start,
            end: start,
            limit: start + room.max(PAGE) - PAGE,
        };
        Ok(())
    }

    /// Moves the break; returns where it is then (unchanged when it cannot move).
    pub fn brk(&self, wanted: u64) -> u64 {
        let mut locked = self.lock();
        let brk = locked.brk.clone();
        if wanted < brk.start || wanted > brk.limit {
            return brk.end;
        }
        let (Some(old), Some(new)) = (page_up(brk.end), page_up(wanted)) else {
            return brk.end;
        };
        if new < old {
            locked.unmap(&(new..old));
        } else if new > old {
            let range = old..new;
            let in_the_way = locked.vmas.overlapping(&range).next().is_some();
            if in_the_way || new - old > accounting::limit() {
                return brk.end;
            }
            if locked.is_conflicted() {
                // A relative may have pages of its own heap there.
                drop(locked);
                match self.take_from_others(range.clone(), None) {
                    Ok(taken) => locked = taken,
                    Err(_) => return brk.end,
                }
            }
            locked.add(heap(range.clone()));
            if locked.bring_in_new(range.clone(), false).is_err() {
                locked.unmap(&range);
                return brk.end;
            }
        }
        locked.brk.end = wanted;
        wanted
    }

    /// Where the heap is: /proc/self/maps and stat.
    pub fn heap(&self) -> Range<u64> {
        let locked = self.lock();
        locked.brk.start..locked.brk.end
    }
}

fn heap(range: Range<u64>) -> Vma {
    Vma {
        start: range.start,
        end: range.end,
        protection: Protection::READ | Protection::WRITE,
        flags: VmaFlags::HEAP,
        backing: Backing::Anonymous,
        around: Around::default(),
    }
}
