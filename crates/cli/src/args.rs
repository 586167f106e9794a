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

/// [`Arguments`] with nothing but `run`.
#[derive(Debug, Parser)]
#[command(name = "bulla", version)]
pub enum RunAlone {
    Run(Box<RunArguments>),
}

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
    /// Run another program in a running container
    #[command(
        after_help = EXEC_EXAMPLES,
        override_usage = "bulla exec [OPTIONS] CONTAINER PROGRAM [ARGS]..."
    )]
    Exec(crate::exec::Arguments),
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
    /// Show what the cache takes on disk, and make it smaller
    #[command(subcommand)]
    Cache(crate::cache::Arguments),
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
    /// Run the coordinator: one manifest, secrets and certificates for a cluster
    #[command(after_help = crate::coordinator_args::COORDINATOR_EXAMPLES)]
    Coordinator(Box<crate::coordinator_args::CoordinatorArguments>),
    /// Show what a coordinator is ready for
    Status(crate::coordinator_args::Contact),
    /// Print a coordinator's certificates
    Certificate {
        kind: crate::coordinator_args::CertificateKind,
        #[command(flatten)]
        contact: crate::coordinator_args::Contact,
    },
    /// Read or set secrets of a coordinator
    #[command(subcommand)]
    Secret(crate::coordinator_args::SecretCommand),
    /// Make and list namespaces of a coordinator
    #[command(subcommand)]
    Namespace(crate::coordinator_args::NamespaceCommand),
    /// Take trust back from marbles, packages or platforms
    Revoke(crate::coordinator_args::RevokeArguments),
    /// Keep and check a coordinator's audit log
    #[command(subcommand)]
    Audit(crate::coordinator_args::AuditCommand),
    /// Turn a SCONE session, a Gramine or a MarbleRun manifest into ours
    #[command(after_help = crate::import::EXAMPLES)]
    Import(crate::import::ImportArguments),
    /// Give a coordinator a recovery secret
    Recover(crate::coordinator_args::RecoverArguments),
    /// Say which platform this machine offers, and why
    Doctor(DoctorArguments),
    /// Verify a quote, a certificate or a live endpoint against a policy
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(Box<VerifyArguments>),
    /// Relay plain connections over attested TLS
    #[command(after_help = PROXY_EXAMPLES)]
    Proxy(Box<ProxyArguments>),
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

const EXEC_EXAMPLES: &str = "\
The container's measured configuration must let the host do that: `insecure_exec = true` in the
manifest, or `bulla run --insecure-exec` without one. The program runs in the same enclave, beside
the others.

Examples:
  bulla exec web ls /srv
  bulla exec -it web sh
  bulla exec -u app -w /srv -e LOG=debug web ./script";

const MEASURE_EXAMPLES: &str = "\
Takes the options of `bulla run`: what is measured includes the files, arguments, environment, user,
working directory and limits. Needs no SGX.

Examples:
  bulla measure redis.tar
  bulla measure --json --layout dynamic -e LOG=debug python.tar app.py";

