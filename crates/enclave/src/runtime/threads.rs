//! Thread slots: starting, ending, sleeping, waking and kicking threads.
//!
//! A slot is free, or owned by one [`Thread`] from `spawn` until the thread leaves. Other threads
//! read only the atomics of its area (`mode`, `kick_ack`, `sleeping`) and its `shared` address.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bulla_abi::boot::BootHeader;
use bulla_abi::hostcall::{AREA_SIZE, HostCall, header};
use bulla_abi::layout::{self, LayoutKind, SLOT_STRIDE, slot};
use bulla_libos::errno::EAGAIN;
use bulla_libos::process::thread::StartState;
use bulla_libos::sync::SpinLock;
use bulla_libos::{Result, Thread, mm::sites};

use crate::area::{self, Area, FRAME_SIZE, mode, offer};
use crate::{entry, hostcall, memory, untrusted};

/// What `Area::work` points to while no thread is there.
static NO_WORK: AtomicU32 = AtomicU32::new(0);

static USER_END: AtomicU64 = AtomicU64::new(0);
static SLOTS_BASE: AtomicU64 = AtomicU64::new(0);
static BOOTED: AtomicBool = AtomicBool::new(false);

struct Slots {
    /// Free slots that exist; the most recently used last, since its host thread is warm.
    free: Vec<u32>,
    /// Slots that exist.
    count: u32,
    /// Slots that may exist.
    max: u32,
    /// Offset of the enclave's entry point, for new TCS pages.
    entry: u64,
    kind: LayoutKind,
}

static SLOTS: SpinLock<Slots> = SpinLock::new(Slots {
    free: Vec::new(),
    count: 0,
    max: 0,
    entry: 0,
    kind: LayoutKind::Dynamic,
});

/// End of the application's part of the enclave; 0 before boot.
#[inline(always)]
pub fn user_end() -> u64 {
    USER_END.load(Ordering::Relaxed)
}

/// End of ELRANGE; u64::MAX before boot.
#[inline(always)]
pub fn elrange_end() -> u64 {
    untrusted::elrange()
}

/// The kind of layout this enclave has.
pub fn layout_kind() -> LayoutKind {
    SLOTS.lock().kind
}

/// First entry of a slot, and every later start. `shared` and `params` are the host's, `header`
/// and `entry_point` the bootstrap's.
pub extern "C" fn slot_main(
    shared: u64,
    params: u64,
    header: *const BootHeader,
    entry_point: u64,
) -> ! {
    let area = init_area();
    // SAFETY: the bootstrap passes the address of its measured header.
    let header = unsafe { &*header };
    let slot = area.slot.load(Ordering::Relaxed);
    if slot == 0 && !BOOTED.load(Ordering::SeqCst) {
        let kind = if header.layout == 0 {
            LayoutKind::Dynamic
        } else {
            LayoutKind::Static
        };
        untrusted::set_elrange(kind.elrange_size());
        set_shared(area, shared);
        USER_END.store(header.user_end, Ordering::SeqCst);
        crate::heap::init(header);
        {
            let mut slots = SLOTS.lock();
            slots.free.extend((1..header.slots).rev());
            slots.count = header.slots;
            slots.max = header.slots_max;
            slots.entry = entry_point;
            slots.kind = kind;
        }
        if kind == LayoutKind::Static {
            memory::close_user_memory(header.user_start, header.user_end);
        }
        let thread = crate::boot::boot(header, params);
        thread.slot.store(0, Ordering::SeqCst);
        assign(area, thread);
        BOOTED.store(true, Ordering::SeqCst);
    }
    if !take_offer(area) {
        // Nobody asked for this entry. Nothing else in the area may be touched: its next thread
        // may be on its way.
        leave();
    }
    set_shared(area, shared);
    let Some(thread) = area.thread.clone() else {
        leave();
    };
    if bulla_libos::is_service(&thread) {
        bulla_libos::service_loop(&thread);
    }
    let start = thread.start.lock().take();
    drop(thread);
    match start {
        Some(start) => enter_user(area, start),
        None => leave(),
    }
}

