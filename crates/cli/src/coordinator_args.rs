//! The command line of the coordinator and of its clients.

use crate::args::Platform;
use clap::{Args, Subcommand};
use std::path::PathBuf;

pub const COORDINATOR_EXAMPLES: &str = "\
Examples:
  bulla coordinator --in-enclave --state ./state --name coordinator.bulla.svc --owner-certificate owner.pem
  bulla coordinator --in-enclave --identity --name coordinator.bulla.svc --owner-certificate owner.pem
  bulla coordinator --in-enclave --etcd 10.0.0.5:2379 --peer other-replica:4433
  bulla coordinator --insecure-outside-enclave --state ./state --freshness-anchor /other-disk/anchor";

/// How a coordinator is started.
#[derive(Debug, Args)]
pub struct CoordinatorArguments {
    /// Where the sealed state is kept
    #[arg(long, value_name = "DIR", default_value = "bulla-coordinator")]
    pub state: PathBuf,
    /// Where clients connect
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:4433")]
    pub client_address: String,
    /// Where marbles connect
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:2001")]
    pub mesh_address: String,
    /// Where Prometheus connects (plain HTTP)
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_address: Option<String>,
    /// A name or address of the coordinator, for its certificates (repeatable)
    #[arg(long = "name", value_name = "NAME", default_value = "localhost")]
    pub names: Vec<String>,
    /// A manifest to set at the first start
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Only the holder of this certificate may set a manifest
    #[arg(long, value_name = "PEM")]
    pub owner_certificate: Option<PathBuf>,
    /// Only who knows the token with this SHA-256 may set a manifest
    #[arg(long, value_name = "HEX")]
    pub owner_token_sha256: Option<String>,
    /// A file on another disk that remembers how new the state is; with --in-enclave and a store that
    /// replicas share, a directory for a protected volume
    #[arg(long, value_name = "FILE")]
    pub freshness_anchor: Option<PathBuf>,
    /// Keep the state in etcd instead, with other replicas: HOST:PORT of a member (repeatable)
    #[arg(long, value_name = "ADDRESS")]
    pub etcd: Vec<String>,
    /// What the keys in etcd begin with
    #[arg(long, value_name = "PREFIX", default_value = "/bulla")]
    pub etcd_prefix: String,
    /// Keep the state in Secrets of the Kubernetes API instead, with other replicas
    #[arg(long, conflicts_with = "etcd")]
    pub kubernetes: bool,
    /// The API's address [default: that of the cluster that this pod runs in]
    #[arg(long, value_name = "URL", requires = "kubernetes")]
    pub kubernetes_api: Option<String>,
    /// The namespace of the Secrets [default: this pod's]
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    pub kubernetes_namespace: Option<String>,
    /// A file with a bearer token for the API [default: this pod's]
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    pub kubernetes_token: Option<PathBuf>,
    /// What the Secrets' names begin with
    #[arg(long, value_name = "PREFIX", default_value = "bulla")]
    pub kubernetes_prefix: String,
    /// Whom to believe who etcd or the API is: certificates in PEM
    #[arg(long, value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
    /// Who this is to etcd or the API: a certificate and its key in PEM
    #[arg(long, value_name = "FILE", requires = "store_key")]
    pub store_cert: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "store_cert")]
    pub store_key: Option<PathBuf>,
    /// This replica's own name, the same at each start [default: the host name; with --in-enclave a name
    /// that is the CPU's own and not measured]
    #[arg(long, value_name = "NAME")]
    pub replica: Option<String>,
    /// Client API of another replica, which has the key of the state (repeatable)
    #[arg(long = "peer", value_name = "ADDRESS")]
    pub peers: Vec<String>,
    /// Collateral for marbles' quotes: a JSON file, or a directory of them
    #[arg(long, value_name = "PATH")]
    pub collateral: Option<PathBuf>,
    /// Write the log as lines of JSON
    #[arg(long)]
    pub log_json: bool,
    /// Run in an enclave of this machine; the state is then in a protected volume in the directory
    #[arg(long, conflicts_with = "insecure_outside_enclave")]
    pub in_enclave: bool,
    /// With --in-enclave: print what clients and marbles may expect (for --coordinator-identity)
    #[arg(long, requires = "in_enclave")]
    pub identity: bool,
    /// With --in-enclave: a key for the volume, 32 bytes in a file, so that other machines can open it
    /// (this one can too, but the state in it is sealed once more)
    #[arg(long, value_name = "FILE", requires = "in_enclave")]
    pub insecure_volume_key: Option<PathBuf>,
    /// With --in-enclave: which platform to use
    #[arg(long, value_enum, default_value_t = Platform::Auto)]
    pub platform: Platform,
    /// With --in-enclave: sign the enclave with this key (RSA, 3072 bits, exponent 3, PEM) instead of this
    /// machine's development key, so that replicas on other machines have the same MRSIGNER
    #[arg(long, value_name = "FILE", requires = "in_enclave")]
    pub sign_key: Option<PathBuf>,
    /// Run here, in the open: secrets are readable by this machine
    #[arg(long)]
    pub insecure_outside_enclave: bool,
}

