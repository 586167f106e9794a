//! [`Platform`] on the enclave.

use alloc::sync::Arc;
use core::arch::asm;
use core::sync::atomic::Ordering;

use bulla_abi::hostcall::{HostCall, RecvHeader};
use bulla_enclave::sha256::{self, Sha256};
use bulla_libos::errno::{EACCES, EIO};
use bulla_libos::platform::{Atomic, InstructionGate, Protection, UserFault};
use bulla_libos::{Platform, Result, Thread};

use crate::area;
use crate::boot::HOST;
use crate::{clock, heap, hostcall, kept, memory, sgx, threads, untrusted, usercopy, xstate};

/// The platform that the kernel sees.
pub static ENCLAVE: Enclave = Enclave;

pub struct Enclave;

pub fn set_fs_base(base: u64) {
    // SAFETY: FS is the user's; nothing in the runtime uses it. A non-canonical base would fault,
    // so bits above the lower half are refused by the kernel before (arch_prctl) and cut here.
    unsafe {
        asm!("wrfsbase {}", in(reg) base & ((1 << 47) - 1), options(nostack, preserves_flags))
    };
}

fn fs_base() -> u64 {
    let base: u64;
    // SAFETY: reads a register.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nostack, preserves_flags)) };
    base
}

/// The fault of one step of a copy, as one of the whole: a step may cross into a page that is not
/// there, and the count must say which.
fn exact(len: usize, moved: usize, step: usize, fault: UserFault) -> UserFault {
    UserFault {
        remaining: len - moved - step + fault.remaining,
    }
}

impl Platform for Enclave {
    fn user_range(&self) -> core::ops::Range<u64> {
        bulla_abi::layout::USER_START..threads::user_end()
    }

    fn commit(&self, address: u64, len: u64, protection: Protection) -> Result<()> {
        memory::commit(address, len, protection)
    }

    fn must_commit_at_once(&self) -> bool {
        threads::layout_kind() == bulla_abi::layout::LayoutKind::Static
    }

    fn decommit(&self, address: u64, len: u64) {
        memory::decommit(address, len);
    }

    fn abandon(&self, address: u64, len: u64, protection: Protection) {
        memory::abandon(address, len, protection);
    }

    fn close(&self, address: u64, len: u64) {
        kept::close(address, len);
    }

    fn protect(&self, address: u64, len: u64, protection: Protection) -> Result<()> {
        memory::protect(address, len, protection)
    }

    fn is_committed(&self, address: u64) -> bool {
        memory::is_committed(address)
    }

    fn write_protected(&self, address: u64, bytes: &[u8]) -> Result<()> {
        memory::write_protected(address, bytes)
    }

    fn fill(
        &self,
        address: u64,
        len: u64,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        memory::fill(address, len, fill)
    }

    fn copy_from_user(&self, address: u64, to: &mut [u8]) -> core::result::Result<(), UserFault> {
        usercopy::copy_from_user(address, to)
    }

    fn copy_to_user(&self, address: u64, from: &[u8]) -> core::result::Result<(), UserFault> {
        usercopy::copy_to_user(address, from)
    }

    fn clear_user(&self, address: u64, len: usize) -> core::result::Result<(), UserFault> {
        usercopy::clear_user(address, len)
    }

    fn atomic_user(&self, address: u64, operation: Atomic) -> core::result::Result<u32, UserFault> {
        usercopy::atomic_user(address, operation)
    }

    fn fs_base(&self) -> u64 {
        fs_base()
    }

    fn set_fs_base(&self, base: u64) {
        set_fs_base(base);
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        hostcall::cpuid(leaf, subleaf)
    }

    fn fpu_size(&self) -> usize {
        xstate::size()
    }

    fn fpu_features(&self) -> u64 {
        xstate::offered()
    }

    fn fpu_save(&self, to: &mut [u8]) {
        xstate::save(to);
    }

    fn fpu_restore(&self, from: &[u8]) {
        xstate::restore(from);
    }

    fn spawn(&self, thread: Arc<Thread>) -> Result<()> {
        threads::spawn(thread)
    }

    fn sleep(&self, thread: &Thread, seen: u32, deadline: Option<u64>) {
        let timeout = deadline.map(|deadline| deadline.saturating_sub(clock::monotonic()));
        if timeout != Some(0) {
            threads::sleep(thread, seen, timeout);
        }
    }

    fn wake(&self, thread: &Thread) {
        threads::wake(thread);
    }

    fn kick(&self, thread: &Thread) {
        threads::kick(thread);
    }

    fn stop(&self, thread: &Thread) {
        threads::stop(thread);
    }

    fn yield_now(&self) {
        hostcall::call(HostCall::Yield, [0; 4]);
    }

    fn relax(&self) {
        // The holder may have been descheduled by the host: do not burn its CPU for long.
        let area = area::current();
        area.spins = area.spins.wrapping_add(1);
        if area.spins.is_multiple_of(128) {
            hostcall::call(HostCall::Yield, [0; 4]);
        } else {
            core::hint::spin_loop();
        }
    }

