//! From an image and the command line to the measured configuration.
//!
//! `run`, `build` and `measure` share this, so equal arguments give an equal configuration and
//! MRENCLAVE. Without a manifest the options are part of it; with one they are what the host adds.
//! Of this machine nothing is measured but environment variables named with `-e NAME`.

use crate::args::Workload;
use crate::enclave::Programs;
use crate::failure::Failure;
use crate::image_key;
use crate::settle::settle;
use crate::sign;
use crate::volumes::VolumeOptions;
use bulla_abi::config::{Config, FixedFile, HostPolicy, ImageKey, Insecure, Strace, VERSION};
use bulla_abi::input::{HostInput, Refused, Secret};
use bulla_abi::layout::{DEFAULT_SLOTS_STATIC, LayoutKind};
use bulla_image::SigStruct;
use bulla_image::manifest::Manifest;
use bulla_oci::built::Built;
use bulla_oci::source::ImageSource;
use bulla_oci::{Cache, Digest, ImageConfig, Reference, Stored, registry};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What Docker sets when an image does not.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_HOSTNAME: &str = "bulla";
/// Room for ordinary servers and language runtimes; pages that are not touched cost nothing.
const MEMORY_DYNAMIC: u64 = 4 << 30;
/// Every page of it is added before the enclave starts.
const MEMORY_STATIC: u64 = 1 << 30;
const THREADS_DYNAMIC: u32 = 1024;
/// The smallest that is of any use: programs, their libraries and stacks.
const MEMORY_MIN: u64 = 16 << 20;

/// A configuration whose limits may still depend on the layout.
pub struct Draft {
    pub config: Config,
    pub memory: Option<u64>,
    pub threads: Option<u32>,
}

impl Draft {
    /// The configuration for one layout: they differ in the default limits.
    pub fn config(&self, layout: LayoutKind) -> Config {
        let (memory, threads) = match layout {
            LayoutKind::Dynamic => (MEMORY_DYNAMIC, THREADS_DYNAMIC),
            LayoutKind::Static => (MEMORY_STATIC, DEFAULT_SLOTS_STATIC),
        };
        Config {
            memory: self.memory.unwrap_or(memory),
            threads: self.threads.unwrap_or(threads),
            ..self.config.clone()
        }
    }
}

/// A workload whose root file system is ready.
pub struct Prepared {
    /// The measured configurations: dynamic, static.
    configs: [Config; 2],
    /// Those of a confidential image.
    signatures: Option<[SigStruct; 2]>,
    pub programs: Programs,
    /// What this machine adds at the start, unmeasured.
    pub input: HostInput,
    /// The root file system image.
    pub rootfs: PathBuf,
    /// The image's id, or the fingerprint of the directory.
    pub digest: Digest,
    /// Where this machine keeps the container's volumes.
    pub volumes: VolumeOptions,
    /// Numbers of the signature.
    pub product_id: u16,
    pub security_version: u16,
    /// Who signs; none: this machine's development key, or the image brings a signature.
    pub sign_key: Option<PathBuf>,
}

const KINDS: [LayoutKind; 2] = [LayoutKind::Dynamic, LayoutKind::Static];

impl Prepared {
    /// The measured configuration for one layout.
    pub fn config(&self, layout: LayoutKind) -> &Config {
        &self.configs[usize::from(layout == LayoutKind::Static)]
    }

    /// The signature that the image brings, for one layout.
    pub fn signature(&self, layout: LayoutKind) -> Option<&SigStruct> {
        let both = self.signatures.as_ref()?;
        Some(&both[usize::from(layout == LayoutKind::Static)])
    }

