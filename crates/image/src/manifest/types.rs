//! The keys of the manifest.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The manifest of a confidential container. Every key is optional; without a manifest the image's
/// own configuration holds and is locked.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "bulla.toml")]
pub struct Manifest {
    /// The program to start and its first arguments; replaces the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    /// User to run as: NAME, UID, NAME:GROUP or UID:GID; replaces the image's.
    pub user: Option<String>,
    /// Working directory; replaces the image's.
    pub workdir: Option<String>,
    /// Signal that asks the container to stop, as SIGTERM or 15; replaces the image's.
    pub stop_signal: Option<String>,
    /// Product id (ISVPRODID): tells enclaves of one signer apart.
    pub product_id: u16,
    /// Security version (ISVSVN): raise it when a version must no longer be trusted.
    pub security_version: u16,
    /// Memory for the programs, as 512M or 2G. Default: 4G in the dynamic layout, 1G in the
    /// static one, where all of it is added before the start.
    pub memory: Option<String>,
    /// Most threads at once. Default: 1024 in the dynamic layout, 64 in the static one.
    #[schemars(range(min = 1, max = 4096))]
    pub threads: Option<u32>,
    /// Insecure: a debug enclave, whose memory the host can read.
    pub insecure_debug: bool,
    /// Insecure: prints every system call on the host's standard error.
    pub insecure_strace: bool,
    /// Insecure: lists at the end which system calls and options were refused, and how often.
    pub insecure_report: bool,
    /// Insecure: waits for gdb before the program runs; for emulated platforms only.
    pub insecure_debugger: bool,
    /// Insecure: believes the host's word for the addresses of page faults, on CPUs that do not
    /// report them to the enclave.
    pub insecure_host_faults: bool,
    /// Insecure: lets the host start further programs in the running container (`bulla exec`).
    /// They see everything that the container's own programs see.
    pub insecure_exec: bool,
    /// Arguments of the program.
    pub arguments: Arguments,
    /// Environment variables, by name: a text fixes one; `{ host = true }` lets the host set it;
    /// `{ secret = "NAME" }` takes it from the coordinator; `false` removes the image's.
    pub environment: BTreeMap<String, Variable>,
    /// Host name, name servers and /etc/hosts.
    pub network: Network,
    /// What the CPU must offer.
    pub cpu: Cpu,
    /// File systems over directories of the image.
    pub mounts: Vec<Mount>,
    /// Attestation; see the manual's page about it.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub attestation: Option<toml::Table>,
    /// The coordinator that the container proves itself to before its program starts, and that
    /// gives it files, variables, arguments, and a certificate; see the manual's page about it.
    pub coordinator: Option<Coordinator>,
}

/// The coordinator that the container proves itself to before its program starts.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Coordinator {
    /// Where marbles connect, HOST:PORT. EDG_MARBLE_COORDINATOR_ADDR comes before it, where
    /// `environment` lets the host set that.
    pub address: String,
    /// The container's marble in the coordinator's manifest; in a namespace, NAMESPACE/MARBLE.
    /// EDG_MARBLE_TYPE comes before it, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marble: Option<String>,
    /// DNS names and addresses to ask for in the certificate. EDG_MARBLE_DNS_NAMES (with commas)
    /// comes before it, likewise.
    pub names: Vec<String>,
    /// Trust the coordinator whose root certificate (DER) has this SHA-256. One of this, `policy`
    /// and `insecure_any` must be given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_sha256: Option<String>,
    /// Where clients of the coordinator connect, to get its quote for `policy`, HOST:PORT. Default:
    /// port 4433 of the host in `address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_address: Option<String>,
    /// Insecure: trust any coordinator, which then decides about files, variables and arguments.
    pub insecure_any: bool,
    /// Where `tls.crt` (with its intermediate), `tls.key`, `tls.pem` (both), `ca.crt` (what to trust
    /// in peers) and `marble-root.crt` (their present issuer alone) go: memory of the enclave.
    pub directory: String,
    /// A file that keeps the marble's UUID, and so its private secrets, on a volume. Default: a new
    /// one at each start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid_file: Option<String>,
    /// Most seconds until certificate and files are renewed. Default: two thirds of the
    /// certificate's life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew_seconds: Option<u32>,
    /// Look for revocation lists this often, at most 240 seconds: `crl.pem` in `directory`, for the
    /// program to check its peers' certificates by. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crl_seconds: Option<u32>,
    /// Signal for the program after a renewal, or when there is a new revocation list, by number; 0 for
    /// none.
    pub reload_signal: i32,
    /// Command to run after a renewal, or when there is a new revocation list, with the coordinator's
    /// variables in its environment.
    pub reload_command: Vec<String>,
    /// How long to go on trying at the start while the coordinator cannot be reached or has no
    /// manifest. A refusal ends the container at once.
    pub wait_seconds: u32,
    /// The variable (of the coordinator's manifest) that holds the key of an image built with
    /// `--encrypt`, as 64 hexadecimal digits: without it nothing of the image can be read. The program
    /// does not get it. Default: the key comes from a file of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_key: Option<String>,
    /// Trust a coordinator whose quote satisfies this policy, written as for `bulla verify
    /// --policy`.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<toml::Table>,
}

