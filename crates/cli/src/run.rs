//! `bulla run`.

use crate::args::{Layout, PlatformArguments, RunArguments, Workload};
use crate::banner::{self, Start, Style};
use crate::containers;
use crate::debugger::Debugger;
use crate::enclave;
use crate::exec;
use crate::failure::{BULLA_FAILED, Failure};
use crate::image_key;
use crate::platform;
use crate::quick;
use crate::quoter;
use crate::state::{State, hex};
use crate::workload::Prepared;
use bulla_abi::config::Insecure;
use bulla_abi::input::Refused;
use bulla_abi::layout::LayoutKind;
use bulla_image::Options;
use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::{AsRawFd, IntoRawFd};

/// Runs the command, with what `prepare` makes of the image; the result is the exit code.
pub fn run(
    arguments: &RunArguments,
    prepare: impl FnOnce(&Workload) -> Result<Prepared, Failure>,
) -> Result<u8, Failure> {
    for publish in &arguments.publish {
        check_free(publish, check_port(publish)?)?;
    }
    let terminal = std::io::stdin().is_terminal();
    if arguments.workload.tty && arguments.interactive && !terminal {
        return Err(Failure::new(
            "standard input is not a terminal; leave -t out, or run from a terminal",
        ));
    }
    if arguments.detach {
        return detach(arguments);
    }
    let prepared = prepare(&arguments.workload)?;
    let id = match &arguments.container_id {
        Some(id) => {
            // Away from the terminal that started it.
            let _ = rustix::process::setsid();
            id.clone()
        }
        None => containers::new_id()?,
    };
    let words = &arguments.workload.words;
    let shown = |words: &[OsString]| -> String {
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    };
    let (image, command) = match &arguments.workload.rootfs {
        Some(directory) => (directory.display().to_string(), shown(words)),
        None => (shown(&words[..1]), shown(&words[1..])),
    };
    let keep =
        !arguments.rm && (arguments.container_id.is_some() || arguments.workload.name.is_some());
    let register = Register {
        id,
        name: arguments.workload.name.clone(),
        image,
        command,
        keep,
    };
    enter(
        prepared,
        Launch {
            platform: &arguments.platform,
            layout: arguments.layout,
            interactive: arguments.interactive,
            stats: arguments.stats,
            sites_trap: arguments.no_site_rewriting,
            hostile_host: arguments.hostile_host,
            register: Some(register),
            style: match (arguments.json, arguments.quiet) {
                (true, _) => Style::Json,
                (_, true) => Style::Quiet,
                _ => Style::Text,
            },
        },
    )
}

/// What `bulla ps` says about a container.
pub struct Register {
    pub id: String,
    pub name: Option<String>,
    pub image: String,
    pub command: String,
    /// Whether it is listed after its end.
    pub keep: bool,
}

