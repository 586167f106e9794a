//! `bulla exec`: another program in a running container.
//!
//! A container whose configuration lets the host do that listens on a socket in its directory
//! (`STATE/containers/ID/exec`, which only its user reaches). A client sends the request with its
//! own standard streams, then signals, a byte each; the answer is one line: the exit code, and the
//! reason if the program was not started. What is typed and printed passes through the client's
//! streams, which the container uses itself.

use crate::containers;
use crate::failure::{BULLA_FAILED, Failure};
use crate::workload;
use bulla_abi::hostcall::DATA_SIZE;
use bulla_abi::input::ExecRequest;
use bulla_loader::{Exec, ExecEnd, Execs};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::ffi::OsString;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, IsTerminal, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

/// The socket in a container's directory.
const SOCKET: &str = "exec";
/// Largest request: it goes through the buffer of a host call.
const REQUEST_MAX: usize = DATA_SIZE as usize;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The container
    pub container: String,

    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,

    /// Connect the terminal
    #[arg(short, long)]
    pub tty: bool,

    /// Do not wait for its end
    #[arg(short, long)]
    pub detach: bool,

    /// Set an environment variable; without a value, take it from this environment
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,

    /// Working directory [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,

    /// User to run as: NAME, UID, NAME:GROUP or UID:GID [default: the container's]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<OsString>,
}

/// Listens for programs to start in the container of `dir`.
pub fn listen(dir: &Path) -> Result<Arc<Execs>, Failure> {
    let failed = |error: std::io::Error| {
        let shown = dir.display();
        Failure::new(format!(
            "cannot listen for `bulla exec` in {shown}: {error}"
        ))
    };
    // A socket's path may have 107 bytes; this one is always short.
    let place = File::open(dir).map_err(failed)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", place.as_raw_fd());
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let execs = Arc::new(Execs::default());
    let queue = execs.clone();
    std::thread::Builder::new()
        .name("exec".into())
        .spawn(move || {
            for connection in listener.incoming().flatten() {
                let queue = queue.clone();
                let served = std::thread::Builder::new().spawn(move || serve(connection, &queue));
                // The client sees its connection closed.
                drop(served);
            }
        })
        .map_err(failed)?;
    Ok(execs)
}

/// One client.
fn serve(mut connection: UnixStream, execs: &Arc<Execs>) {
    let Some((request, standard)) = receive(&connection) else {
        return;
    };
    let terminal = request.terminal;
    let (end, told) = channel();
    let token = execs.start(Exec {
        request,
        standard,
        end,
    });
    let signals = connection.try_clone();
    let queue = execs.clone();
    if let Ok(mut signals) = signals {
        let _ = std::thread::Builder::new().spawn(move || {
            let mut number = [0];
            while let Ok(1) = signals.read(&mut number) {
                queue.signal(token, u32::from(number[0]));
            }
            // The client has gone, and with it the terminal.
            if terminal {
                queue.signal(token, 1);
            }
        });
    }
    let line = match told.recv() {
        Ok(ExecEnd::Ended(status)) => format!("{}\n", status.code()),
        Ok(ExecEnd::Refused(code, reason)) => format!("{code} {}\n", reason.replace('\n', " ")),
        Err(_) => return,
    };
    // A client that has gone does not want to know.
    let _ = connection.write_all(line.as_bytes());
    let _ = connection.shutdown(std::net::Shutdown::Both);
}

/// The request: its length, its bytes, and three descriptors.
fn receive(connection: &UnixStream) -> Option<(ExecRequest, [OwnedFd; 3])> {
    let mut len = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = rustix::net::recvmsg(
        connection,
        &mut [IoSliceMut::new(&mut len)],
        &mut control,
        flags,
    );
    if received.ok()?.bytes != len.len() {
        return None;
    }
    let mut standard: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            standard.extend(fds);
        }
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > REQUEST_MAX {
        return None;
    }
    let mut bytes = vec![0; len];
    let mut connection = connection;
    connection.read_exact(&mut bytes).ok()?;
    Some((ExecRequest::from_bytes(&bytes)?, standard.try_into().ok()?))
}

fn send(
    connection: &UnixStream,
    request: &ExecRequest,
    standard: [BorrowedFd<'_>; 3],
) -> Result<(), Failure> {
    let bytes = request.to_bytes();
    // Token and descriptors, which are filled in later, are numbers of up to ten bytes.
    if bytes.len() > REQUEST_MAX - 64 {
        return Err(Failure::new(format!(
            "the arguments and variables have more than {} bytes; put them into a file",
            REQUEST_MAX - 64
        )));
    }
    let gone = |error: std::io::Error| Failure::new(format!("the container has gone: {error}"));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&standard));
    let len = (bytes.len() as u32).to_le_bytes();
    let flags = SendFlags::NOSIGNAL;
    rustix::net::sendmsg(connection, &[IoSlice::new(&len)], &mut control, flags)
        .map_err(|errno| gone(errno.into()))?;
    let mut connection = connection;
    connection.write_all(&bytes).map_err(gone)
}