/// What is to run, and everything about it that is measured.
#[derive(Debug, Default, Args)]
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

    /// Sign the enclave with this key (RSA, 3072 bits, exponent 3, PEM) instead of this machine's
    /// development key, so that other machines give it the same MRSIGNER
    #[arg(long, value_name = "FILE")]
    pub sign_key: Option<PathBuf>,

    /// Replace the image's entry point (and its default arguments)
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<OsString>,

    /// Set an environment variable; without a value, take it from this environment
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,

    /// Read environment variables from a file, one NAME=VALUE a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,

    /// Keep a directory of the container in a protected volume: encrypted files in DIR, or under a
    /// name that bulla finds a place for. `:ro` mounts it read-only
    #[arg(short, long = "volume", value_name = "DIR|NAME:TARGET[:ro]")]
    pub volume: Vec<OsString>,

    /// The volumes' key, 32 bytes in a file, instead of the CPU's (insecure: this machine knows it)
    #[arg(long, value_name = "FILE")]
    pub insecure_volume_key: Option<PathBuf>,

    /// Use a directory of this machine as it is (insecure: this machine sees and may change all of
    /// it). Under a manifest with such a mount, says which directory
    #[arg(long, value_name = "DIR:TARGET[:ro]")]
    pub insecure_passthrough: Vec<OsString>,

    /// The value of a secret that the manifest takes from this machine (`insecure_host = true`)
    #[arg(long, value_name = "NAME=FILE")]
    pub secret: Vec<OsString>,

    /// Let this machine start further programs in the container (`bulla exec`; insecure: they see
    /// all that the container sees)
    #[arg(long)]
    pub insecure_exec: bool,

    /// The key of an encrypted image (`bulla build --encrypt`), 32 bytes
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,

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

    /// Print system calls as strace does, all or those named: --strace=open,read or --strace=%file
    /// or --strace='!read' (insecure: shows what the program does)
    #[arg(
        long,
        value_name = "CALLS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all",
        value_delimiter = ','
    )]
    pub strace: Vec<String>,

    /// With --strace: only these processes, by their id in the container or their program's name
    #[arg(long, value_name = "PROCESS", value_delimiter = ',')]
    pub strace_pid: Vec<String>,

    /// List at the end which system calls and options were refused, and how often (insecure)
    #[arg(long)]
    pub report: bool,

    /// Wait for gdb before the program runs, and give it symbols (insecure; emulated platform only)
    #[arg(long)]
    pub gdb: bool,

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

    /// For tests and comparisons: no system-call site is rewritten, so that each call traps
    #[arg(long, hide = true)]
    pub no_site_rewriting: bool,

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

    /// For tests: catch the emulated enclave's system calls as on kernels before 5.11
    #[arg(long, hide = true)]
    pub emulate_with_seccomp: bool,

    /// For tests: look at all registers at every exit of an emulated enclave (slow)
    #[arg(long, hide = true)]
    pub examine_exits: bool,
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

    /// Also write what is measured into a file, for `bulla verify --configuration`
    #[arg(long, value_name = "FILE")]
    pub configuration: Option<PathBuf>,

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

