//! The user's terminal, which must be left as it was found.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Settings of a terminal at some time.
pub struct Settings {
    fd: i32,
    settings: libc::termios,
    /// Write end of the pipe to the guard.
    guard: Option<OwnedFd>,
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
                guard: None,
            })
        }
    }

    /// Starts a process that sets them again when this one ends without having done so, even by
    /// SIGKILL. It is in a session of its own, where no signal of the terminal reaches it.
    pub fn guard(&mut self) -> io::Result<()> {
        let mut pipe = [0; 2];
        // SAFETY: room for two descriptors.
        if unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: pipe2 has made both, and nobody else owns them.
        let [read, write] = pipe.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: the child calls nothing but async-signal-safe functions, until it ends.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => self.stand_guard(read.as_raw_fd()),
            _ => {
                self.guard = Some(write);
                Ok(())
            }
        }
    }

    /// The guard's whole life.
    fn stand_guard(&self, pipe: i32) -> ! {
        // SAFETY: system calls on descriptors of this process, which is a copy of one thread;
        // the settings are what tcgetattr wrote. Nothing allocates or takes a lock.
        unsafe {
            libc::setsid();
            // Everything else must be closed, or those who wait for our output's end wait for us.
            let low = libc::fcntl(self.fd, libc::F_DUPFD, 10);
            libc::dup2(pipe, 0);
            libc::dup2(low, 1);
            libc::close_range(2, u32::MAX, 0);
            let mut byte = 0u8;
            loop {
                match libc::read(0, (&raw mut byte).cast(), 1) {
                    // The other end is closed, and nobody has said that all is well.
                    0 => {
                        libc::tcsetattr(1, libc::TCSADRAIN, &self.settings);
                        libc::_exit(0);
                    }
                    1 => libc::_exit(0),
                    _ if *libc::__errno_location() == libc::EINTR => {}
                    _ => libc::_exit(1),
                }
            }
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
            if let Some(guard) = &self.guard {
                libc::write(guard.as_raw_fd(), c"x".as_ptr().cast(), 1);
            }
        }
    }
}