    /// A confidential image's workload, with what the host adds to its configuration.
    pub fn of_built(
        built: &Built,
        input: impl FnOnce(&Config) -> Result<HostInput, Failure>,
    ) -> Result<Prepared, Failure> {
        let about = built.about()?;
        let [dynamic, fixed] = KINDS;
        let configs = [
            sign::read_config(built, dynamic)?,
            sign::read_config(built, fixed)?,
        ];
        let signatures = [
            sign::read_signature(built, dynamic)?,
            sign::read_signature(built, fixed)?,
        ];
        let digest = Digest::parse(&about.source_id);
        let input = input(&configs[0])?;
        match configs[0].clone().admit(&input) {
            // To measure it keys and secrets are not needed; who starts it is told by `run::enter`.
            Ok(_) | Err(Refused::NoImageKey | Refused::NoSecret(_)) => {}
            Err(refused) => return Err(Failure::new(refused)),
        }
        image_key::check(&configs[0], input.image_key.as_ref())?;
        Ok(Prepared {
            product_id: signatures[0].isv_prod_id,
            security_version: signatures[0].isv_svn,
            configs,
            signatures: Some(signatures),
            programs: Programs::of(built)?,
            input,
            rootfs: built.path("rootfs.img"),
            volumes: VolumeOptions::default(),
            sign_key: None,
            digest: digest.ok_or_else(|| Failure::new("the image's about.json is damaged"))?,
        })
    }
}

/// Builds or finds the root file system and makes the configuration.
pub fn prepare(workload: &Workload) -> Result<Prepared, Failure> {
    let (source, arguments) = match &workload.rootfs {
        Some(directory) => (Source::Directory(directory), &workload.words[..]),
        None => {
            let (image, arguments) = workload
                .words
                .split_first()
                .ok_or_else(|| Failure::new("no image given; see `bulla run --help`"))?;
            // Whatever follows the image may look like an option, so this one was taken for it.
            if image.as_bytes().starts_with(b"-") {
                let shown = image.to_string_lossy();
                return Err(Failure::new(format!(
                    "there is no option {shown}; see `--help` (a file of that name is ./{shown})"
                )));
            }
            (Source::Image(image), arguments)
        }
    };
    let volumes = check_options(workload)?;
    let registry = workload.registry.options();
    match source.open(&registry)? {
        Opened::Plain(stored) => of_stored(*stored, workload, arguments, volumes),
        Opened::Built(built) => {
            if workload.manifest.is_some() {
                return Err(Failure::new(
                    "a confidential image has its manifest inside; leave --manifest out",
                ));
            }
            if workload.sign_key.is_some() {
                return Err(Failure::new(
                    "a confidential image is signed already; leave --sign-key out, or sign it anew \
                     with `bulla sign`",
                ));
            }
            let mut prepared =
                Prepared::of_built(&built, |config| host_input(config, workload, arguments))?;
            volumes.check(&prepared.configs[0])?;
            prepared.volumes = volumes;
            Ok(prepared)
        }
    }
}

/// An ordinary image in an archive or a layout that has not changed since it was last used.
pub fn known(workload: &Workload) -> Option<Stored> {
    if workload.rootfs.is_some() {
        return None;
    }
    let reference = Reference::parse(workload.words.first()?).ok()?;
    Cache::of_user().ok()?.known_image(&reference).ok()?
}

/// Makes the configuration for the image that was found [`known`].
pub fn prepare_stored(workload: &Workload, stored: Stored) -> Result<Prepared, Failure> {
    let volumes = check_options(workload)?;
    stored.touch();
    let arguments = workload.words.get(1..).unwrap_or_default();
    of_stored(stored, workload, arguments, volumes)
}

/// Makes the configuration for an ordinary image.
fn of_stored(
    stored: Stored,
    workload: &Workload,
    arguments: &[OsString],
    volumes: VolumeOptions,
) -> Result<Prepared, Failure> {
    let manifest = workload
        .manifest
        .as_deref()
        .map(Manifest::read)
        .transpose()?;
    let (draft, input) = match &manifest {
        None => (
            from_options(&stored, workload, arguments, &volumes)?,
            ambient_input(workload)?,
        ),
        Some(manifest) => {
            image_key::refuse_in_clear(manifest)?;
            let draft = settle(manifest, &stored.config, stored.rootfs.clone())?;
            let input = host_input(&draft.config, workload, arguments)?;
            volumes.check(&draft.config)?;
            (draft, input)
        }
    };
    // What the enclave will refuse is better explained before it is built.
    match draft.config.clone().admit(&input) {
        Ok(_) | Err(Refused::NoSecret(_)) => {}
        Err(refused) => return Err(Failure::new(refused)),
    }
    Ok(Prepared {
        configs: KINDS.map(|kind| draft.config(kind)),
        signatures: None,
        programs: Programs::embedded(),
        input,
        rootfs: stored.path,
        volumes,
        sign_key: workload.sign_key.clone(),
        digest: stored.digest,
        product_id: manifest.as_ref().map_or(0, |manifest| manifest.product_id),
        security_version: manifest
            .as_ref()
            .map_or(0, |manifest| manifest.security_version),
    })
}

