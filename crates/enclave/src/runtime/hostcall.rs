//! Host calls. The answer is the host's word; callers validate it.

use bulla_abi::hostcall::{DATA_SIZE, HEADER_SIZE, HostCall};
use bulla_libos::Result;
use bulla_libos::errno::{EINTR, EINVAL};

use crate::{area, entry, untrusted, xstate};

/// A host call and nothing else.
pub fn raw(call: HostCall, arguments: [u64; 4]) -> i64 {
    let [a, b, c, d] = arguments;
    // SAFETY: the routine saves and restores everything compiled code relies on; the host can
    // only answer or not answer.
    unsafe { entry::raw_host_call(call as u64, a, b, c, d) }
}

/// A host call on this thread. Does not return once the container has ended.
pub fn call(call: HostCall, arguments: [u64; 4]) -> i64 {
    let answer = raw(call, arguments);
    if crate::panic::ended() {
        crate::panic::wait_for_the_end();
    }
    if answer == -i64::from(EINTR.code()) && may_wait(call) {
        take_signals();
    }
    answer
}

fn may_wait(call: HostCall) -> bool {
    matches!(
        call,
        HostCall::Wait | HostCall::Poll | HostCall::EpollWait | HostCall::Recv
    )
}

/// Passes signals that the host holds for the container to the kernel.
pub fn take_signals() {
    let mask = call(HostCall::TakeSignals, [0; 4]);
    if mask > 0 {
        // An error means that a signal had no receiver: nothing to do.
        let _ = bulla_libos::host_signals(mask as u64);
    }
    bulla_libos::host_requests();
}

/// Address of `len` bytes at `offset` of this thread's data buffer.
fn data(offset: u64, len: usize) -> Result<u64> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= DATA_SIZE => Ok(area::current().shared + HEADER_SIZE + offset),
        _ => Err(EINVAL.because("beyond the host-call buffer")),
    }
}

/// Copies into the data buffer. `offset` is a multiple of 8; the bytes up to the next multiple of
/// 8 behind the data become zero.
pub fn put(offset: u64, bytes: &[u8]) -> Result<()> {
    untrusted::copy_out(data(offset, bytes.len())?, bytes)
}

/// Copies out of it.
pub fn get(offset: u64, bytes: &mut [u8]) -> Result<()> {
    untrusted::copy_in(data(offset, bytes.len())?, bytes)
}

/// CPUID as programs get it.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    bulla_libos::cpuid::answer(leaf, subleaf, host_cpuid, xstate::state())
}

/// CPUID as the host reports it.
fn host_cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut bytes = [0u8; 16];
    if call(HostCall::Cpuid, [u64::from(leaf), u64::from(subleaf), 0, 0]) < 0
        || get(0, &mut bytes).is_err()
    {
        return [0; 4];
    }
    let mut out = [0; 4];
    for (word, chunk) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    out
}
