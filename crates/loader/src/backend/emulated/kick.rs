//! Kicks: making a thread that runs in the enclave enter it anew, to look at its flags.

use std::sync::atomic::Ordering;

use super::entry;
use super::signals::in_text;
use super::ssa::{self, Extended};
use super::sys;
use super::thread::{self, mode};

/// See `Backend::kick_in_handler`. Runs with whatever FS the thread had.
///
/// # Safety
/// `context` is the kernel's, of a signal being delivered to this thread.
pub unsafe fn kick(context: *mut libc::ucontext_t) -> bool {
    // SAFETY: as for this function.
    let thread = unsafe { thread::of_context(context) };
    if thread.is_null() {
        return false;
    }
    // SAFETY: this thread's structure, and nobody else uses the context.
    let (state, context) = unsafe { (&mut *thread, &mut *context) };
    if state.tcs.is_null() {
        state.kick_pending.store(1, Ordering::Relaxed);
        return false;
    }
    let rip = context.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
    let (fs, gs) = (sys::fs_base(), sys::gs_base());
    // SAFETY: states live as long as their enclave, which this thread may still be in.
    let nested = unsafe { (*state.tcs).cssa.load(Ordering::Relaxed) } > 0;
    let running = !in_text(rip) && (rip < entry::HOST_START || fs != state.host_fs);
    let resuming = entry::between(
        rip,
        &entry::bulla_emu_resume_critical,
        &entry::bulla_emu_resume_end,
    );
    if nested && (running || resuming) {
        // It is handling an exception: the caller finds the kick before the ERESUME that follows.
        return false;
    }
    if running {
        let gprs = ssa::context_gprs(context);
        // SAFETY: the context is the enclave's.
        let outside =
            unsafe { ssa::save(thread, &gprs, (fs, gs), Extended::Signal(context), None) };
        ssa::leave(
            context,
            state.tcs_address,
            outside,
            &entry::bulla_emu_kicked,
        );
    } else if resuming {
        ssa::undo_resume(thread);
        // It may have been loaded from the SSA frame, which still has it.
        // SAFETY: the context is the kernel's.
        unsafe { ssa::clear_extended(context, state.xfrm) };
        let outside = (state.host_rsp, 0);
        ssa::leave(
            context,
            state.tcs_address,
            outside,
            &entry::bulla_emu_kicked,
        );
    } else if entry::between(
        rip,
        &entry::bulla_emu_gate_critical,
        &entry::bulla_emu_gate_end,
    ) {
        let gprs = state.gate;
        // SAFETY: the gate holds the enclave's registers, the context its vector state.
        let outside = unsafe {
            ssa::save(
                thread,
                &gprs,
                (state.gate_fs, gs),
                Extended::Signal(context),
                None,
            )
        };
        ssa::leave(
            context,
            state.tcs_address,
            outside,
            &entry::bulla_emu_kicked,
        );
    } else {
        state.kick_pending.store(1, Ordering::Relaxed);
        return match state.mode.load(Ordering::Relaxed) {
            mode::HOST => false,
            mode::GATE => !nested,
            // At the AEP, before or after CSSA was decremented.
            _ => true,
        };
    }
    // SAFETY: the interrupted context continues in host code.
    unsafe {
        sys::set_fs_base(state.host_fs);
        sys::set_gs_base(state.host_gs);
    }
    true
}