impl Default for Coordinator {
    fn default() -> Self {
        Coordinator {
            address: "localhost:2001".into(),
            marble: None,
            names: vec!["localhost".into()],
            root_sha256: None,
            client_address: None,
            insecure_any: false,
            directory: "/dev/shm/bulla-marble".into(),
            uuid_file: None,
            renew_seconds: None,
            crl_seconds: None,
            reload_signal: 0,
            reload_command: Vec::new(),
            wait_seconds: 60,
            image_key: None,
            policy: None,
        }
    }
}

/// Arguments of the program.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Arguments {
    /// Whether the host may give arguments: `locked` (no), `append` (behind the fixed ones) or
    /// `host` (instead of them; they hold when it gives none).
    pub mode: ArgumentMode,
    /// Arguments behind the entry point; replaces the image's command.
    pub fixed: Option<Vec<String>>,
    /// What each argument of the host must match: `*` any text, `?` a character, `[a-z]` a set,
    /// anything else itself. Default: any.
    pub patterns: Option<Vec<String>>,
}

/// Who decides about arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ArgumentMode {
    #[default]
    Locked,
    Append,
    Host,
}

/// An environment variable.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Variable {
    /// This value.
    Fixed(String),
    /// `false`: not set, whatever the image says.
    Set(bool),
    /// Where the value comes from.
    From(VariableSource),
}

/// Where the value of an environment variable comes from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VariableSource {
    /// The host may set it.
    pub host: bool,
    /// What the host's value must match; see `arguments.patterns`. Default: any.
    pub pattern: Option<String>,
    /// The value when the host gives none. Default: the image's.
    pub default: Option<String>,
    /// The container does not start unless the host gives it.
    pub required: bool,
    /// Name of the variable whose value it takes among those that the coordinator gives the marble
    /// (or of a secret of the host, with `insecure_host`); without it the container does not start.
    pub secret: Option<String>,
    /// Insecure: the host gives the secret, from a file (`bulla run --secret NAME=FILE`), and so
    /// knows it.
    pub insecure_host: bool,
}

/// Host name, name servers and /etc/hosts.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Host name inside the container.
    pub hostname: String,
    /// The host may choose another host name.
    pub hostname_from_host: bool,
    /// Where /etc/resolv.conf comes from: `host` (untrusted by nature: its syntax is checked),
    /// `fixed` (from `nameservers` and `search`) or `image` (the file in the image).
    pub resolver: Resolver,
    /// Name servers, with `resolver = "fixed"`.
    pub nameservers: Vec<std::net::IpAddr>,
    /// Search domains, with `resolver = "fixed"`.
    pub search: Vec<String>,
    /// Names with fixed addresses, for /etc/hosts: `db = "10.0.0.7"`.
    pub hosts: BTreeMap<String, std::net::IpAddr>,
}

impl Default for Network {
    fn default() -> Self {
        Network {
            hostname: "bulla".into(),
            hostname_from_host: false,
            resolver: Resolver::Host,
            nameservers: Vec::new(),
            search: Vec::new(),
            hosts: BTreeMap::new(),
        }
    }
}

/// Where /etc/resolv.conf comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Resolver {
    #[default]
    Host,
    Fixed,
    Image,
}

/// What the CPU must offer.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cpu {
    /// Features, as /proc/cpuinfo names them, without which the container does not start.
    pub features: Vec<String>,
}

/// A file system over a directory of the image.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Absolute path of the directory; made if the image has none.
    pub target: String,
    /// What is mounted: `tmpfs` (memory of the enclave, gone at the end), `volume` (a protected
    /// volume) or `insecure_passthrough` (a directory of the host, which sees and may change all
    /// of it).
    #[serde(rename = "type")]
    pub kind: MountType,
    /// Most bytes of a tmpfs, as 64M. Default: half of the container's memory.
    #[serde(default)]
    pub size: Option<String>,
    /// Mode of a tmpfs' root directory, octal.
    #[serde(default = "default_mode")]
    pub mode: String,
    /// Whether it cannot be written to.
    #[serde(default)]
    pub read_only: bool,
    /// Where the key of a protected volume comes from: `signer` (the CPU; containers of the same
    /// signer and product id, and no lower security version, can open it), `enclave` (the CPU; this
    /// very container only) or `insecure_host` (a file of the host, which then knows it). Default:
    /// `signer`.
    #[serde(default)]
    pub key: Option<VolumeKey>,
}

/// Where the key of a protected volume comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKey {
    #[default]
    Signer,
    Enclave,
    InsecureHost,
}

pub(super) fn default_mode() -> String {
    "1777".into()
}

/// Kinds of mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MountType {
    Tmpfs,
    Volume,
    InsecurePassthrough,
}