/// Sets up the area's fixed fields. Idempotent.
fn init_area() -> &'static mut Area {
    let base: u64;
    // SAFETY: GS base is the area's address, from the measured TCS.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nostack, preserves_flags)) };
    let area = base as *mut Area;
    // SAFETY: the area page of this slot, which only this thread uses now; its content is zero or
    // a valid Area.
    let area = unsafe { &mut *area };
    area.this = base as *mut Area;
    let slot_start = base - slot::AREA;
    let stack_top = slot_start + slot::KERNEL_STACK + slot::KERNEL_STACK_SIZE;
    area.frame = (stack_top - FRAME_SIZE as u64) as *mut area::Frame;
    area.exception_stack = slot_start + slot::EXCEPTION_STACK + slot::EXCEPTION_STACK_SIZE;
    area.gate = &raw const entry::gate_entry as u64;
    area.instruction_gate = &raw const entry::instruction_gate_entry as u64;
    if area.work.load(Ordering::Relaxed).is_null() {
        area.work
            .store(&raw const NO_WORK as *mut AtomicU32, Ordering::Relaxed);
    }
    // The slots lie at a fixed distance from the end of ELRANGE: the stride divides the offset.
    let within = base - runtime_start(base) - layout::SLOTS_OFFSET;
    area.slot
        .store((within / SLOT_STRIDE) as u32, Ordering::Relaxed);
    SLOTS_BASE.store(
        runtime_start(base) + layout::SLOTS_OFFSET,
        Ordering::Relaxed,
    );
    area.mode.store(mode::KERNEL, Ordering::SeqCst);
    area
}

/// The runtime's start, from any address in it: both layouts end at a multiple of its span.
fn runtime_start(address: u64) -> u64 {
    address - address % layout::RUNTIME_SPAN
}

fn set_shared(area: &mut Area, shared: u64) {
    if !shared.is_multiple_of(4096) || !untrusted::is_outside(shared, AREA_SIZE) {
        // There is no one to tell: the host has given us nothing to talk with.
        crate::panic::stop();
    }
    area.shared = shared;
}

/// Whether a thread was there to take, which is now this entry's.
fn take_offer(area: &Area) -> bool {
    let taken =
        area.offer
            .compare_exchange(offer::MADE, offer::NONE, Ordering::SeqCst, Ordering::SeqCst);
    taken.is_ok()
}

/// Puts a thread into a free slot, for the entry that comes next.
fn assign(area: &mut Area, thread: Arc<Thread>) {
    area.work.store(
        thread.work_word() as *const AtomicU32 as *mut AtomicU32,
        Ordering::SeqCst,
    );
    area.thread = Some(thread);
    area.offer.store(offer::MADE, Ordering::SeqCst);
}

/// Loads a start state and returns to user code.
fn enter_user(area: &mut Area, start: StartState) -> ! {
    let frame = area.user_frame();
    frame.registers = start.registers;
    frame.registers.orig_rax = u64::MAX;
    frame.xmm = [[0; 2]; 16];
    area.resume = sites::resume_address(start.registers.rip);
    crate::platform::set_fs_base(start.fs_base);
    if let Some(state) = &start.fpu {
        crate::xstate::restore(state);
    }
    drop(start);
    // SAFETY: the frame and the resume address are set.
    unsafe { entry::return_to_user() }
}

/// The thread of this slot.
#[inline(always)]
pub fn current_thread(area: &Area) -> Option<&'static Arc<Thread>> {
    // SAFETY: the Arc is replaced only by this thread, in `exit_current`, which never returns to
    // a holder of the reference.
    unsafe { (*(area as *const Area)).thread.as_ref() }
}

/// The thread has ended: frees its slot and leaves the enclave.
pub fn exit_current() -> ! {
    let area = area::current();
    area.work
        .store(&raw const NO_WORK as *mut AtomicU32, Ordering::SeqCst);
    drop(area.thread.take());
    let slot = area.slot.load(Ordering::Relaxed);
    SLOTS.lock().free.push(slot);
    leave()
}

fn leave() -> ! {
    // SAFETY: nothing on this stack is needed any more.
    unsafe { entry::leave_slot(HostCall::ThreadExit as u64, 0, 0) }
}

/// The area of another slot. Only its atomics may be used.
fn area_of(slot: u32) -> *mut Area {
    let base = SLOTS_BASE.load(Ordering::Relaxed);
    (base + u64::from(slot) * SLOT_STRIDE + slot::AREA) as *mut Area
}