/// What is wrong whatever the image may be is said before a registry is asked for it.
fn check_options(workload: &Workload) -> Result<VolumeOptions, Failure> {
    workload.memory.as_deref().map(parse_size).transpose()?;
    hostname(workload)?;
    added_hosts(&workload.add_host)?;
    let volumes = VolumeOptions::parse(&workload.volume, workload.insecure_volume_key.as_deref())?;
    volumes.with_passed(&workload.insecure_passthrough)
}

/// Whether a variable of the environment is meant for bulla itself.
pub fn is_own(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"BULLA_")
}

/// Without a manifest whoever types the command is the owner: the options are measured.
pub fn from_options(
    stored: &Stored,
    workload: &Workload,
    arguments: &[OsString],
    volumes: &VolumeOptions,
) -> Result<Draft, Failure> {
    let image = &stored.config;
    let config = Config {
        version: VERSION,
        rootfs: stored.rootfs.clone(),
        argv: argv(image, workload.entrypoint.as_deref(), arguments)?,
        env: environment(image, workload)?,
        cwd: working_directory(image, workload.workdir.as_deref())?,
        user: workload.user.clone().unwrap_or_else(|| image.user.clone()),
        files: resolver_file(&workload.dns),
        hostname: hostname(workload)?,
        stop_signal: stop_signal(&image.stop_signal)?,
        insecure: insecure(workload),
        host: HostPolicy {
            resolver: workload.dns.is_empty(),
            exec: workload.insecure_exec,
            ..HostPolicy::default()
        },
        hosts: added_hosts(&workload.add_host)?.into_bytes(),
        strace: Strace {
            calls: workload.strace.clone(),
            processes: workload.strace_pid.clone(),
        },
        mounts: volumes.mounts(),
        ..Config::default()
    };
    let memory = workload.memory.as_deref().map(parse_size).transpose()?;
    Ok(Draft {
        config,
        memory,
        threads: workload.threads,
    })
}

/// What this machine is like, as far as a container is told.
fn ambient_input(workload: &Workload) -> Result<HostInput, Failure> {
    Ok(HostInput {
        image_key: key(workload)?,
        secrets: secrets(workload)?,
        resolver: match workload.dns.is_empty() {
            true => std::fs::read("/etc/resolv.conf").ok(),
            false => None,
        },
        terminal: workload.tty,
        ..HostInput::default()
    })
}

/// Under a manifest whoever types the command is the host: options go where the manifest says so.
pub fn host_input(
    config: &Config,
    workload: &Workload,
    arguments: &[OsString],
) -> Result<HostInput, Failure> {
    let locked = [
        (workload.entrypoint.is_some(), "--entrypoint", "entrypoint"),
        (workload.user.is_some(), "--user", "user"),
        (workload.workdir.is_some(), "--workdir", "workdir"),
        (workload.memory.is_some(), "--memory", "memory"),
        (workload.threads.is_some(), "--threads", "threads"),
        (
            !workload.strace.is_empty() || !workload.strace_pid.is_empty(),
            "--strace",
            "insecure_strace",
        ),
        (workload.report, "--report", "insecure_report"),
        (workload.gdb, "--gdb", "insecure_debugger"),
        (workload.insecure_exec, "--insecure-exec", "insecure_exec"),
        (
            workload.insecure_host_faults,
            "--insecure-host-faults",
            "insecure_host_faults",
        ),
    ];
    if let Some((_, option, key)) = locked.into_iter().find(|(given, ..)| *given) {
        return Err(Failure::new(format!(
            "{option} is locked: it is part of what is measured; set `{key}` in the manifest and \
             build the image again"
        )));
    }
    let mut env = Environment::default();
    read_environment(&mut env, workload)?;
    let own = config.host.resolver && workload.dns.is_empty();
    let servers = workload
        .dns
        .iter()
        .map(|address| format!("nameserver {address}\n"));
    let words = arguments.iter().map(|word| word.as_bytes().to_vec());
    Ok(HostInput {
        arguments: (!arguments.is_empty()).then(|| words.collect()),
        environment: env.0,
        hostname: match (&workload.hostname, &workload.name) {
            (Some(name), _) => Some(name.clone()),
            (None, Some(name)) if config.host.hostname => Some(name.clone()),
            _ => None,
        },
        resolver: match own {
            true => std::fs::read("/etc/resolv.conf").ok(),
            false => (!workload.dns.is_empty()).then(|| servers.collect::<String>().into_bytes()),
        },
        hosts: added_hosts(&workload.add_host)?.into_bytes(),
        terminal: workload.tty,
        image_key: key(workload)?,
        secrets: secrets(workload)?,
    })
}

