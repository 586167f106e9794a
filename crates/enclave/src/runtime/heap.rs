//! The kernel's allocator: size classes with free lists for small objects, `talc` behind them.
//!
//! Small objects (at most 1 KiB) come from chunks of their class, so that allocation and release are
//! a few instructions under the lock of their class; chunks go back to `talc` only when memory is
//! short ([`trim`]).
//!
//! The heap grows in steps while the host gives pages. A kernel whose allocation fails cannot go on,
//! so the library OS asks [`is_short`] before every call that makes objects: it grows the heap
//! ahead of need, and says when that fails or the limit is reached; such calls are refused then.
//!
//! Lock order: a class before the heap.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bulla_abi::boot::BootHeader;
use bulla_abi::layout::SMALL_HEAP;
use bulla_libos::sync::SpinLock;
use talc::{ErrOnOom, Span, Talc};

/// Growth of the heap in bytes: a huge page; less while it is so small that many containers never
/// need the whole of one.
const GROWTH: u64 = 2 << 20;
const GROWTH_SMALL: u64 = 256 << 10;
/// Sizes of the classes in bytes.
const CLASSES: [usize; 10] = [16, 32, 48, 64, 96, 128, 192, 256, 512, 1024];
/// Chunks of small objects lie at multiples of this. They are a little smaller, so that one with
/// `talc`'s own words fits in between.
const CHUNK_STRIDE: usize = 8 << 10;
const CHUNK_SIZE: usize = CHUNK_STRIDE - 32;
/// Start of a chunk that is not used for objects: [`trim`] counts there.
const CHUNK_HEADER: usize = 16;
/// Least size of blocks that start at a [`CACHE_LINE`].
const LARGE: usize = 4096;
const CACHE_LINE: usize = 64;
/// Free memory that is kept ready, for what calls in progress need.
const AHEAD: u64 = 1 << 20;
/// Part of the heap that calls which make objects must leave to all others.
const RESERVE_SHARE: u64 = 8;
const RESERVE_MAX: u64 = 16 << 20;
/// How far use must fall before it is worth looking for empty chunks again.
const TRIM_STEP: u64 = 1 << 20;

struct Heap {
    talc: Talc<ErrOnOom>,
    span: Span,
    start: u64,
    end: u64,
    max: u64,
    /// End of what is there already: where nothing can be added (the static layout) a part is held
    /// back, in one piece, for large blocks that must not fail.
    committed: u64,
    /// Bytes taken from `talc`, and how many may be before objects are refused.
    taken: u64,
    limit: u64,
    /// Bytes in use when empty chunks were looked for last.
    trimmed_at: u64,
}

static HEAP: SpinLock<Heap> = SpinLock::new(Heap {
    talc: Talc::new(ErrOnOom),
    span: Span::empty(),
    start: 0,
    end: 0,
    max: 0,
    committed: 0,
    taken: 0,
    limit: 0,
    trimmed_at: u64::MAX,
});
static USED: AtomicU64 = AtomicU64::new(0);
/// Whether [`is_short`] has to look.
static LOW: AtomicBool = AtomicBool::new(false);
/// Whether an allocation has failed.
static FAILED: AtomicBool = AtomicBool::new(false);

/// A free object: the address of the next one, 0 at the end.
struct Class {
    head: usize,
}

static SMALL: [SpinLock<Class>; CLASSES.len()] =
    [const { SpinLock::new(Class { head: 0 }) }; CLASSES.len()];

struct Kernel;

#[global_allocator]
static ALLOCATOR: Kernel = Kernel;

/// Takes over the heap that the image has.
pub fn init(header: &BootHeader) {
    let mut heap = HEAP.lock();
    heap.start = header.heap_start;
    let reserve = (header.heap_max / RESERVE_SHARE).min(RESERVE_MAX) & !0xfff;
    heap.committed = header.heap_start + header.heap_committed;
    heap.max = header.heap_start + header.heap_max;
    heap.end = heap.committed.min(heap.max - reserve);
    heap.limit = header.heap_max - reserve;
    let span = Span::new(header.heap_start as *mut u8, heap.end as *mut u8);
    // SAFETY: these pages are the heap's, used by nothing else; talc wants no content.
    match unsafe { heap.talc.claim(span) } {
        Ok(claimed) => heap.span = claimed,
        Err(()) => crate::panic::stop(),
    }
}

