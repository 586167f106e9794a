//! The end of an enclave that cannot go on: one clear message, then nothing more.

use core::fmt::Write;
use core::panic::PanicInfo;

use bulla_abi::hostcall::HostCall;

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
    let _ = write!(message, "{info}");
    end(&message)
}

/// Ends the container: the host broke the rules, or we did.
pub fn fatal(reason: &str) -> ! {
    let mut message = Message {
        bytes: [0; 512],
        len: 0,
    };
    let _ = message.write_str(reason);
    end(&message)
}

/// A fault of the runtime itself.
pub fn fatal_fault(vector: u32, rip: u64, address: u64, rsp: u64) -> ! {
    let mut message = Message {
        bytes: [0; 512],
        len: 0,
    };
    let _ = write!(
        message,
        "exception {vector} in the runtime at {rip:#x}, address {address:#x}, stack {rsp:#x}"
    );
    end(&message)
}

fn end(message: &Message) -> ! {
    let _ = hostcall::put(0, &message.bytes[..message.len]);
    loop {
        hostcall::call(HostCall::Panic, [message.len as u64, 0, 0, 0]);
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