/// Largest secret: it must fit into an environment.
const SECRET_MAX: u64 = 64 << 10;

/// `--secret NAME=FILE`; a line end at the end of the file, which editors add, is no part of it.
fn secrets(workload: &Workload) -> Result<Vec<Secret>, Failure> {
    let mut secrets = Vec::new();
    for word in &workload.secret {
        let shown = word.to_string_lossy();
        let at = word.as_bytes().iter().position(|&byte| byte == b'=');
        let at = at.filter(|&at| at > 0 && word.len() > at + 1);
        let at = at.ok_or_else(|| {
            Failure::new(format!("--secret {shown:?} names no file; write NAME=FILE"))
        })?;
        let name = String::from_utf8_lossy(&word.as_bytes()[..at]).into_owned();
        let path = Path::new(OsStr::from_bytes(&word.as_bytes()[at + 1..]));
        secrets.push(read_secret(name, path)?);
    }
    Ok(secrets)
}

/// Reads a secret's value.
pub fn read_secret(name: String, path: &Path) -> Result<Secret, Failure> {
    use std::io::Read;
    let shown = path.display();
    let mut value = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(SECRET_MAX + 1).read_to_end(&mut value))
        .map_err(|error| {
            Failure::new(format!("cannot read the secret {name} ({shown}): {error}"))
        })?;
    if value.len() as u64 > SECRET_MAX {
        return Err(Failure::new(format!(
            "the secret {name} ({shown}) has more than {} KiB; keep it in a protected volume",
            SECRET_MAX >> 10
        )));
    }
    if value.last() == Some(&b'\n') {
        value.pop();
    }
    Ok(Secret { name, value })
}

/// `-e` of `bulla exec`.
pub fn variables(words: &[OsString]) -> Result<Vec<Vec<u8>>, Failure> {
    let mut env = Environment::default();
    for word in words {
        env.set_or_copy(word.as_bytes())?;
    }
    Ok(env.0)
}

fn key(workload: &Workload) -> Result<Option<ImageKey>, Failure> {
    workload
        .key_file
        .as_deref()
        .map(image_key::read)
        .transpose()
}

/// What a command is about.
pub enum Source<'a> {
    Image(&'a OsStr),
    Directory(&'a Path),
}

/// An image, ready for use.
pub enum Opened {
    Plain(Box<Stored>),
    /// A confidential one.
    Built(Built),
}

impl Opened {
    /// An ordinary image, which is in use from now on; others make room for a new one.
    fn plain(cache: &Cache, stored: Stored) -> Opened {
        stored.touch();
        if stored.built {
            crate::cache::bound(cache);
        }
        Opened::Plain(Box::new(stored))
    }
}

impl Source<'_> {
    /// Opens it; an image that is not there is fetched, its root file system built.
    pub fn open(&self, registry: &registry::Options) -> Result<Opened, Failure> {
        let cache = Cache::of_user()?;
        let build = &mut bulla_oci::build_rootfs;
        let source = match self {
            Source::Directory(path) => {
                return Ok(Opened::plain(&cache, cache.directory(path, build)?));
            }
            Source::Image(name) => ImageSource::parse(name)?,
        };
        // A file that is known as an ordinary image need not be opened at all.
        if let ImageSource::File(reference) = &source
            && let Some(stored) = cache.known_image(reference)?
        {
            return Ok(Opened::plain(&cache, stored));
        }
        let image = source.open(&cache, registry)?;
        Ok(match image.is_built() {
            true => Opened::Built(cache.built(&image)?),
            false => Opened::plain(&cache, source.stored(&cache, image, build)?),
        })
    }

    /// The same, but for an ordinary image.
    pub fn stored(&self, registry: &registry::Options) -> Result<Stored, Failure> {
        match self.open(registry)? {
            Opened::Plain(stored) => Ok(*stored),
            Opened::Built(_) => Err(Failure::new(
                "this is a confidential image already; `bulla sign` signs it again",
            )),
        }
    }
}