    fn host_call(
        &self,
        call: HostCall,
        mut arguments: [u64; 4],
        waiting: Option<(&Thread, u32)>,
    ) -> i64 {
        let Some((thread, seen)) = waiting else {
            return hostcall::call(call, arguments);
        };
        let area = area::current();
        let Some(word) = threads::prepare_wait(area, thread, seen) else {
            // Something has happened already: look without waiting.
            match call {
                HostCall::Poll => arguments[1] = 0,
                HostCall::EpollWait => arguments[2] = 0,
                HostCall::Recv => arguments[1] &= !bulla_abi::hostcall::RECV_WAIT,
                _ => {}
            }
            return hostcall::call(call, arguments);
        };
        match call {
            HostCall::Poll => arguments[2] = u64::from(word),
            HostCall::EpollWait => arguments[3] = u64::from(word),
            HostCall::Recv => {
                let seen_at = core::mem::offset_of!(RecvHeader, seen) as u64;
                let _ = hostcall::put(seen_at, &u64::from(word).to_le_bytes());
            }
            _ => {}
        }
        let answer = hostcall::call(call, arguments);
        area.sleeping.store(0, Ordering::SeqCst);
        answer
    }

    fn host_put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        hostcall::put(offset, bytes)
    }

    fn host_get(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        hostcall::get(offset, bytes)
    }

    fn host_put_user(
        &self,
        offset: u64,
        address: u64,
        len: usize,
    ) -> core::result::Result<(), UserFault> {
        let mut bounce = [0u8; 4096];
        let mut moved = 0;
        while moved < len {
            let step = (len - moved).min(bounce.len());
            usercopy::copy_from_user(address + moved as u64, &mut bounce[..step])
                .map_err(|fault| exact(len, moved, step, fault))?;
            if hostcall::put(offset + moved as u64, &bounce[..step]).is_err() {
                return Err(UserFault {
                    remaining: len - moved,
                });
            }
            moved += step;
        }
        Ok(())
    }

    fn host_get_user(
        &self,
        offset: u64,
        address: u64,
        len: usize,
    ) -> core::result::Result<(), UserFault> {
        let mut bounce = [0u8; 4096];
        let mut moved = 0;
        while moved < len {
            let step = (len - moved).min(bounce.len());
            if hostcall::get(offset + moved as u64, &mut bounce[..step]).is_err() {
                return Err(UserFault {
                    remaining: len - moved,
                });
            }
            usercopy::copy_to_user(address + moved as u64, &bounce[..step])
                .map_err(|fault| exact(len, moved, step, fault))?;
            moved += step;
        }
        Ok(())
    }

    fn rootfs_read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let len = HOST.rootfs_len.load(Ordering::Relaxed);
        match offset.checked_add(to.len() as u64) {
            Some(end) if end <= len => {
                untrusted::copy_in(HOST.rootfs.load(Ordering::Relaxed) + offset, to)
            }
            _ => Err(EIO.because("beyond the root file system")),
        }
    }

    fn report(&self, target: &[u8; 512], data: &[u8; 64]) -> Result<[u8; 432]> {
        Ok(sgx::ereport(target, data))
    }

    fn key(&self, request: &[u8; 512]) -> Result<[u8; 16]> {
        sgx::egetkey(request).map_err(|_| EACCES.because("EGETKEY refuses"))
    }

    fn exit(&self, status: u32) -> ! {
        loop {
            let (rewritten, trapped) = bulla_libos::mm::sites::counts();
            let arguments = [u64::from(status), rewritten, trapped, 0];
            hostcall::call(HostCall::Exit, arguments);
        }
    }

    fn fatal(&self, reason: &str) -> ! {
        crate::panic::fatal(reason)
    }

    fn log(&self, level: u8, message: &str) {
        crate::boot::log(level, message);
    }

    fn monotonic(&self) -> u64 {
        clock::monotonic()
    }

    fn realtime(&self) -> u64 {
        clock::realtime()
    }

    fn random(&self, to: &mut [u8]) {
        for chunk in to.chunks_mut(8) {
            chunk.copy_from_slice(&random_word().to_le_bytes()[..chunk.len()]);
        }
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Sha256::new(HOST.features.load(Ordering::Relaxed));
        for part in parts {
            hash.update(part);
        }
        hash.finish()
    }

    fn sha256_pair(&self, salt: &[u8; 32], blocks: [&[u8]; 2]) -> [[u8; 32]; 2] {
        sha256::pair(HOST.features.load(Ordering::Relaxed), salt, blocks)
    }

    fn fingerprints(&self, pages: &[u8], of: &mut [u128]) -> bool {
        crate::fingerprints::find(pages, of)
    }

    fn cpus(&self) -> u32 {
        HOST.cpus.load(Ordering::Relaxed) as u32
    }

    fn gate_offset(&self) -> u32 {
        area::GATE as u32
    }

    fn instruction_gate(&self) -> InstructionGate {
        InstructionGate {
            offset: area::INSTRUCTION_GATE as u32,
            trampoline: area::TRAMPOLINE as u32,
        }
    }

    fn clock_page(&self) -> Option<u64> {
        clock::page()
    }

    fn heap_usage(&self) -> (u64, u64) {
        heap::usage()
    }

    fn limit_heap(&self, bytes: u64) {
        heap::set_limit(bytes);
    }

    fn heap_is_short(&self) -> bool {
        heap::is_short()
    }
}

/// RDRAND, which may fail for a while under load (SDM volume 1, section 7.3.17).
fn random_word() -> u64 {
    for _ in 0..1000 {
        let (word, ok): (u64, u8);
        // SAFETY: the CPU has RDRAND (checked at boot; a lie faults).
        unsafe {
            asm!("rdrand {}", "setc {}", out(reg) word, out(reg_byte) ok, options(nostack));
        }
        if ok != 0 {
            return word;
        }
        core::hint::spin_loop();
    }
    crate::panic::fatal("RDRAND gives no random numbers");
}
