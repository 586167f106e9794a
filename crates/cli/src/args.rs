//! The command line, as clap understands it.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Run unmodified container images in SGX enclaves.
///
/// On a machine without SGX the enclave is emulated: the same enclave image and the same
/// MRENCLAVE, but no secrecy.
#[derive(Debug, Parser)]
#[command(name = "bulla", version, disable_help_subcommand = true, after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  bulla doctor                                 what this machine offers
  bulla run python.tar -c 'print(1)'           an image saved with `docker save`
  bulla run --rootfs ./root /bin/sh -c 'ls /'  a plain directory
  bulla measure redis.tar                      the MRENCLAVE that `run` will report

Manual: docs/manual/README.md";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a container image, or a program from a directory, in an enclave
    #[command(
        after_help = RUN_EXAMPLES,
        override_usage = "bulla run [OPTIONS] IMAGE [ARGS]...\n       \
            bulla run [OPTIONS] --rootfs DIR PROGRAM [ARGS]..."
    )]
    Run(Box<RunArguments>),
    /// Convert an image into a confidential image
    Build(Box<crate::build::Arguments>),
    /// Sign a confidential image again
    Sign(Box<crate::sign::Arguments>),
    /// Say why two confidential images have different measurements
    Diff(crate::diff::Arguments),
    /// Say what will work of an image, before it is converted
    Check(crate::check::Arguments),
    /// List containers
    Ps(crate::containers::PsArguments),
    /// Print the output of a container that was started with -d
    Logs(crate::containers::LogsArguments),
    /// Stop containers: the image's stop signal, then SIGKILL
    Stop(crate::containers::StopArguments),
    /// Send a signal to containers
    Kill(crate::containers::KillArguments),
    /// Remove containers that have ended
    Rm(crate::containers::RmArguments),
    /// Wait for the end of a container and print its exit code
    Wait(crate::containers::WaitArguments),
    /// Fetch an image from a registry
    Pull(crate::registry::PullArguments),
    /// Push an image of this machine to a registry
    Push(crate::registry::PushArguments),
    /// List the images of this machine
    Images(crate::registry::ImagesArguments),
    /// The entry point of confidential images, inside their containers
    Start(Box<crate::start::Arguments>),
    /// Predict the identity (MRENCLAVE, MRSIGNER) of what `run` would start
    #[command(
        after_help = MEASURE_EXAMPLES,
        override_usage = "bulla measure [OPTIONS] IMAGE [ARGS]...\n       \
            bulla measure [OPTIONS] --rootfs DIR PROGRAM [ARGS]..."
    )]
    Measure(Box<MeasureArguments>),
    /// Manifests (bulla.toml): write one for an image, check one, look keys up
    #[command(subcommand)]
    Manifest(crate::manifest::Arguments),
    /// Show what an image says about itself
    Inspect(InspectArguments),
    /// Say which platform this machine offers, and why
    Doctor(DoctorArguments),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  bulla completions bash > /etc/bash_completion.d/bulla")]
    Completions { shell: clap_complete::Shell },
}

const RUN_EXAMPLES: &str = "\
IMAGE is a name (redis:7), looked for on this machine and then at its registry; a file written by
`docker save`, `podman save` or `skopeo copy`, or an OCI layout directory, where PATH:TAG chooses one
of several images; docker-daemon:NAME or containers-storage:NAME. Options after IMAGE belong to the program.

The exit code is the program's; 125 when bulla itself failed, 126 when the entry point cannot be
executed, 127 when it does not exist, 128+n after signal n.

Examples:
  docker save redis:7 -o redis.tar && bulla run -p 6379 redis.tar
  bulla run -it debian.tar bash
  bulla run --platform emulated --stats python.tar -c 'print(1)'
  bulla run -e LOG=debug -w /srv --user app --rootfs ./root ./server --port 8080";

const MEASURE_EXAMPLES: &str = "\
Takes the options of `bulla run`: what is measured includes the files, arguments, environment, user,
working directory and limits. Needs no SGX.

Examples:
  bulla measure redis.tar
  bulla measure --json --layout dynamic -e LOG=debug python.tar app.py";

/// What is to run, and everything about it that is measured.
#[derive(Debug, Args)]
pub struct Workload {
    /// The image (or, with --rootfs, the program) and its arguments
    #[arg(
        value_name = "IMAGE [ARGS]",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub words: Vec<OsString>,