/// Bytes in use, and bytes that may still be allocated, growth included.
pub fn usage() -> (u64, u64) {
    let heap = HEAP.lock();
    let used = USED.load(Ordering::Relaxed);
    let size = heap.max.saturating_sub(heap.start);
    (used, size.saturating_sub(used))
}

/// Whether an allocation has failed, which a kernel seldom survives.
pub fn has_failed() -> bool {
    FAILED.load(Ordering::Relaxed)
}

/// Lowers the size from which on objects are refused.
pub fn set_limit(bytes: u64) {
    let mut heap = HEAP.lock();
    heap.limit = heap.limit.min(bytes);
    heap.note();
}

/// Whether calls that make objects must be refused: the limit is reached, or the heap cannot grow.
/// Grows it when there is little left.
pub fn is_short() -> bool {
    if !LOW.load(Ordering::Relaxed) {
        return false;
    }
    let used = USED.load(Ordering::Relaxed);
    let (taken, trimmed_at) = {
        let mut heap = HEAP.lock();
        // The most since then: what was taken meanwhile and given back may leave empty chunks again.
        heap.trimmed_at = heap.trimmed_at.max(used);
        (heap.taken, heap.trimmed_at)
    };
    if taken > used + TRIM_STEP && used < trimmed_at.saturating_sub(TRIM_STEP) {
        trim();
        HEAP.lock().trimmed_at = used;
    }
    let mut heap = HEAP.lock();
    let can_grow = heap.end >= heap.committed;
    if heap.taken >= heap.limit || heap.free() < AHEAD && !(can_grow && heap.grow_for(0)) {
        return true;
    }
    heap.note();
    false
}

/// Gives chunks back that hold no object.
fn trim() {
    for (class, size) in SMALL.iter().zip(CLASSES) {
        let capacity = (CHUNK_SIZE - CHUNK_HEADER) / size;
        let mut class = class.lock();
        // SAFETY: with the lock held the list holds free objects only, each in a chunk of the
        // class whose header nobody else uses. A chunk all of whose objects are in the list is
        // used by nobody, and they leave the list before it is given back.
        unsafe {
            let counter = |object: usize| (object & !(CHUNK_STRIDE - 1)) as *mut usize;
            let mut object = class.head;
            while object != 0 {
                counter(object).write(0);
                object = (object as *const usize).read();
            }
            object = class.head;
            while object != 0 {
                *counter(object) += 1;
                object = (object as *const usize).read();
            }
            object = core::mem::take(&mut class.head);
            let mut empty = 0;
            while object != 0 {
                let next = (object as *const usize).read();
                if *counter(object) < capacity {
                    (object as *mut usize).write(class.head);
                    class.head = object;
                } else if object & (CHUNK_STRIDE - 1) == CHUNK_HEADER {
                    // One object stands for its chunk: the first, which is there as all are.
                    (object as *mut usize).write(empty);
                    empty = object;
                }
                object = next;
            }
            while empty != 0 {
                let next = (empty as *const usize).read();
                HEAP.lock()
                    .release((empty - CHUNK_HEADER) as *mut u8, CHUNK);
                empty = next;
            }
        }
    }
}

/// A chunk of small objects.
const CHUNK: Layout = match Layout::from_size_align(CHUNK_SIZE, CHUNK_STRIDE) {
    Ok(layout) => layout,
    Err(_) => panic!("the stride is a power of two"),
};

impl Heap {
    fn free(&self) -> u64 {
        (self.end - self.start).saturating_sub(self.taken)
    }

    /// Says whether there is something to look at.
    fn note(&self) {
        let low = self.free() < AHEAD || self.taken >= self.limit;
        LOW.store(low, Ordering::Relaxed);
    }