/// Starts this command again in the background, and waits until its container is registered.
fn detach(arguments: &RunArguments) -> Result<u8, Failure> {
    if arguments.interactive || arguments.workload.tty {
        return Err(Failure::new(
            "-d leaves nobody to type: -i and -t need the foreground; leave -d or -it out",
        ));
    }
    let id = containers::new_id()?;
    let (path, log) = containers::log_file(&id)?;
    let failed =
        |error: std::io::Error| Failure::new(format!("cannot start in the background: {error}"));
    let other = log.try_clone().map_err(failed)?;
    let own = quick::whole().map_err(failed)?;
    // Options end at the image: what follows may look like ours.
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    let split = given.len() - arguments.workload.words.len();
    let options = given[..split]
        .iter()
        .filter(|word| *word != "-d" && *word != "--detach");
    let mut child = std::process::Command::new(own)
        .args(options)
        .args(["--container-id", &id])
        .args(&given[split..])
        .stdin(std::process::Stdio::null())
        .stdout(log)
        .stderr(other)
        .spawn()
        .map_err(failed)?;
    loop {
        if containers::is_registered(&id) {
            crate::print(&format!("{id}\n"))?;
            return Ok(0);
        }
        if let Some(status) = child.try_wait().map_err(failed)? {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            containers::discard(&id);
            if status.success() {
                // It was so short that it has been removed already (--rm).
                crate::print(&format!("{id}\n"))?;
                return Ok(0);
            }
            let last = text.lines().last().unwrap_or("it gave no reason");
            return Err(Failure::new(
                last.trim_start_matches("bulla: ")
                    .trim_start_matches("error: "),
            ));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// How a workload is started.
pub struct Launch<'a> {
    pub platform: &'a PlatformArguments,
    pub layout: Option<Layout>,
    /// Standard input is passed on.
    pub interactive: bool,
    pub stats: bool,
    pub sites_trap: bool,
    pub hostile_host: Option<u64>,
    /// How `bulla ps` lists it.
    pub register: Option<Register>,
    pub style: Style,
}

impl<'a> Launch<'a> {
    /// Nothing out of the ordinary.
    pub fn default_for(platform: &'a PlatformArguments) -> Launch<'a> {
        Launch {
            platform,
            layout: None,
            interactive: false,
            stats: false,
            sites_trap: false,
            hostile_host: None,
            register: None,
            style: Style::Text,
        }
    }
}

/// Starts a workload and waits for its end; the result is the exit code.
pub fn enter(prepared: Prepared, how: Launch<'_>) -> Result<u8, Failure> {
    let opened = platform::open(how.platform)?;
    let features = opened.backend.features();
    let kind = match how.layout.map(LayoutKind::from) {
        Some(LayoutKind::Dynamic) if !features.edmm => {
            return Err(Failure::new(
                "the dynamic layout needs EDMM, which this platform does not offer (Linux 6.0 on a \
                 CPU with SGX2); use --layout static",
            ));
        }
        Some(kind) => kind,
        None if features.edmm => LayoutKind::Dynamic,
        None => LayoutKind::Static,
    };
    let config = prepared.config(kind);
    if image_key::is_hosts(config) && prepared.input.image_key.is_none() {
        return Err(Failure::new(Refused::NoImageKey));
    }
    if let Err(refused) = config.clone().admit(&prepared.input) {
        return Err(Failure::new(refused));
    }
    let options = Options {
        exinfo: features.exinfo,
        xfrm: enclave::extended_state(&prepared, kind, features.xfrm),
        ..Options::default()
    };
    let image = enclave::build(&prepared, kind, &options)?;
    let signature = enclave::sign(&prepared, &image, &State::of_user())?;

    let platform_name = opened.backend.name();
    banner::start(
        &Start {
            platform: platform_name,
            profile: opened.profile,
            emulated: platform_name == "emulated",
            layout: kind.name(),
            mrenclave: hex(&image.mrenclave),
            mrsigner: hex(&signature.mrsigner()),
            image: prepared.digest.to_string(),
            insecure: banner::names(&config.insecure),
        },
        &config.insecure,
        how.style,
    );

    let mrenclave = hex(&image.mrenclave);
    let own = how.register.map(|register| {
        let new = containers::New {
            name: register.name.as_deref(),
            image: register.image,
            command: register.command,
            stop_signal: config.stop_signal,
            mrenclave,
            labels: containers::labels(platform_name, &config.insecure),
        };
        containers::Own::register(new, &register.id, register.keep)
    });
    let own = own.transpose()?;
    // Ready before anybody can know that the container runs.
    let execs = match &own {
        Some(own) if config.host.exec => Some(exec::listen(own.directory())?),
        _ => None,
    };
    let shown = prepared.rootfs.display();
    let rootfs = File::open(&prepared.rootfs)
        .map_err(|error| Failure::new(format!("cannot open {shown}: {error}")))?;
    let mut launch = bulla_loader::Options::new(opened.backend);
    launch.quoter = Some(quoter::of_platform(
        platform_name,
        State::of_user().emulated_fuses(),
    ));
    launch.rootfs = Some(rootfs);
    if platform_name == "emulated" {
        prepared.volumes.warn_of_new_machine(config);
    }
    launch.volumes = prepared.volumes.open(config, &State::of_user())?;
    launch.directories = prepared.volumes.open_directories(config)?;
    launch.execs = execs;
    launch.input = prepared.input.to_bytes();
    launch.stats = how.stats;
    let mut leftover = None;
    launch.terminal = prepared.input.terminal;
    if config.insecure.contains(&Insecure::Debugger) {
        if platform_name != "emulated" {
            return Err(Failure::new(
                "--gdb needs the emulated platform: a real enclave's memory is out of gdb's \
                 reach; add --platform emulated",
            ));
        }
        let debugger = Debugger::new(&prepared.rootfs, &config.rootfs)?;
        leftover = Some(debugger.directory().to_owned());
        launch.debugger = Some(Box::new(debugger));
    }
    launch.sites_trap = how.sites_trap;
    launch.hostile = how.hostile_host;
    if !how.interactive {
        // As with Docker: without -i there is nothing to read.
        let null = File::open("/dev/null")
            .map_err(|error| Failure::new(format!("cannot open /dev/null: {error}")))?;
        launch.standard[0] = match prepared.input.terminal {
            true => std::io::stdin().as_raw_fd(),
            // The process ends with the container: never closed.
            false => null.into_raw_fd(),
        };
    }
    let finished = bulla_loader::launch(enclave::for_loader(image, &signature), launch);
    if let Some(directory) = leftover {
        // What cannot be removed only takes up space.
        let _ = std::fs::remove_dir_all(directory);
    }
    let code = finished
        .as_ref()
        .map_or(BULLA_FAILED, |finished| finished.status.code());
    if let Some(own) = own {
        own.finish(code);
    }
    let finished = finished?;
    banner::end(code, finished.stats.as_ref(), how.style);
    Ok(code)
}

/// Protocols of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// A port that is somebody else's already: better said now than by the program, or not at all.
fn check_free(text: &str, (port, protocol): (u16, Protocol)) -> Result<(), Failure> {
    let bound = match protocol {
        Protocol::Tcp => std::net::TcpListener::bind(("0.0.0.0", port)).map(drop),
        Protocol::Udp => std::net::UdpSocket::bind(("0.0.0.0", port)).map(drop),
    };
    match bound {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(Failure::new(format!(
            "--publish {text}: port {port} is in use on this machine (`ss -lnp` says by whom); end \
             that program, or let yours listen on another port"
        ))),
        // What else there may be is between the program and the host.
        _ => Ok(()),
    }
}

/// With the host's network a port cannot be mapped to another one, only named.
fn check_port(text: &str) -> Result<(u16, Protocol), Failure> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let invalid = || {
        Failure::new(format!(
            "--publish {text:?} is not a port; write PORT or PORT:PORT, with /udp for UDP"
        ))
    };
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err(invalid()),
    };
    let mut parts: Vec<&str> = ports.rsplitn(3, ':').collect();
    parts.reverse();
    if parts.len() == 3 && !matches!(parts[0], "" | "0.0.0.0" | "[::]") {
        return Err(Failure::new(format!(
            "--publish {text}: a host address cannot be chosen with the host's network; let the \
             program listen on {} itself",
            parts[0]
        )));
    }
    let ports = &parts[parts.len().saturating_sub(2)..];
    let mut numbers = Vec::new();
    for port in ports {
        let number = port.parse::<u16>().ok().filter(|&port| port > 0);
        numbers.push(number.ok_or_else(invalid)?);
    }
    match numbers[..] {
        [host, container] if host != container => Err(Failure::new(format!(
            "--publish {text}: the container uses the host's network, so port {container} is port \
             {container} on the host too; let the program listen on {host}, or publish \
             {container}:{container}"
        ))),
        [port] | [_, port] => Ok((port, protocol)),
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        for good in ["80", "80:80", "53:53/udp", "0.0.0.0:80:80", ":80:80"] {
            check_port(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in [
            "",
            "x",
            "0",
            "80:",
            "65536",
            "80/icmp",
            "127.0.0.1:80:80",
            "1:2:3:4",
        ] {
            assert!(check_port(bad).is_err(), "{bad}");
        }
        let error = check_port("8080:80").unwrap_err();
        assert!(error.message.contains("listen on 8080"), "{error}");
    }
}
