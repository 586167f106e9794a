//! The kernel's allocator: size classes with free lists for small objects, `talc` behind them.
//!
//! Small objects (at most 1 KiB) never go back to `talc`, so that allocation and release are a few
//! instructions under the lock of their class. The heap grows in steps while the host gives pages;
//! when it does not, allocation fails and the kernel panics: limits on objects come before that.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU64, Ordering};

use bulla_abi::boot::BootHeader;
use bulla_libos::sync::SpinLock;
use talc::{ErrOnOom, Span, Talc};

/// Least growth of the heap in bytes: a huge page.
const GROWTH: u64 = 2 << 20;
/// Sizes of the classes in bytes.
const CLASSES: [usize; 10] = [16, 32, 48, 64, 96, 128, 192, 256, 512, 1024];
/// What a class takes from `talc` at once.
const REFILL: usize = 8 << 10;

struct Heap {
    talc: Talc<ErrOnOom>,
    span: Span,
    start: u64,
    end: u64,
    max: u64,
}

static HEAP: SpinLock<Heap> = SpinLock::new(Heap {
    talc: Talc::new(ErrOnOom),
    span: Span::empty(),
    start: 0,
    end: 0,
    max: 0,
});
static USED: AtomicU64 = AtomicU64::new(0);

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
    heap.end = header.heap_start + header.heap_committed;
    heap.max = header.heap_start + header.heap_max;
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

impl Kernel {
    fn large(&self, layout: Layout) -> *mut u8 {
        let mut heap = HEAP.lock();
        loop {
            // SAFETY: the size is not 0.
            if let Ok(pointer) = unsafe { heap.talc.malloc(layout) } {
                return pointer.as_ptr();
            }
            let wanted = (layout.size() + layout.align() + 4096) as u64;
            let grow = wanted.max(GROWTH).next_multiple_of(GROWTH);
            if heap.end + grow > heap.max || crate::memory::extend_heap(heap.end, grow).is_err() {
                return null_mut();
            }
            heap.end += grow;
            let wider = Span::new(
                heap.span
                    .get_base_acme()
                    .unwrap_or((null_mut(), null_mut()))
                    .0,
                heap.end as *mut u8,
            );
            let old = heap.span;
            // SAFETY: the span only grows, into pages accepted just now.
            heap.span = unsafe { heap.talc.extend(old, wider) };
        }
    }
}

// SAFETY: blocks come from talc or from a class list, which hold each block once; sizes and
// alignments are at least what was asked for (see `class_of`).
unsafe impl GlobalAlloc for Kernel {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        USED.fetch_add(layout.size() as u64, Ordering::Relaxed);
        let Some(index) = class_of(&layout) else {
            return self.large(layout);
        };
        let mut class = SMALL[index].lock();
        if class.head == 0 {
            let size = CLASSES[index];
            // SAFETY: the alignment is a power of two.
            let chunk = self.large(unsafe { Layout::from_size_align_unchecked(REFILL, 16) });
            if chunk.is_null() {
                return null_mut();
            }
            for at in (0..REFILL / size).rev() {
                // SAFETY: inside the chunk, aligned to 16.
                unsafe {
                    let object = chunk.add(at * size).cast::<usize>();
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
            None => {
                let Some(pointer) = core::ptr::NonNull::new(pointer) else {
                    return;
                };
                // SAFETY: it came from `large` with this layout.
                unsafe { HEAP.lock().talc.free(pointer, layout) };
            }
        }
    }
}