/// How an image wants to be run, without building anything.
pub fn image_config(name: &OsStr) -> Result<ImageConfig, Failure> {
    let options = registry::Options {
        progress: true,
        ..registry::Options::default()
    };
    let image = ImageSource::parse(name)?.open(&Cache::of_user()?, &options)?;
    Ok(image.config)
}

/// Entry point and arguments, with Docker's rules for what replaces what.
fn argv(
    image: &ImageConfig,
    entrypoint: Option<&OsStr>,
    arguments: &[OsString],
) -> Result<Vec<Vec<u8>>, Failure> {
    let bytes = |words: &[String]| -> Vec<Vec<u8>> {
        words.iter().map(|word| word.clone().into_bytes()).collect()
    };
    let mut argv = match entrypoint {
        Some(program) if program.is_empty() => Vec::new(),
        Some(program) => vec![program.as_bytes().to_vec()],
        None => bytes(&image.entrypoint),
    };
    if !arguments.is_empty() {
        argv.extend(arguments.iter().map(|word| word.as_bytes().to_vec()));
    } else if entrypoint.is_none() {
        argv.extend(bytes(&image.cmd));
    }
    if argv.first().is_none_or(Vec::is_empty) {
        return Err(Failure::new(
            "the image has no entry point or command; name a program after the image",
        ));
    }
    if argv.iter().any(|word| word.contains(&0)) {
        return Err(Failure::new("an argument contains a zero byte"));
    }
    Ok(argv)
}

/// Later settings replace earlier ones: defaults, image, files, options. The library OS adds
/// HOME, HOSTNAME and TERM.
fn environment(image: &ImageConfig, workload: &Workload) -> Result<Vec<Vec<u8>>, Failure> {
    let mut env = Environment::default();
    env.set(DEFAULT_PATH.as_bytes().to_vec())?;
    for variable in &image.env {
        env.set(variable.clone().into_bytes())?;
    }
    read_environment(&mut env, workload)?;
    Ok(env.0)
}

/// --env-file and -e.
fn read_environment(env: &mut Environment, workload: &Workload) -> Result<(), Failure> {
    for file in &workload.env_file {
        let shown = file.display();
        let text = std::fs::read(file)
            .map_err(|error| Failure::new(format!("cannot read --env-file {shown}: {error}")))?;
        for line in text.split(|&byte| byte == b'\n') {
            let line = line.trim_ascii_start();
            if !line.is_empty() && !line.starts_with(b"#") {
                env.set_or_copy(line.trim_ascii_end())?;
            }
        }
    }
    for variable in &workload.env {
        env.set_or_copy(variable.as_bytes())?;
    }
    Ok(())
}

#[derive(Default)]
struct Environment(Vec<Vec<u8>>);

impl Environment {
    fn set(&mut self, variable: Vec<u8>) -> Result<(), Failure> {
        let name = variable
            .split(|&byte| byte == b'=')
            .next()
            .unwrap_or_default();
        if name.is_empty() || variable.contains(&0) {
            let shown = String::from_utf8_lossy(&variable);
            return Err(Failure::new(format!(
                "{shown:?} is not an environment variable; write NAME=VALUE"
            )));
        }
        let same = |known: &Vec<u8>| known.split(|&byte| byte == b'=').next() == Some(name);
        match self.0.iter().position(same) {
            Some(at) => self.0[at] = variable,
            None => self.0.push(variable),
        }
        Ok(())
    }

    /// NAME=VALUE, or NAME to copy it from this process (nothing if it is not set, as Docker does).
    fn set_or_copy(&mut self, variable: &[u8]) -> Result<(), Failure> {
        if variable.contains(&b'=') || variable.is_empty() {
            return self.set(variable.to_vec());
        }
        match std::env::var_os(OsStr::from_bytes(variable)) {
            Some(value) => self.set([variable, b"=", &value.into_vec()].concat()),
            None => Ok(()),
        }
    }
}

