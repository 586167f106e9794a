//! `siginfo_t`: who sent a signal and why.

use zerocopy::{FromBytes, Immutable, IntoBytes};

pub const SI_USER: i32 = 0;
pub const SI_KERNEL: i32 = 0x80;
pub const SI_QUEUE: i32 = -1;
pub const SI_TIMER: i32 = -2;
pub const SI_MESGQ: i32 = -3;
pub const SI_TKILL: i32 = -6;

pub const CLD_EXITED: i32 = 1;
pub const CLD_KILLED: i32 = 2;
pub const CLD_DUMPED: i32 = 3;
pub const CLD_TRAPPED: i32 = 4;
pub const CLD_STOPPED: i32 = 5;
pub const CLD_CONTINUED: i32 = 6;

pub const SEGV_MAPERR: i32 = 1;
pub const SEGV_ACCERR: i32 = 2;
pub const BUS_ADRALN: i32 = 1;
pub const BUS_ADRERR: i32 = 2;
pub const BUS_OBJERR: i32 = 3;
pub const FPE_INTDIV: i32 = 1;
pub const FPE_FLTDIV: i32 = 3;
pub const FPE_FLTOVF: i32 = 4;
pub const FPE_FLTUND: i32 = 5;
pub const FPE_FLTRES: i32 = 6;
pub const FPE_FLTINV: i32 = 7;
pub const ILL_ILLOPN: i32 = 2;
pub const TRAP_BRKPT: i32 = 1;
pub const TRAP_TRACE: i32 = 2;

/// Bytes of a `siginfo_t` in user memory.
pub const SIGINFO_SIZE: usize = 128;

/// The part of `siginfo_t` that carries something; the rest is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SigInfo {
    pub signal: i32,
    pub errno: i32,
    pub code: i32,
    pub padding: i32,
    /// The union: see the constructors.
    pub fields: [u64; 4],
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

impl SigInfo {
    /// From the kernel itself, with nothing more to say.
    pub fn kernel(signal: u32) -> SigInfo {
        SigInfo {
            signal: signal as i32,
            code: SI_KERNEL,
            ..SigInfo::default()
        }
    }

    /// From a process: kill, tgkill (SI_USER, SI_TKILL).
    pub fn user(signal: u32, code: i32, pid: u32, uid: u32) -> SigInfo {
        SigInfo {
            signal: signal as i32,
            code,
            fields: [pair(pid, uid), 0, 0, 0],
            ..SigInfo::default()
        }
    }

    /// A fault at `address`.
    pub fn fault(signal: u32, code: i32, address: u64) -> SigInfo {
        SigInfo {
            signal: signal as i32,
            code,
            fields: [address, 0, 0, 0],
            ..SigInfo::default()
        }
    }

    /// A POSIX timer's expiry.
    pub fn timer(signal: u32, id: u32, overrun: u32, value: u64) -> SigInfo {
        SigInfo {
            signal: signal as i32,
            code: SI_TIMER,
            fields: [pair(id, overrun), value, 0, 0],
            ..SigInfo::default()
        }
    }

    /// A child's change of state. `status` is the exit code or the signal; times in clock ticks.
    pub fn child(
        signal: u32,
        code: i32,
        pid: u32,
        uid: u32,
        status: u32,
        ticks: [u64; 2],
    ) -> SigInfo {
        SigInfo {
            signal: signal as i32,
            code,
            fields: [pair(pid, uid), u64::from(status), ticks[0], ticks[1]],
            ..SigInfo::default()
        }
    }

    /// The signal's number.
    pub fn number(&self) -> u32 {
        self.signal as u32
    }

    /// si_timerid.
    pub fn timer_id(&self) -> u32 {
        self.fields[0] as u32
    }

    /// si_overrun.
    pub fn set_overrun(&mut self, overrun: u32) {
        self.fields[0] = pair(self.timer_id(), overrun);
    }

    /// si_pid.
    pub fn pid(&self) -> u32 {
        self.fields[0] as u32
    }

    /// si_uid.
    pub fn uid(&self) -> u32 {
        (self.fields[0] >> 32) as u32
    }

    /// The bytes as user memory holds them.
    pub fn to_user(&self) -> [u8; SIGINFO_SIZE] {
        let mut out = [0; SIGINFO_SIZE];
        out[..size_of::<SigInfo>()].copy_from_slice(self.as_bytes());
        out
    }

    /// `struct signalfd_siginfo`.
    pub fn to_signalfd(&self) -> [u8; 128] {
        let mut out = [0u8; 128];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.signal.to_le_bytes());
        put(4, &self.errno.to_le_bytes());
        put(8, &self.code.to_le_bytes());
        let [first, second, third, fourth] = self.fields;
        let is_child = self.number() == super::SIGCHLD && self.code > 0;
        let is_fault = self.code > 0
            && self.code != SI_KERNEL
            && super::SYNCHRONOUS & super::bit(self.number().max(1)) != 0;
        if self.code == SI_TIMER {
            put(24, &(first as u32).to_le_bytes()); // ssi_tid
            put(32, &((first >> 32) as u32).to_le_bytes()); // ssi_overrun
            put(44, &(second as u32).to_le_bytes()); // ssi_int
            put(48, &second.to_le_bytes()); // ssi_ptr
        } else if is_fault {
            put(72, &first.to_le_bytes()); // ssi_addr
        } else {
            put(12, &self.pid().to_le_bytes());
            put(16, &self.uid().to_le_bytes());
            if is_child {
                put(40, &(second as u32).to_le_bytes()); // ssi_status
                put(56, &third.to_le_bytes()); // ssi_utime
                put(64, &fourth.to_le_bytes()); // ssi_stime
            } else {
                put(44, &(second as u32).to_le_bytes());
                put(48, &second.to_le_bytes());
            }
        }
        out
    }
}
