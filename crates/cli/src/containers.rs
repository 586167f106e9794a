//! Containers that run or ran on this machine, and the commands about them: `ps`, `logs`, `stop`,
//! `kill`, `rm`, `wait`.
//!
//! ```text
//! STATE/containers/ID/container.json   name, image, process; written before the enclave starts
//! STATE/containers/ID/log              output of a container that was started with -d
//! STATE/containers/ID/exec             socket of a container in which programs may be started
//! STATE/containers/ID/exit.json        exit code; absent while it runs
//! ```
//! There is no daemon: a container is the `bulla run` process that holds its enclave. A process is
//! recognised by its id and start time, so an id that the kernel gave to another one is not
//! mistaken for it. Files appear whole, by renaming.

use crate::banner::{self, INSECURE_LABEL};
use crate::failure::Failure;
use crate::state::State;
use bulla_abi::config::Insecure;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Label of a container: `emulated` or `hardware`.
const PLATFORM_LABEL: &str = "org.bulla.platform";

/// A container as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub name: String,
    pub image: String,
    pub command: String,
    /// Seconds since 1970.
    pub created: u64,
    pid: i32,
    /// Field 22 of /proc/PID/stat: ticks since boot.
    started: u64,
    pub stop_signal: u32,
    pub mrenclave: String,
    /// What whoever lists containers must not overlook: see [`labels`].
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Whether it is listed after its end.
    #[serde(default = "yes")]
    keep: bool,
}

/// Older records have no `keep`.
fn yes() -> bool {
    true
}

#[derive(Serialize, Deserialize)]
struct Exit {
    code: u8,
}

/// What became of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Running,
    Exited(u8),
    /// Its process is gone and left no exit code: it was killed.
    Killed,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Status::Running => f.write_str("running"),
            Status::Exited(code) => write!(f, "exited ({code})"),
            Status::Killed => f.write_str("killed"),
        }
    }
}

/// What a container is called and made from, before it runs.
pub struct New<'a> {
    pub name: Option<&'a str>,
    pub image: String,
    pub command: String,
    pub stop_signal: u32,
    pub mrenclave: String,
    pub labels: BTreeMap<String, String>,
}

/// Labels of a container: its platform, and the insecure options in use, if there are any.
pub fn labels(platform: &str, insecure: &[Insecure]) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([(PLATFORM_LABEL.to_owned(), platform.to_owned())]);
    if !insecure.is_empty() {
        let names = banner::names(insecure).join(",");
        labels.insert(INSECURE_LABEL.to_owned(), names);
    }
    labels
}

/// The container of this process. Dropping it does nothing: see [`finish`](Own::finish).
pub struct Own {
    dir: PathBuf,
    keep: bool,
}

impl Own {
    /// Registers this process as a container; with `keep` it is listed after its end too.
    pub fn register(new: New<'_>, id: &str, keep: bool) -> Result<Own, Failure> {
        let dir = directory()?.join(id);
        let name = new
            .name
            .map_or_else(|| format!("bulla-{id}"), str::to_owned);
        make_private(&dir)?;
        // One at a time, so that a name is taken once. One that is made of the id is taken by nobody.
        let _lock = new.name.map(|_| lock()).transpose()?;
        let others = new.name.map_or(Ok(Vec::new()), |_| all())?;
        if let Some(other) = others
            .into_iter()
            .find(|(other, _)| other.name == name && other.id != id)
        {
            // A detached container's log is read, and then removed, by whoever started it.
            if !dir.join("log").exists() {
                let _ = fs::remove_dir_all(&dir);
            }
            return Err(Failure::new(format!(
                "the name {name} belongs to the container {} ({}); `bulla rm {name}` first, or \
                 choose another name",
                other.0.id, other.1
            )));
        }
        let pid = std::process::id() as i32;
        let record = Record {
            id: id.to_owned(),
            name,
            image: new.image,
            command: new.command,
            created: now(),
            pid,
            started: start_time(pid).unwrap_or(0),
            stop_signal: new.stop_signal,
            mrenclave: new.mrenclave,
            labels: new.labels,
            keep,
        };
        write(&dir.join("container.json"), &record)?;
        Ok(Own { dir, keep })
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// The container has ended.
    pub fn finish(self, code: u8) {
        let _ = fs::remove_file(self.dir.join("exec"));
        if !self.keep {
            let _ = fs::remove_dir_all(&self.dir);
        } else if let Err(failure) = write(&self.dir.join("exit.json"), &Exit { code }) {
            eprintln!("bulla: warning: {failure}");
        }
    }
}

/// A fresh id, as engines have them.
pub fn new_id() -> Result<String, Failure> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(format!("the kernel gives no random numbers: {error}")))?;
    Ok(crate::state::hex(&bytes))
}