fn working_directory(image: &ImageConfig, wanted: Option<&OsStr>) -> Result<Vec<u8>, Failure> {
    let path = match wanted {
        Some(path) => path.as_bytes().to_vec(),
        None if image.workdir.is_empty() => b"/".to_vec(),
        None => image.workdir.clone().into_bytes(),
    };
    if !path.starts_with(b"/") {
        return Err(Failure::new(format!(
            "the working directory {:?} is not absolute; write it from / on",
            String::from_utf8_lossy(&path)
        )));
    }
    Ok(path)
}

fn hostname(workload: &Workload) -> Result<String, Failure> {
    let name = workload.hostname.as_ref().or(workload.name.as_ref());
    let name = name.map_or(DEFAULT_HOSTNAME, String::as_str);
    if !bulla_abi::input::is_hostname(name) {
        return Err(Failure::new(format!(
            "{name:?} is not a host name; use letters, digits, dots and hyphens, at most 64"
        )));
    }
    Ok(name.to_owned())
}

/// `--add-host NAME:ADDRESS` as lines of /etc/hosts.
fn added_hosts(words: &[String]) -> Result<String, Failure> {
    let line = |word: &String| {
        let parts = word.split_once(':').or(word.split_once('='));
        let address = parts.and_then(|(_, address)| {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            address.parse::<std::net::IpAddr>().ok()
        });
        match (parts, address) {
            (Some((name, _)), Some(address)) if bulla_abi::input::is_hostname(name) => {
                Ok(format!("{address}\t{name}\n"))
            }
            _ => Err(Failure::new(format!(
                "--add-host {word:?} is not NAME:ADDRESS, as in db:10.0.0.7"
            ))),
        }
    };
    words.iter().map(line).collect()
}

/// /etc/resolv.conf from --dns.
fn resolver_file(dns: &[std::net::IpAddr]) -> Vec<FixedFile> {
    let lines = dns.iter().map(|address| format!("nameserver {address}\n"));
    let content: String = lines.collect();
    match content.is_empty() {
        true => Vec::new(),
        false => vec![file("/etc/resolv.conf", content.into_bytes())],
    }
}

pub fn file(path: &str, content: Vec<u8>) -> FixedFile {
    FixedFile {
        path: path.as_bytes().to_vec(),
        content,
        mode: 0o644,
    }
}

fn insecure(workload: &Workload) -> Vec<Insecure> {
    let mut insecure = Vec::new();
    if workload.insecure_host_faults {
        insecure.push(Insecure::HostFaults);
    }
    if !workload.strace.is_empty() || !workload.strace_pid.is_empty() {
        insecure.push(Insecure::Strace);
    }
    if workload.gdb {
        insecure.push(Insecure::Debugger);
    }
    if workload.report {
        insecure.push(Insecure::Report);
    }
    if !workload.insecure_passthrough.is_empty() {
        insecure.push(Insecure::HostFiles);
    }
    if workload.insecure_exec {
        insecure.push(Insecure::Exec);
    }
    if workload.insecure_volume_key.is_some() {
        insecure.push(Insecure::HostKey);
    }
    insecure
}

/// `SIGTERM`, `TERM`, `15`; empty is SIGTERM, as with Docker.
pub fn stop_signal(text: &str) -> Result<u32, Failure> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let unknown = || Failure::new(format!("the image's stop signal {text:?} is not a signal"));
    if text.is_empty() {
        return Ok(15);
    }
    if let Ok(number) = text.parse::<u32>() {
        return (1..=64)
            .contains(&number)
            .then_some(number)
            .ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        let number = offset
            .parse::<u32>()
            .ok()
            .and_then(|offset| offset.checked_add(34));
        return number.filter(|&number| number <= 64).ok_or_else(unknown);
    }
    let position = NAMES.iter().position(|known| *known == name);
    position.map(|at| at as u32 + 1).ok_or_else(unknown)
}

