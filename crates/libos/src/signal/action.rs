//! What a process wants to happen with each signal (sigaction).

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{IGNORED_BY_DEFAULT, SIGNAL_MAX, bit};

pub const SIG_DFL: u64 = 0;
pub const SIG_IGN: u64 = 1;

pub const SA_NOCLDSTOP: u64 = 1;
pub const SA_NOCLDWAIT: u64 = 2;
pub const SA_SIGINFO: u64 = 4;
pub const SA_UNSUPPORTED: u64 = 0x400;
/// Accepted and kept by Linux everywhere; it means something where addresses carry tags.
pub const SA_EXPOSE_TAGBITS: u64 = 0x800;
pub const SA_RESTORER: u64 = 0x0400_0000;
pub const SA_ONSTACK: u64 = 0x0800_0000;
pub const SA_RESTART: u64 = 0x1000_0000;
pub const SA_NODEFER: u64 = 0x4000_0000;
pub const SA_RESETHAND: u64 = 0x8000_0000;
/// Flags the kernel knows; the others are cleared so that programs can probe for them
/// (sigaction(2), "Dynamically probing for flag bits").
pub const SA_KNOWN: u64 = SA_NOCLDSTOP
    | SA_NOCLDWAIT
    | SA_SIGINFO
    | SA_EXPOSE_TAGBITS
    | SA_RESTORER
    | SA_ONSTACK
    | SA_RESTART
    | SA_NODEFER
    | SA_RESETHAND;

/// `struct kernel_sigaction` of x86-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Action {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

impl Action {
    /// Whether `signal` with this action vanishes when it is generated.
    pub fn ignores(&self, signal: u32) -> bool {
        match self.handler {
            SIG_IGN => true,
            SIG_DFL => IGNORED_BY_DEFAULT & bit(signal) != 0,
            _ => false,
        }
    }
}

/// The actions of all signals.
#[derive(Clone)]
pub struct Actions([Action; SIGNAL_MAX as usize]);

impl Default for Actions {
    fn default() -> Actions {
        Actions([Action::default(); SIGNAL_MAX as usize])
    }
}

impl Actions {
    pub fn get(&self, signal: u32) -> Action {
        self.0[signal as usize - 1]
    }

    pub fn set(&mut self, signal: u32, action: Action) {
        self.0[signal as usize - 1] = action;
    }

    /// execve: handlers become the default, ignored signals stay ignored.
    pub fn reset_for_exec(&mut self) {
        for action in &mut self.0 {
            let handler = if action.handler == SIG_IGN {
                SIG_IGN
            } else {
                SIG_DFL
            };
            *action = Action {
                handler,
                ..Action::default()
            };
        }
    }

    /// CLONE_CLEAR_SIGHAND: handlers become the default, ignored signals stay ignored.
    pub fn clear_handlers(&mut self) {
        self.reset_for_exec();
    }
}
