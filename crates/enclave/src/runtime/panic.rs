//! The end of an enclave that cannot go on: one clear message, then nothing more.

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use bulla_abi::hostcall::HostCall;
use bulla_libos::sync::SpinLock;

use crate::hostcall;

/// A message of bounded length, without an allocation.
struct Message {
    bytes: [u8; 512],
    len: usize,
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.len() - self.len;
        let take = text.len().min(room);
        self.bytes[self.len..self.len + take].copy_from_slice(&text.as_bytes()[..take]);
        self.len += take;
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut message = Message {
        bytes: [0; 512],
        len: 0,
    };
    // `alloc` panics when it is given no memory. That is no mistake of ours.
    if crate::heap::has_failed() {
        let _ = message.write_str(
            "the runtime's memory is used up: the host gives no more, or the container needs a \
             larger --memory (",
        );
    }
    let _ = write!(message, "{info}");
    end(&message)
}

/// Set when one thread has found that the container must end: no other goes on.
static ENDED: AtomicBool = AtomicBool::new(false);
/// What stage 1 found, until its thread is at CSSA 0 again.
static FOUND: SpinLock<Option<Fault>> = SpinLock::new(None);

/// Why stage 1 ended the container.
#[derive(Clone, Copy)]
pub enum Fault {
    /// User code ran while the kernel was active in its slot.
    UserBesideKernel,
    /// The host entered a thread in a way that its state does not allow.
    UnexpectedEntry,
    /// A page that is committed cannot be accessed.
    PageTaken { rip: u64, address: u64 },
    /// Any other exception of the runtime.
    Exception {
        vector: u32,
        rip: u64,
        address: u64,
        rsp: u64,
    },
}

/// Whether the container has ended; then no thread may go on, whatever the host does.
#[inline(always)]
pub fn ended() -> bool {
    ENDED.load(Ordering::Relaxed)
}

/// Ends the container: the host broke the rules, or we did. At CSSA 0 only.
pub fn fatal(reason: &str) -> ! {
    let mut message = Message {
        bytes: [0; 512],
        len: 0,
    };
    let _ = message.write_str(reason);
    end(&message)
}

/// The same from stage 1, which cannot say so itself: the interrupted thread is to continue at
/// `entry::stop_entry`.
pub fn note(fault: Fault) {
    ENDED.store(true, Ordering::SeqCst);
    // Whoever holds the lock tells what it found itself. No waiting here: that could mean a host
    // call, which stage 1 cannot make.
    if let Some(mut found) = FOUND.try_lock() {
        found.get_or_insert(fault);
    }
}

/// Where a thread continues that stage 1 stopped.
pub extern "C" fn stopped() -> ! {
    let mut message = Message {
        bytes: [0; 512],
        len: 0,
    };
    // Copied, not taken: should telling it fault, it is told again.
    let found = *FOUND.lock();
    let _ = match found {
        Some(Fault::UserBesideKernel) => {
            message.write_str("the host resumed user code while the kernel was active")
        }
        Some(Fault::UnexpectedEntry) => {
            message.write_str("the host entered the enclave where it must not")
        }
        Some(Fault::PageTaken { rip, address }) => write!(
            message,
            "the host took away the page at {address:#x} (accessed at {rip:#x})"
        ),
        Some(Fault::Exception {
            vector,
            rip,
            address,
            rsp,
        }) => write!(
            message,
            "exception {vector} in the runtime at {rip:#x}, address {address:#x}, stack {rsp:#x}"
        ),
        // Another thread tells.
        None => wait_for_the_end(),
    };
    end(&message)
}

fn end(message: &Message) -> ! {
    ENDED.store(true, Ordering::SeqCst);
    let _ = hostcall::put(0, &message.bytes[..message.len]);
    loop {
        hostcall::raw(HostCall::Panic, [message.len as u64, 0, 0, 0]);
    }
}

/// Another thread has ended the container, or is about to: this one does nothing any more.
pub fn wait_for_the_end() -> ! {
    loop {
        hostcall::raw(HostCall::Yield, [0; 4]);
    }
}

/// Stops without a word: there is no one to talk to.
pub fn stop() -> ! {
    // SAFETY: UD2 at CSSA 0 leads to stage 1, which finds a fault of the runtime; before that is
    // set up, to the end of the thread.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

/// Referenced by the precompiled `core`; never called with panic = abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Likewise: `alloc` comes precompiled with landing pads.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    stop()
}
