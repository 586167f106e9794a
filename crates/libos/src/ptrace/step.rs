//! Single steps.
//!
//! A CPU does not report single steps in an enclave (TF has no effect in one that is not for debugging).
//! So a step is made: a branch is carried out here; any other instruction runs until a breakpoint
//! right after it, which only this thread heeds and which is gone before anybody is told. A system call
//! is followed to its return. What differs from a CPU's step: a repeated string instruction is one step.
//!
//! The breakpoint is in memory that other threads execute, too: who meets it waits until it is gone.

mod decode;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::{Tracee, stop};
use crate::errno::EIO;
use crate::mm::AddressSpace;
use crate::platform::platform;
use crate::sync::SpinLock;
use crate::{Registers, Result, Thread};
use decode::{INSTRUCTION_MAX, Instruction};

/// INT3.
const BREAKPOINT: u8 = 0xcc;

/// What a thread's step waits for.
struct Step {
    tid: u32,
    mm: Arc<AddressSpace>,
    /// Where the breakpoint is, and what was there; `None` for the return of a system call.
    planted: Option<(u64, u8)>,
}

static STEPS: SpinLock<Vec<Step>> = SpinLock::new(Vec::new());
/// Their number, so that a thread that does not step asks nobody.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn add(step: Step) {
    let mut steps = STEPS.lock();
    steps.push(step);
    COUNT.store(steps.len(), Ordering::SeqCst);
}

fn take(mut wanted: impl FnMut(&Step) -> bool) -> Option<Step> {
    if COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    let mut steps = STEPS.lock();
    let at = steps.iter().position(&mut wanted)?;
    let step = steps.swap_remove(at);
    COUNT.store(steps.len(), Ordering::SeqCst);
    Some(step)
}

/// The instruction at an address, as the program has it.
fn instruction_at(mm: &AddressSpace, rip: u64) -> Option<Instruction> {
    let mut code = [0; INSTRUCTION_MAX];
    // The next page may hold nothing.
    let there = (1..=INSTRUCTION_MAX)
        .rev()
        .find(|&len| mm.peek(rip, &mut code[..len]).is_ok())?;
    decode::decode(&code[..there])
}

/// Whether a stopped thread can be stepped. EIO where what comes after its instruction is memory that
/// other processes share.
pub fn check(tracee: &Tracee) -> Result<()> {
    let rip = tracee.at_stop(|stop| stop.snapshot.registers.rip)?;
    let mm = tracee.process().mm();
    match instruction_at(&mm, rip) {
        Some(Instruction::Plain { len }) if !mm.may_poke(rip.wrapping_add(len as u64)) => {
            Err(EIO.because("text that is shared cannot be stepped through"))
        }
        _ => Ok(()),
    }
}

/// Begins the step of the calling thread, or makes it.
pub fn begin(thread: &Arc<Thread>, registers: &mut Registers) {
    if !thread.tracee.is_set() {
        return;
    }
    let mm = thread.mm();
    let tid = thread.tid();
    match instruction_at(&mm, registers.rip) {
        Some(Instruction::Branch(branch)) => {
            // One that cannot be carried out faults by itself.
            let is_made = branch.carry_out(&mm, registers, platform().fs_base());
            if is_made {
                stop::stepped(thread, registers);
            }
        }
        Some(Instruction::Call) => add(Step {
            tid,
            mm,
            planted: None,
        }),
        Some(Instruction::Plain { len }) => {
            let next = registers.rip.wrapping_add(len as u64);
            // The sites of both pages get their instructions back, lest they be passed over.
            let mut first = [0];
            if mm.peek(registers.rip, &mut first).is_err()
                || mm.poke(registers.rip, &first).is_err()
            {
                return;
            }
            let mut there = [0];
            if mm.peek(next, &mut there).is_ok() && mm.poke(next, &[BREAKPOINT]).is_ok() {
                let planted = Some((next, there[0]));
                add(Step { tid, mm, planted });
            }
        }
        // It faults.
        None => {}
    }
}

/// A thread stops or ends: whatever it waited for is void.
pub fn cancel(thread: &Thread) {
    thread.clear_work(crate::process::thread::Work::STEP);
    let tid = thread.tid();
    if let Some(step) = take(|step| step.tid == tid) {
        remove(&step);
    }
}

fn remove(step: &Step) {
    if let Some((address, byte)) = step.planted {
        let mut there = [0];
        // A tracer may have put its own there.
        if step.mm.peek(address, &mut there).is_ok() && there[0] == BREAKPOINT {
            let _ = step.mm.poke(address, &[byte]);
        }
    }
}

/// The thread's system call has returned: whether that ends its step.
pub fn is_over_call(thread: &Thread) -> bool {
    let tid = thread.tid();
    take(|step| step.tid == tid && step.planted.is_none()).is_some()
}

/// Whose breakpoint a thread has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// The step is made, and the breakpoint gone.
    Own,
    /// Another thread's: it is to be tried again.
    Other,
}

/// The breakpoint at an address, if it is of a step.
pub fn at_breakpoint(thread: &Thread, address: u64) -> Option<Met> {
    if COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    let (tid, mm) = (thread.tid(), thread.mm());
    let is_here = |step: &Step| {
        Arc::ptr_eq(&step.mm, &mm) && step.planted.is_some_and(|(at, _)| at == address)
    };
    if let Some(step) = take(|step| step.tid == tid && is_here(step)) {
        remove(&step);
        return Some(Met::Own);
    }
    let others = STEPS.lock().iter().any(is_here);
    others.then(|| {
        platform().yield_now();
        Met::Other
    })
}

/// fork: the child's memory has no breakpoints of its parent's threads.
pub fn forked(parent: &AddressSpace, child: &AddressSpace) {
    if COUNT.load(Ordering::SeqCst) == 0 {
        return;
    }
    let planted: Vec<(u64, u8)> = STEPS
        .lock()
        .iter()
        .filter(|step| core::ptr::eq(&*step.mm, parent))
        .filter_map(|step| step.planted)
        .collect();
    for (address, byte) in planted {
        let _ = child.poke(address, &[byte]);
    }
}