/// Where the output of a detached container goes.
pub fn log_file(id: &str) -> Result<(PathBuf, File), Failure> {
    let dir = directory()?.join(id);
    make_private(&dir)?;
    let path = dir.join("log");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.map_err(|error| failed("create", &path, error))?;
    Ok((path, file))
}

/// Whether the container has got as far as to register itself.
pub fn is_registered(id: &str) -> bool {
    directory().is_ok_and(|dir| dir.join(id).join("container.json").exists())
}

/// Takes away what is left of a container that never started.
pub fn discard(id: &str) {
    if let Ok(dir) = directory() {
        let _ = fs::remove_dir_all(dir.join(id));
    }
}

fn directory() -> Result<PathBuf, Failure> {
    let dir = State::of_user().containers();
    make_private(&dir)?;
    Ok(dir)
}

fn make_private(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(|error| failed("create", dir, error))
}

fn lock() -> Result<File, Failure> {
    let path = directory()?.join(".lock");
    let file = File::create(&path).map_err(|error| failed("create", &path, error))?;
    let locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive);
    locked.map_err(|errno| failed("lock", &path, errno.into()))?;
    Ok(file)
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_vec(value).map_err(Failure::new)?;
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|error| failed("write", path, error))
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn failed(what: &str, path: &Path, error: std::io::Error) -> Failure {
    Failure::new(format!(
        "cannot {what} {}: {error}; set BULLA_STATE to a directory of yours",
        path.display()
    ))
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |time| time.as_secs())
}

/// When a process started, in ticks since boot; `None` when there is none or it is a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl Record {
    fn dir(&self) -> Result<PathBuf, Failure> {
        Ok(directory()?.join(&self.id))
    }

    /// What makes the container worthless as a proof or insecure; empty if nothing does.
    fn warnings(&self) -> String {
        let platform = self.labels.get(PLATFORM_LABEL);
        let emulated = platform.filter(|name| *name == "emulated");
        let parts = [
            emulated.map(|name| name.to_uppercase()),
            self.labels.get(INSECURE_LABEL).cloned(),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        parts.join(",")
    }

    fn status(&self, dir: &Path) -> Status {
        let exit = || read::<Exit>(&dir.join("exit.json")).map(|exit| Status::Exited(exit.code));
        match exit() {
            Some(exited) => exited,
            None if start_time(self.pid) == Some(self.started) => Status::Running,
            // It may have ended between the two looks.
            None => exit().unwrap_or(Status::Killed),
        }
    }

    /// Sends a signal to the container's first process.
    fn signal(&self, number: u32) -> Result<(), Failure> {
        let signal = i32::try_from(number).ok().and_then(Signal::from_named_raw);
        let signal = signal.ok_or_else(|| {
            Failure::new(format!(
                "signal {number} cannot be sent from outside; use 1 to 31"
            ))
        })?;
        let pid = Pid::from_raw(self.pid);
        let sent = pid.map_or(Err(rustix::io::Errno::SRCH), |pid| {
            kill_process(pid, signal)
        });
        sent.map_err(|errno| {
            Failure::new(format!(
                "cannot signal the container {}: {errno}",
                self.name
            ))
        })
    }
}