/// Runs the command; the result is the program's exit code.
pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let word = &arguments.container;
    let dir = containers::running(word)?;
    let stdin = std::io::stdin();
    if arguments.tty && !stdin.is_terminal() {
        return Err(Failure::new(
            "standard input is not a terminal; leave -t out, or run from a terminal",
        ));
    }
    let request = ExecRequest {
        arguments: words(&arguments.words)?,
        environment: workload::variables(&arguments.env)?,
        user: arguments.user.clone(),
        workdir: arguments
            .workdir
            .as_ref()
            .map(|dir| dir.as_bytes().to_vec()),
        terminal: arguments.tty,
        ..ExecRequest::default()
    };
    let place = File::open(&dir)
        .map_err(|error| Failure::new(format!("cannot open {}: {error}", dir.display())))?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", place.as_raw_fd());
    let connection = UnixStream::connect(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(format!(
            "the container {word} is locked: its measured configuration does not let the host \
             start programs in it; build the image with `insecure_exec = true` in the manifest, or \
             start it with `bulla run --insecure-exec`"
        )),
        _ => Failure::new(format!("the container {word} does not answer: {error}")),
    })?;
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| Failure::new(format!("cannot open /dev/null: {error}")))?;
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let connected = arguments.interactive || arguments.tty;
    let standard = match arguments.detach {
        true => [null.as_fd(); 3],
        false if arguments.tty => [stdin.as_fd(); 3],
        false if connected => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        false => [null.as_fd(), stdout.as_fd(), stderr.as_fd()],
    };
    send(&connection, &request, standard)?;
    if arguments.detach {
        return Ok(0);
    }
    let settings = Settings::of(stdin.as_fd(), arguments.tty);
    let code = wait(connection, arguments.tty);
    drop(settings);
    code
}

fn words(words: &[OsString]) -> Result<Vec<Vec<u8>>, Failure> {
    let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    if words.iter().any(|word| word.contains(&0)) || words[0].is_empty() {
        return Err(Failure::new("an argument is empty or contains a zero byte"));
    }
    Ok(words)
}

/// Waits for the end, and passes signals on.
fn wait(connection: UnixStream, terminal: bool) -> Result<u8, Failure> {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| Failure::new(format!("cannot wait: {error}"));
    connection.set_nonblocking(true).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let line = runtime.block_on(async {
        let connection = tokio::net::UnixStream::from_std(connection)?;
        let (reader, mut writer) = connection.into_split();
        let mut numbers = vec![libc_signal::HUP, libc_signal::INT, libc_signal::QUIT];
        numbers.push(libc_signal::TERM);
        if terminal {
            numbers.push(libc_signal::WINCH);
        }
        let (forward, mut received) = tokio::sync::mpsc::unbounded_channel();
        for number in numbers {
            let mut arrived = signal(SignalKind::from_raw(number))?;
            let forward = forward.clone();
            tokio::spawn(async move {
                while arrived.recv().await.is_some() {
                    let _ = forward.send(number as u8);
                }
            });
        }
        let mut lines = BufReader::new(reader).lines();
        loop {
            tokio::select! {
                line = lines.next_line() => break line,
                Some(number) = received.recv() => writer.write_all(&[number]).await?,
            }
        }
    });
    let Some(line) = line.map_err(failed)? else {
        // The first process has ended, and all others with it.
        return Ok(137);
    };
    let (code, reason) = line.split_once(' ').unwrap_or((&line, ""));
    let code = code.parse().unwrap_or(BULLA_FAILED);
    match reason {
        "" => Ok(code),
        reason => Err(Failure::with_code(code, reason)),
    }
}

/// Numbers of Linux.
mod libc_signal {
    pub const HUP: i32 = 1;
    pub const INT: i32 = 2;
    pub const QUIT: i32 = 3;
    pub const TERM: i32 = 15;
    pub const WINCH: i32 = 28;
}

/// The terminal's settings, put back at the end whatever the program made of them.
struct Settings<'a>(Option<(BorrowedFd<'a>, Termios)>);

impl<'a> Settings<'a> {
    fn of(fd: BorrowedFd<'a>, wanted: bool) -> Settings<'a> {
        let settings = wanted.then(|| tcgetattr(fd).ok()).flatten();
        Settings(settings.map(|settings| (fd, settings)))
    }
}

impl Drop for Settings<'_> {
    fn drop(&mut self) {
        if let Some((fd, settings)) = &self.0 {
            let _ = tcsetattr(fd, OptionalActions::Drain, settings);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_arrives_with_its_streams() {
        let (client, server) = UnixStream::pair().unwrap();
        let request = ExecRequest {
            arguments: vec![b"sh".to_vec(), b"\xff".to_vec()],
            environment: vec![b"A=1".to_vec()],
            user: Some("app".into()),
            terminal: true,
            ..ExecRequest::default()
        };
        let null = File::open("/dev/null").unwrap();
        send(&client, &request, [null.as_fd(); 3]).unwrap();
        let (received, standard) = receive(&server).unwrap();
        assert_eq!(received, request);
        assert!(standard.iter().all(|fd| fd.as_raw_fd() > 2));
        let long = ExecRequest {
            arguments: vec![vec![b'x'; REQUEST_MAX]],
            ..request
        };
        let error = send(&client, &long, [null.as_fd(); 3]).unwrap_err();
        assert!(error.message.contains("put them into a file"), "{error}");
    }

    #[test]
    fn without_streams_there_is_no_request() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&[4, 0, 0, 0, 1, 2, 3, 4]).unwrap();
        assert!(receive(&server).is_none());
        client.write_all(&[0xff; 4]).unwrap();
        assert!(receive(&server).is_none());
    }
}