    /// Run a program from this directory instead of an image
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<PathBuf>,

    #[command(flatten)]
    pub registry: crate::registry::RegistryArguments,

    /// Manifest (bulla.toml) of the container; options then go where it lets them
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,

    /// Replace the image's entry point (and its default arguments)
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<OsString>,

    /// Set an environment variable; without a value, take it from this environment
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,

    /// Read environment variables from a file, one NAME=VALUE a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,

    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,

    /// User to run as: NAME, UID, NAME:GROUP or UID:GID
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,

    /// Connect the terminal
    #[arg(short, long)]
    pub tty: bool,

    /// A name for the container; also its host name unless --hostname is given
    #[arg(long)]
    pub name: Option<String>,

    /// Host name inside the container [default: the name, else "bulla"]
    #[arg(long)]
    pub hostname: Option<String>,

    /// Memory for the program, as 512M or 2G [default: 4G; 1G in the static layout]
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<String>,

    /// Most threads at once [default: 1024; 64 in the static layout]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,

    /// Use these name servers instead of the host's /etc/resolv.conf
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<std::net::IpAddr>,

    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,

    /// Print every system call (insecure: shows what the program does)
    #[arg(long)]
    pub strace: bool,

    /// Believe the host's word for the addresses of page faults where the CPU does not report them
    #[arg(long)]
    pub insecure_host_faults: bool,
}

#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    pub workload: Workload,

    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,

    /// Name a port that the program serves; the host's network is used, so both sides are equal
    #[arg(short, long = "publish", value_name = "PORT[:PORT]")]
    pub publish: Vec<String>,

    /// Network of the container; only the host's for now
    #[arg(long, value_name = "NETWORK", default_value = "host", value_parser = ["host"])]
    pub network: String,

    /// Keep nothing of a container that was started with -d or --name after its end
    #[arg(long)]
    pub rm: bool,

    /// Run in the background and print the container's id
    #[arg(short, long)]
    pub detach: bool,

    /// For `-d`: be the container of this id
    #[arg(long, hide = true, value_name = "ID")]
    pub container_id: Option<String>,

    #[command(flatten)]
    pub platform: PlatformArguments,

    /// Enclave layout; dynamic needs EDMM (Linux 6.0 on a CPU with SGX2) [default: what works]
    #[arg(long, value_enum)]
    pub layout: Option<Layout>,

    /// Print counters at the end: entries, exits, host calls, pages, start-up phases
    #[arg(long)]
    pub stats: bool,

    /// For tests: answer the enclave's host calls as a hostile host would, with this seed
    #[arg(long, hide = true, value_name = "SEED")]
    pub hostile_host: Option<u64>,

    /// bulla's own messages as JSON lines on standard error
    #[arg(long)]
    pub json: bool,

    /// No messages of bulla's but errors and warnings about insecure options
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct PlatformArguments {
    /// Which platform to use
    #[arg(long, value_enum, default_value_t = Platform::Auto)]
    pub platform: Platform,

    /// Which machine the emulated platform imitates
    #[arg(long, value_name = "NAME", help = PROFILE_HELP)]
    pub profile: Option<String>,
}

const PROFILE_HELP: &str = "Machine that the emulated platform imitates: dcsv2, dcsv3-5.15, \
    dcsv3-6.8 or full";

#[derive(Debug, Args)]
pub struct MeasureArguments {
    #[command(flatten)]
    pub workload: Workload,

    /// Measure one layout only
    #[arg(long, value_enum)]
    pub layout: Option<Layout>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The image
    pub image: OsString,

    #[command(flatten)]
    pub registry: crate::registry::RegistryArguments,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Platform {
    /// Hardware where it is there, else emulated
    Auto,
    /// SGX; an error where there is none
    Hardware,
    /// The emulator, even where there is SGX
    Emulated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// Memory and threads are added while the enclave runs (needs EDMM)
    Dynamic,
    /// Everything is there from the start
    Static,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_after_the_image_are_the_programs() {
        let words = ["bulla", "run", "-e", "A=b", "x.tar", "-e", "c", "--json"];
        let arguments = Arguments::try_parse_from(words).unwrap();
        let Command::Run(run) = arguments.command else {
            panic!("not run");
        };
        assert_eq!(run.workload.words, ["x.tar", "-e", "c", "--json"]);
        assert_eq!(run.workload.env, ["A=b"]);
        assert!(!run.json);
    }
}