/// All containers, the newest first.
fn all() -> Result<Vec<(Record, Status)>, Failure> {
    let dir = directory()?;
    let entries = fs::read_dir(&dir).map_err(|error| failed("read", &dir, error))?;
    let mut records: Vec<(Record, Status)> = entries
        .flatten()
        .filter_map(|entry| {
            let record: Record = read(&entry.path().join("container.json"))?;
            let status = record.status(&entry.path());
            if status == Status::Killed && !record.keep {
                // It could not do this itself.
                let _ = fs::remove_dir_all(entry.path());
                return None;
            }
            Some((record, status))
        })
        .collect();
    records.sort_by(|one, other| (other.0.created, &other.0.id).cmp(&(one.0.created, &one.0.id)));
    Ok(records)
}

/// The container of a name, an id, or the beginning of an id.
fn find(word: &str) -> Result<(Record, Status), Failure> {
    let all = all()?;
    if let Some(found) = all
        .iter()
        .find(|(record, _)| record.name == word || record.id == word)
    {
        return Ok(found.clone());
    }
    let mut starting = all
        .into_iter()
        .filter(|(record, _)| !word.is_empty() && record.id.starts_with(word));
    match (starting.next(), starting.next()) {
        (Some(found), None) => Ok(found),
        (Some(_), Some(_)) => Err(Failure::new(format!(
            "several containers' ids start with {word}"
        ))),
        _ => Err(Failure::new(format!(
            "there is no container {word}; see `bulla ps -a`"
        ))),
    }
}

#[derive(Debug, clap::Args)]
pub struct PsArguments {
    /// Those that have ended too
    #[arg(short, long)]
    pub all: bool,

    /// Ids only
    #[arg(short, long)]
    pub quiet: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    record: Record,
    status: String,
}

/// `bulla ps`.
pub fn ps(arguments: &PsArguments) -> Result<(), Failure> {
    let all = all()?.into_iter();
    let shown = all.filter(|(_, status)| arguments.all || *status == Status::Running);
    if arguments.json {
        let lines = shown.map(|(record, status)| Line {
            record,
            status: status.to_string(),
        });
        return crate::print_json(&lines.collect::<Vec<_>>());
    }
    let mut text = String::new();
    if !arguments.quiet {
        text.push_str(&format!(
            "{:<12}  {:<20}  {:<12}  {:<8}  {:<24}  {}\n",
            "ID", "NAME", "STATUS", "WARNINGS", "IMAGE", "COMMAND"
        ));
    }
    for (record, status) in shown {
        match arguments.quiet {
            true => text.push_str(&format!("{}\n", record.id)),
            false => text.push_str(&format!(
                "{:<12}  {:<20}  {:<12}  {:<8}  {:<24}  {}\n",
                record.id,
                record.name,
                status.to_string(),
                record.warnings(),
                record.image,
                record.command.escape_debug()
            )),
        }
    }
    crate::print(&text)
}

#[derive(Debug, clap::Args)]
pub struct LogsArguments {
    /// The container
    pub container: String,

    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
}

/// `bulla logs`.
pub fn logs(arguments: &LogsArguments) -> Result<(), Failure> {
    let (record, _) = find(&arguments.container)?;
    let dir = record.dir()?;
    let path = dir.join("log");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Failure::new(format!(
                "the container {} runs in the foreground: its output is where it was started; \
                 start it with -d to keep it",
                record.name
            )));
        }
        Err(error) => return Err(failed("read", &path, error)),
    };
    let mut out = std::io::stdout().lock();
    loop {
        // Looked at before the last read, so that nothing is missed.
        let running = record.status(&dir) == Status::Running;
        match std::io::copy(&mut file, &mut out).and_then(|_| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(failed("read", &path, error)),
            Ok(()) if !arguments.follow || !running => return Ok(()),
            Ok(()) => std::thread::sleep(Duration::from_millis(100)),
        }
        let here = file
            .stream_position()
            .map_err(|error| failed("read", &path, error))?;
        let _ = file.seek(std::io::SeekFrom::Start(here));
    }
}

