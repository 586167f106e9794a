//! `bulla run`.

use crate::args::RunArguments;
use crate::banner::{self, Start, Style};
use crate::debugger::Debugger;
use crate::enclave;
use crate::failure::Failure;
use crate::platform;
use crate::quoter;
use crate::state::{State, hex};
use crate::workload;
use bulla_abi::config::Insecure;
use bulla_abi::layout::LayoutKind;
use bulla_image::Options;
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::{AsRawFd, IntoRawFd};

/// Runs the command; the result is the exit code.
pub fn run(arguments: &RunArguments) -> Result<u8, Failure> {
    let style = match (arguments.json, arguments.quiet) {
        (true, _) => Style::Json,
        (_, true) => Style::Quiet,
        _ => Style::Text,
    };
    for publish in &arguments.publish {
        check_port(publish)?;
    }
    let terminal = std::io::stdin().is_terminal();
    if arguments.workload.tty && arguments.interactive && !terminal {
        return Err(Failure::new(
            "standard input is not a terminal; leave -t out, or run from a terminal",
        ));
    }
    let opened = platform::open(&arguments.platform)?;
    let features = opened.backend.features();
    let kind = match arguments.layout.map(LayoutKind::from) {
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
    let prepared = workload::prepare(&arguments.workload)?;
    let config = prepared.config(kind);
    let options = Options {
        exinfo: features.exinfo,
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
            insecure: config
                .insecure
                .iter()
                .map(|&option| banner::insecure(option).0)
                .collect(),
        },
        &config.insecure,
        style,
    );

    let shown = prepared.rootfs.display();
    let rootfs = File::open(&prepared.rootfs)
        .map_err(|error| Failure::new(format!("cannot open {shown}: {error}")))?;
    let mut launch = bulla_loader::Options::new(opened.backend);
    launch.quoter = Some(quoter::of_platform(
        platform_name,
        State::of_user().emulated_fuses(),
    ));
    launch.rootfs = Some(rootfs);
    launch.input = prepared.input.to_bytes();
    launch.stats = arguments.stats;
    let mut leftover = None;
    launch.terminal = arguments.workload.tty;
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
    launch.hostile = arguments.hostile_host;
    if !arguments.interactive {
        // As with Docker: without -i there is nothing to read.
        let null = File::open("/dev/null")
            .map_err(|error| Failure::new(format!("cannot open /dev/null: {error}")))?;
        launch.standard[0] = match arguments.workload.tty {
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
    let finished = finished?;
    let code = finished.status.code();
    banner::end(code, finished.stats.as_ref(), style);
    Ok(code)
}

/// With the host's network a port cannot be mapped to another one, only named.
fn check_port(text: &str) -> Result<(), Failure> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let invalid = || {
        Failure::new(format!(
            "--publish {text:?} is not a port; write PORT or PORT:PORT, with /udp for UDP"
        ))
    };
    if !matches!(protocol, "tcp" | "udp") {
        return Err(invalid());
    }
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
        [] => Err(invalid()),
        _ => Ok(()),
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
