//! The user's terminal, which must be left as it was found.

use std::mem::MaybeUninit;

/// Settings of a terminal at some time.
pub struct Settings {
    fd: i32,
    settings: libc::termios,
}

impl Settings {
    /// The present settings, when `fd` is a terminal.
    pub fn of(fd: i32) -> Option<Settings> {
        let mut settings = MaybeUninit::uninit();
        // SAFETY: tcgetattr fills the structure in when it returns 0.
        unsafe {
            (libc::tcgetattr(fd, settings.as_mut_ptr()) == 0).then(|| Settings {
                fd,
                settings: settings.assume_init(),
            })
        }
    }

    /// Sets them again. A background process would be stopped for it, so SIGTTOU is blocked.
    pub fn restore(&self) {
        // SAFETY: local signal sets and settings that tcgetattr wrote.
        unsafe {
            let mut block = MaybeUninit::uninit();
            let mut before = MaybeUninit::uninit();
            libc::sigemptyset(block.as_mut_ptr());
            libc::sigaddset(block.as_mut_ptr(), libc::SIGTTOU);
            libc::pthread_sigmask(libc::SIG_BLOCK, block.as_ptr(), before.as_mut_ptr());
            libc::tcsetattr(self.fd, libc::TCSADRAIN, &self.settings);
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        }
    }
}