#[derive(Debug, clap::Args)]
pub struct StopArguments {
    /// The containers
    #[arg(required = true)]
    pub containers: Vec<String>,

    /// Seconds until it is killed
    #[arg(short, long, default_value_t = 10)]
    pub time: u64,
}

/// `bulla stop`: the image's stop signal, then SIGKILL.
pub fn stop(arguments: &StopArguments) -> Result<(), Failure> {
    for word in &arguments.containers {
        let (record, status) = find(word)?;
        if status == Status::Running {
            record.signal(record.stop_signal)?;
            if !wait_for(&record, Duration::from_secs(arguments.time))? {
                record.signal(9)?;
                wait_for(&record, Duration::from_secs(10))?;
            }
        }
        crate::print(&format!("{word}\n"))?;
    }
    Ok(())
}

/// Whether it ended in time.
fn wait_for(record: &Record, limit: Duration) -> Result<bool, Failure> {
    let dir = record.dir()?;
    let end = Instant::now() + limit;
    loop {
        // One that is not kept takes its directory along.
        if !dir.join("container.json").exists() || record.status(&dir) != Status::Running {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[derive(Debug, clap::Args)]
pub struct KillArguments {
    /// The containers
    #[arg(required = true)]
    pub containers: Vec<String>,

    /// Signal to send
    #[arg(short, long, default_value = "SIGKILL")]
    pub signal: String,
}

/// `bulla kill`.
pub fn kill(arguments: &KillArguments) -> Result<(), Failure> {
    let number = crate::workload::stop_signal(&arguments.signal)?;
    for word in &arguments.containers {
        let (record, status) = find(word)?;
        if status != Status::Running {
            return Err(Failure::new(format!(
                "the container {word} does not run ({status})"
            )));
        }
        record.signal(number)?;
        crate::print(&format!("{word}\n"))?;
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
pub struct RmArguments {
    /// The containers
    #[arg(required = true)]
    pub containers: Vec<String>,

    /// Kill those that run
    #[arg(short, long)]
    pub force: bool,
}

/// `bulla rm`.
pub fn rm(arguments: &RmArguments) -> Result<(), Failure> {
    for word in &arguments.containers {
        let (record, status) = find(word)?;
        if status == Status::Running {
            if !arguments.force {
                return Err(Failure::new(format!(
                    "the container {word} runs; `bulla stop {word}` first, or use --force"
                )));
            }
            record.signal(9)?;
            wait_for(&record, Duration::from_secs(10))?;
        }
        let dir = record.dir()?;
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(failed("remove", &dir, error));
            }
            _ => crate::print(&format!("{word}\n"))?,
        }
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
pub struct WaitArguments {
    /// The container
    pub container: String,
}

/// `bulla wait`: prints the exit code when the container has ended.
pub fn wait(arguments: &WaitArguments) -> Result<(), Failure> {
    let (record, _) = find(&arguments.container)?;
    let dir = record.dir()?;
    while !wait_for(&record, Duration::from_secs(3600))? {}
    match record.status(&dir) {
        Status::Exited(code) => crate::print(&format!("{code}\n")),
        _ => crate::print("137\n"),
    }
}

/// The directory of a container that runs.
pub fn running(word: &str) -> Result<PathBuf, Failure> {
    let (record, status) = find(word)?;
    match status {
        Status::Running => record.dir(),
        status => Err(Failure::new(format!(
            "the container {word} does not run ({status}); start it again with `bulla run`"
        ))),
    }
}

/// A container as `bulla inspect` shows it, if there is one of that name.
pub fn inspect(word: &str) -> Option<Result<(), Failure>> {
    let (record, status) = find(word).ok()?;
    Some(crate::print_json(&Line {
        record,
        status: status.to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = std::process::id() as i32;
        let started = start_time(own).unwrap();
        assert_eq!(start_time(own), Some(started));
        // Its parent, the test runner or a shell, was there before.
        assert!(
            start_time(std::os::unix::process::parent_id() as i32)
                .is_none_or(|time| time <= started)
        );
        assert_eq!(start_time(-5), None);
    }
}