/// `512M`, `2G`, `1.5g`, `1073741824`, for the memory of a container; whole pages.
pub fn parse_size(text: &str) -> Result<u64, Failure> {
    let bytes = parse_bytes(text)?;
    if bytes < MEMORY_MIN {
        return Err(Failure::new(format!(
            "{text} of memory is too little; give at least {}M",
            MEMORY_MIN >> 20
        )));
    }
    Ok(bytes)
}

/// The same, of any size.
pub fn parse_bytes(text: &str) -> Result<u64, Failure> {
    let invalid = || {
        Failure::new(format!(
            "{text:?} is not a size; write for example 512M or 2G"
        ))
    };
    let lower = text.to_ascii_lowercase();
    let number = lower
        .strip_suffix("ib")
        .or(lower.strip_suffix('b'))
        .unwrap_or(&lower);
    let units = [('k', 10), ('m', 20), ('g', 30), ('t', 40)];
    let unit = units.iter().find(|(unit, _)| number.ends_with(*unit));
    let (number, shift) = match unit {
        Some((_, shift)) => (&number[..number.len() - 1], *shift),
        None => (number, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.len() <= 12 && text.bytes().all(|c| c.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(invalid());
    }
    let whole: u128 = whole.parse().map_err(|_| invalid())?;
    let part: u128 = match fraction {
        "" => 0,
        _ => fraction.parse().map_err(|_| invalid())?,
    };
    let bytes = (whole << shift) + (part << shift) / 10u128.pow(fraction.len() as u32);
    let bytes = u64::try_from(bytes).map_err(|_| invalid())?;
    bytes
        .checked_next_multiple_of(bulla_abi::PAGE_SIZE)
        .ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["entry".into(), "-x".into()],
            cmd: vec!["default".into()],
            env: vec!["A=image".into(), "PATH=/bin".into()],
            ..ImageConfig::default()
        }
    }

    fn words(argv: Vec<Vec<u8>>) -> Vec<String> {
        argv.into_iter()
            .map(|word| String::from_utf8(word).unwrap())
            .collect()
    }

    #[test]
    fn entry_points_as_with_docker() {
        let image = image();
        let run = |entrypoint: Option<&str>, arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            words(argv(&image, entrypoint.map(OsStr::new), &arguments).unwrap())
        };
        assert_eq!(run(None, &[]), ["entry", "-x", "default"]);
        assert_eq!(run(None, &["a"]), ["entry", "-x", "a"]);
        assert_eq!(run(Some("sh"), &[]), ["sh"]);
        assert_eq!(run(Some("sh"), &["-c", "x"]), ["sh", "-c", "x"]);
        assert_eq!(run(Some(""), &["x"]), ["x"]);
        assert!(argv(&ImageConfig::default(), None, &[]).is_err());
    }

    #[test]
    fn later_environment_wins() {
        let mut env = Environment::default();
        env.set(b"A=1".to_vec()).unwrap();
        env.set(b"B=2".to_vec()).unwrap();
        env.set_or_copy(b"A=3=4").unwrap();
        env.set_or_copy(b"BULLA_TEST_NEVER_SET").unwrap();
        assert_eq!(env.0, [b"A=3=4".to_vec(), b"B=2".to_vec()]);
        assert!(env.set_or_copy(b"=x").is_err());
    }

    #[test]
    fn hosts() {
        let lines = added_hosts(&["db:10.0.0.7".into(), "six:[::1]".into()]).unwrap();
        assert_eq!(lines, "10.0.0.7\tdb\n::1\tsix\n");
        for bad in ["db", "db:x", ":1.1.1.1", "a b:1.1.1.1"] {
            assert!(added_hosts(&[bad.into()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("67108864", 64 << 20),
            ("33000k", 33_792_000),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "",
            "M",
            "-1G",
            "1,5G",
            "1G2",
            "99999999999T",
            "4k",
            "1.x",
            "é",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn signals() {
        for (text, number) in [
            ("", 15),
            ("SIGINT", 2),
            ("quit", 3),
            ("10", 10),
            ("SIGRTMIN+3", 37),
        ] {
            assert_eq!(stop_signal(text).unwrap(), number, "{text}");
        }
        for text in ["SIGNOPE", "0", "65", "RTMIN+99"] {
            assert!(stop_signal(text).is_err(), "{text}");
        }
    }
}