    /// Grows by as much as is wanted, in whole steps.
    fn grow_for(&mut self, wanted: u64) -> bool {
        let step = match self.end - self.start < SMALL_HEAP {
            true => GROWTH_SMALL,
            false => GROWTH,
        };
        self.grow(wanted.max(step).next_multiple_of(step))
    }

    fn grow(&mut self, by: u64) -> bool {
        if self.end < self.committed {
            self.end = self.committed;
        } else if self.end + by <= self.max && crate::memory::extend_heap(self.end, by).is_ok() {
            self.end += by;
        } else {
            return false;
        }
        let wider = Span::new(
            self.span
                .get_base_acme()
                .unwrap_or((null_mut(), null_mut()))
                .0,
            self.end as *mut u8,
        );
        let old = self.span;
        // SAFETY: the span only grows, into pages accepted just now.
        self.span = unsafe { self.talc.extend(old, wider) };
        true
    }

    fn take(&mut self, layout: Layout) -> *mut u8 {
        loop {
            // SAFETY: the size is not 0.
            if let Ok(pointer) = unsafe { self.talc.malloc(layout) } {
                self.taken += layout.size() as u64;
                self.note();
                return pointer.as_ptr();
            }
            if !self.grow_for((layout.size() + layout.align() + 4096) as u64) {
                FAILED.store(true, Ordering::Relaxed);
                return null_mut();
            }
        }
    }

    /// # Safety
    /// The block came from [`Heap::take`] with this layout and is used by nobody.
    unsafe fn release(&mut self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = core::ptr::NonNull::new(pointer) {
            // SAFETY: as for this function.
            unsafe { self.talc.free(pointer, layout) };
            self.taken -= layout.size() as u64;
            self.note();
        }
    }
}

/// Blocks of a page and more start at a cache line, so that copying and comparing pages is not slowed
/// down by accesses that straddle two. With `talc`'s own word each takes whole lines, so that one fits
/// right behind another.
fn large(layout: Layout) -> Layout {
    const WORD: usize = size_of::<usize>();
    if layout.size() < LARGE {
        return layout;
    }
    let size = (layout.size() + WORD).next_multiple_of(CACHE_LINE) - WORD;
    Layout::from_size_align(size, layout.align().max(CACHE_LINE)).unwrap_or(layout)
}

fn class_of(layout: &Layout) -> Option<usize> {
    let size = layout.size().max(layout.align());
    if layout.align() > 16 && !size.is_power_of_two() || size > 1024 {
        return None;
    }
    // Objects lie at multiples of their size from a 16-byte boundary, so only 16 is sure.
    if layout.align() > 16 {
        return None;
    }
    CLASSES.iter().position(|&class| class >= size)
}

// SAFETY: blocks come from talc or from a class list, which hold each block once; sizes and
// alignments are at least what was asked for (see `class_of`).
unsafe impl GlobalAlloc for Kernel {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        USED.fetch_add(layout.size() as u64, Ordering::Relaxed);
        let Some(index) = class_of(&layout) else {
            return HEAP.lock().take(large(layout));
        };
        let mut class = SMALL[index].lock();
        if class.head == 0 {
            let size = CLASSES[index];
            let chunk = HEAP.lock().take(CHUNK);
            if chunk.is_null() {
                return null_mut();
            }
            for at in (0..(CHUNK_SIZE - CHUNK_HEADER) / size).rev() {
                // SAFETY: inside the chunk, aligned to 16.
                unsafe {
                    let object = chunk.add(CHUNK_HEADER + at * size).cast::<usize>();
                    object.write(class.head);
                    class.head = object as usize;
                }
            }
        }
        let object = class.head as *mut usize;
        // SAFETY: a free object of this class: its first word is the link.
        class.head = unsafe { object.read() };
        object.cast()
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        match class_of(&layout) {
            Some(index) => {
                let mut class = SMALL[index].lock();
                // SAFETY: the object is free from here on and at least 16 bytes.
                unsafe { pointer.cast::<usize>().write(class.head) };
                class.head = pointer as usize;
            }
            // SAFETY: it came from the heap with this layout.
            None => unsafe { HEAP.lock().release(pointer, large(layout)) },
        }
    }
}