/// Runs a thread on a free slot, or a new one.
pub fn spawn(thread: Arc<Thread>) -> Result<()> {
    let (slot, new) = {
        let mut slots = SLOTS.lock();
        match slots.free.pop() {
            Some(slot) => (slot, false),
            None if slots.kind == LayoutKind::Dynamic && slots.count < slots.max => {
                slots.count += 1;
                (slots.count - 1, true)
            }
            None => return Err(EAGAIN.because("no thread slot left; raise `threads`")),
        }
    };
    if new {
        let (kind, entry) = {
            let slots = SLOTS.lock();
            (slots.kind, slots.entry)
        };
        memory::add_slot(kind, slot, entry)?;
    }
    thread.slot.store(slot, Ordering::SeqCst);
    // SAFETY: the slot is ours until the thread starts; its pages are there.
    assign(unsafe { &mut *area_of(slot) }, thread);
    let answer = hostcall::call(HostCall::ThreadStart, [u64::from(slot), 0, 0, 0]);
    // SAFETY: a slot that exists; only the atomic is used.
    if answer < 0 && take_offer(unsafe { &*area_of(slot) }) {
        // SAFETY: the host says that it did not start it, and no entry can any more.
        let area = unsafe { &mut *area_of(slot) };
        area.thread = None;
        area.work
            .store(&raw const NO_WORK as *mut AtomicU32, Ordering::SeqCst);
        SLOTS.lock().free.push(slot);
        return Err(EAGAIN.because("the host has no thread left"));
    }
    Ok(())
}

/// Sleeps on the host; see `Platform::sleep`.
pub fn sleep(thread: &Thread, seen: u32, timeout: Option<u64>) {
    let area = area::current();
    let Some(word) = prepare_wait(area, thread, seen) else {
        return;
    };
    hostcall::call(
        HostCall::Wait,
        [u64::from(word), timeout.unwrap_or(u64::MAX), 0, 0],
    );
    area.sleeping.store(0, Ordering::SeqCst);
}

/// Announces that the thread is about to wait on the host; the wait word's value to pass along,
/// or `None` when it must not wait. The caller clears `sleeping` afterwards.
pub fn prepare_wait(area: &mut Area, thread: &Thread, seen: u32) -> Option<u32> {
    let mut word = [0u8; 4];
    untrusted::copy_in(area.shared + header::WAIT_WORD, &mut word).ok()?;
    area.sleeping.store(1, Ordering::SeqCst);
    if thread.event_count() != seen {
        area.sleeping.store(0, Ordering::SeqCst);
        return None;
    }
    Some(u32::from_le_bytes(word))
}

/// Wakes a thread that sleeps.
pub fn wake(thread: &Thread) {
    let slot = thread.slot.load(Ordering::SeqCst);
    if slot == u32::MAX {
        return;
    }
    let area = area_of(slot);
    // SAFETY: an existing slot (a thread has it); only atomics and the fixed `shared` are read.
    let (sleeping, shared) = unsafe { (&(*area).sleeping, (*area).shared) };
    if sleeping.swap(0, Ordering::SeqCst) == 1 {
        // A host that does not wake it can only stop us.
        let _ = untrusted::add_u32(shared + header::WAIT_WORD, 1);
        hostcall::call(HostCall::Wake, [u64::from(slot), 0, 0, 0]);
    }
}

/// Makes a thread that may run user code enter the kernel soon.
pub fn kick(thread: &Thread) {
    let slot = thread.slot.load(Ordering::SeqCst);
    if slot == u32::MAX || slot == area::current().slot.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: as in `wake`.
    let mode = unsafe { (*area_of(slot)).mode.load(Ordering::SeqCst) };
    if mode == mode::USER || mode == mode::KERNEL {
        hostcall::call(HostCall::Kick, [u64::from(slot), 0, 0, 0]);
    }
}

/// The same, and waits until the thread has noticed or is certain to notice.
pub fn stop(thread: &Thread) {
    let slot = thread.slot.load(Ordering::SeqCst);
    if slot == u32::MAX || slot == area::current().slot.load(Ordering::Relaxed) {
        return;
    }
    let area = area_of(slot);
    // SAFETY: as in `wake`.
    let (mode, ack) = unsafe { (&(*area).mode, &(*area).kick_ack) };
    let before = ack.load(Ordering::SeqCst);
    let mut turns = 0u32;
    loop {
        let now = mode.load(Ordering::SeqCst);
        if now == mode::HOST || now == mode::FREE || ack.load(Ordering::SeqCst) != before {
            return;
        }
        if turns.is_multiple_of(64) {
            hostcall::call(HostCall::Kick, [u64::from(slot), 0, 0, 0]);
        } else if turns % 8 == 7 {
            hostcall::call(HostCall::Yield, [0; 4]);
        } else {
            core::hint::spin_loop();
        }
        turns = turns.wrapping_add(1);
    }
}