impl CoordinatorArguments {
    /// Whether other replicas share the state.
    pub fn is_shared(&self) -> bool {
        self.kubernetes || !self.etcd.is_empty()
    }
}

/// How a coordinator is reached and trusted.
#[derive(Debug, Clone, Args)]
pub struct Contact {
    /// The coordinator's client API, HOST:PORT
    #[arg(value_name = "COORDINATOR")]
    pub address: String,
    /// What the coordinator must be: JSON with UniqueID, or SignerID, ProductID, SecurityVersion
    #[arg(long, value_name = "FILE")]
    pub coordinator_identity: Option<PathBuf>,
    /// The coordinator's root certificate, saved before
    #[arg(long, value_name = "PEM")]
    pub coordinator_cert: Option<PathBuf>,
    /// Collateral for the coordinator's quote (JSON)
    #[arg(long, value_name = "FILE")]
    pub collateral: Option<PathBuf>,
    /// Accept any coordinator without attestation
    #[arg(long)]
    pub insecure: bool,
    /// The namespace to talk about, instead of the default one
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Client certificate
    #[arg(long, value_name = "PEM")]
    pub cert: Option<PathBuf>,
    /// Its private key (PKCS#8)
    #[arg(long, value_name = "PEM")]
    pub key: Option<PathBuf>,
    /// The owner's token, in a file
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum ManifestCommand {
    /// Show the manifest that a coordinator works by
    Get {
        #[command(flatten)]
        contact: Contact,
        /// Print the signature too
        #[arg(long)]
        signature: bool,
    },
    /// Set a coordinator's first manifest; prints recovery secrets
    Set {
        /// The manifest, JSON
        file: PathBuf,
        #[command(flatten)]
        contact: Contact,
        /// Where recovery secrets go instead of standard output
        #[arg(long, value_name = "FILE")]
        recovery_file: Option<PathBuf>,
    },
    /// Check that a coordinator works by this manifest
    Verify {
        /// The manifest, or its SHA-256 in hex
        manifest: String,
        #[command(flatten)]
        contact: Contact,
    },
    /// Change the manifest: apply, acknowledge, cancel or show an update
    Update {
        #[command(subcommand)]
        command: UpdateCommand,
    },
    /// Show the update log
    Log {
        #[command(flatten)]
        contact: Contact,
    },
    /// Sign a manifest, so that whoever carries it need not be trusted; prints it in an envelope
    Sign {
        /// The manifest, or one that others have signed
        file: PathBuf,
        /// The signer's certificate, as the manifest in force (or the owner's) has it
        #[arg(long, value_name = "PEM")]
        cert: PathBuf,
        /// Its private key (PKCS#8)
        #[arg(long, value_name = "PEM")]
        key: PathBuf,
        /// The namespace it is for, instead of the default one
        #[arg(long, value_name = "NAME", default_value = "")]
        namespace: String,
    },
    /// Encrypt a manifest, signed or not, to a verified coordinator; prints the envelope
    Encrypt {
        file: PathBuf,
        #[command(flatten)]
        contact: Contact,
    },
}

#[derive(Debug, Subcommand)]
pub enum NamespaceCommand {
    /// Make a namespace, whose first manifest its owner sets
    Create {
        name: String,
        #[command(flatten)]
        contact: Contact,
        /// The owner's certificate
        #[arg(long, value_name = "PEM")]
        owner: PathBuf,
    },
    /// Delete a namespace and all that is kept for it
    Delete {
        name: String,
        #[command(flatten)]
        contact: Contact,
    },
    /// List the namespaces with the codes of their states
    List {
        #[command(flatten)]
        contact: Contact,
    },
}

#[derive(Debug, Subcommand)]
pub enum UpdateCommand {
    /// Start an update
    Apply {
        file: PathBuf,
        #[command(flatten)]
        contact: Contact,
    },
    /// Agree to the pending update
    Acknowledge {
        file: PathBuf,
        #[command(flatten)]
        contact: Contact,
    },
    /// Drop the pending update
    Cancel {
        #[command(flatten)]
        contact: Contact,
    },
    /// Show the pending update
    Get {
        #[command(flatten)]
        contact: Contact,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum CertificateKind {
    Root,
    Intermediate,
    Chain,
    /// The list of revoked certificates
    Crl,
}

#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Read secrets
    Get {
        #[command(flatten)]
        contact: Contact,
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Ask the boards that watch over secrets for leave to read them once
    Request {
        #[command(flatten)]
        contact: Contact,
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
        /// What the boards are told
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// List the requests that you made, or may agree to
    Requests {
        #[command(flatten)]
        contact: Contact,
    },
    /// Agree to a request of somebody else
    Agree {
        /// The request's id
        id: String,
        #[command(flatten)]
        contact: Contact,
    },
    /// Set user-defined secrets from a JSON file: {"NAME": {"Key": BASE64} or {"Cert", "Private"}}
    Set {
        file: PathBuf,
        #[command(flatten)]
        contact: Contact,
    },
}

#[derive(Debug, Args)]
pub struct RecoverArguments {
    /// The recovery secret as `manifest set` printed it (base64 or raw)
    pub secret: PathBuf,
    /// The RSA private key of the recovery key (PEM, PKCS#8)
    pub recovery_key: PathBuf,
    #[command(flatten)]
    pub contact: Contact,
}

#[derive(Debug, Args)]
pub struct RevokeArguments {
    #[command(flatten)]
    pub contact: Contact,
    /// A marble's UUID (repeatable)
    #[arg(long = "marble", value_name = "UUID")]
    pub marbles: Vec<String>,
    /// A package of the manifest (repeatable)
    #[arg(long = "package", value_name = "NAME")]
    pub packages: Vec<String>,
    /// A version of a package: its MRENCLAVE (repeatable)
    #[arg(long = "enclave", value_name = "MRENCLAVE")]
    pub enclaves: Vec<String>,
    /// A platform's provisioning id (repeatable)
    #[arg(long = "platform", value_name = "PPID")]
    pub platforms: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Print the audit log (JSON), to keep a copy
    Get {
        #[command(flatten)]
        contact: Contact,
    },
    /// Check that the log is whole and signed, and has only grown since an earlier copy
    Verify {
        #[command(flatten)]
        contact: Contact,
        /// A copy that `bulla audit get` printed before
        #[arg(long, value_name = "FILE")]
        earlier: Option<PathBuf>,
    },
    /// Check a copy of the log without the coordinator
    VerifyCopy {
        /// What `bulla audit get` printed
        file: PathBuf,
        /// The root certificate of the coordinator, or of the namespace
        #[arg(long, value_name = "PEM")]
        root: PathBuf,
        /// An earlier copy
        #[arg(long, value_name = "FILE")]
        earlier: Option<PathBuf>,
    },
}