const VERIFY_EXAMPLES: &str = "\
SUBJECT is a file (a quote, or a certificate in PEM or DER), an address (https://HOST:PORT or
HOST:PORT), or a coordinator (coordinator://HOST:PORT).

The exit code is 0 for trusted, 1 for not trusted, 2 when the peer or the collateral cannot be
reached, 3 for bad input.

Examples:
  bulla verify https://db.example:6380 --policy policy.toml
  bulla verify quote.bin --collateral saved/ --policy policy.toml --json
  bulla verify cert.pem --policy policy.toml --bundle evidence/
  bulla verify --replay evidence/";

/// Where collateral comes from.
#[derive(Debug, Args)]
pub struct CollateralArguments {
    /// Saved collateral: a file, or a directory of them; nothing is fetched
    #[arg(long, value_name = "PATH", conflicts_with_all = ["pccs", "azure", "offline"])]
    pub collateral: Option<PathBuf>,

    /// Fetch from this PCCS instead of Intel's service
    #[arg(long, value_name = "URL", conflicts_with = "azure")]
    pub pccs: Option<String>,

    /// Fetch from Azure's cache (THIM)
    #[arg(long)]
    pub azure: bool,

    /// Fetch nothing: use what is cached, what the peer brings, or this machine's emulated platform
    #[arg(long)]
    pub offline: bool,

    /// Trust these certificates (PEM) as the service's, instead of this machine's authorities
    #[arg(long, value_name = "FILE", conflicts_with = "insecure_pccs_tls")]
    pub pccs_ca: Option<PathBuf>,

    /// Accept any TLS certificate of the PCCS (collateral is signed by itself)
    #[arg(long)]
    pub insecure_pccs_tls: bool,

    /// Seconds after which a peer or a service is given up, the look-up of its name included
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// What to verify
    #[arg(required_unless_present = "replay")]
    pub subject: Option<String>,

    /// Whom to trust; without one nobody is
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    #[command(flatten)]
    pub collateral: CollateralArguments,

    /// What the peer is said to run (from `bulla measure --configuration`), for rules about files
    #[arg(long, value_name = "FILE")]
    pub configuration: Option<PathBuf>,

    /// The image that the peer is said to run, for rules about images
    #[arg(long, value_name = "IMAGE", conflicts_with = "configuration")]
    pub image: Option<OsString>,

    /// The manifest (bulla.toml) that the image was started or built with
    #[arg(long, value_name = "FILE", requires = "image")]
    pub manifest: Option<PathBuf>,

    /// Judge as of this time (2027-01-31T00:00:00Z)
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,

    /// Write quote, collateral, policy and verdict into a directory
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,

    /// Judge a bundle again, offline, as of the time when it was written
    #[arg(long, value_name = "DIR", conflicts_with_all = ["subject", "policy", "bundle", "at", "configuration", "image"])]
    pub replay: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

const PROXY_EXAMPLES: &str = "\
A client proxy listens for plain connections and forwards each over TLS to a peer that the policy
trusts. A server proxy listens for TLS, shows a certificate with this enclave's quote, and forwards
plain connections; it runs inside an enclave (it needs /dev/attestation). With --policy a server
wants an attested client, and with --attest a client shows its own quote. Peers whose certificates a
coordinator issued are trusted by --authority and --crl instead.

Examples:
  bulla proxy client 127.0.0.1:6379 db.example:6380 --policy policy.toml
  bulla proxy client 127.0.0.1:6379 db.example:6380 --authority marble-root.pem --crl crl.pem
  bulla proxy server 0.0.0.0:6380 127.0.0.1:6379";

#[derive(Debug, Args)]
pub struct ProxyArguments {
    /// Which side of TLS this is
    #[arg(value_enum)]
    pub side: ProxySide,

    /// Address to listen at
    pub listen: String,

    /// Address to forward to
    pub forward: String,

    /// Whom to trust at the other end of TLS
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Trust instead whom this authority (PEM) has certified: a cluster's marble root
    #[arg(long, value_name = "FILE", conflicts_with = "policy", requires = "crl")]
    pub authority: Option<PathBuf>,

    /// The authority's revocation list (`bulla certificate crl`), read anew each half a minute
    #[arg(long, value_name = "FILE", requires = "authority")]
    pub crl: Option<PathBuf>,

    /// Show a certificate with this enclave's quote, as a client
    #[arg(long)]
    pub attest: bool,

    /// Also put the quote where Gramine's RA-TLS looks for it
    #[arg(long)]
    pub gramine: bool,

    /// DNS name or address for the certificate
    #[arg(long, value_name = "NAME")]
    pub name: Vec<String>,

    #[command(flatten)]
    pub collateral: CollateralArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProxySide {
    /// Plain in, TLS out
    Client,
    /// TLS in, plain out
    Server,
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
    fn run_alone_is_run() {
        for words in [
            "bulla run python.tar -c 1",
            "bulla run --stats -e A=1 -p 80 --rootfs dir /bin/sh -c --help",
            "bulla run -it --name x --memory 1G --platform emulated image",
        ] {
            let words = words.split(' ');
            let Command::Run(whole) = Arguments::parse_from(words.clone()).command else {
                panic!("another command");
            };
            let RunAlone::Run(alone) = RunAlone::parse_from(words);
            assert_eq!(format!("{alone:?}"), format!("{whole:?}"));
        }
        for words in ["bulla run", "bulla run --help"] {
            assert!(
                RunAlone::try_parse_from(words.split(' ')).is_err(),
                "{words}"
            );
        }
    }

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
