//! Activation: the coordinator verifies this enclave and gives the container its files, variables,
//! arguments and certificate.
//!
//! - [`wire`]: the call. [`trust`]: whether it was the right coordinator. [`revoked`]: which of the
//!   cluster's certificates were taken back.
//! - [`activate`] runs before the application, [`renew`] beside it, in a process of its own.
//!
//! A renewal is an activation whose TLS certificate is the marble's present one, so that the
//! coordinator knows the marble again. Nothing of an answer is used before the coordinator is known to
//! be the one that the manifest means.

mod image_key;
mod revoked;
mod trust;
mod wire;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bulla_agent::settings::{Coordinator, is_address, is_name};
use bulla_attest::ratls::alternative_names;
use bulla_attest::{Device, pem_certificates, sha256};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P384_SHA384};
use thiserror::Error;
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

use crate::files;
use trust::{Root, check};
use wire::{Identity, Parameters, Request};

/// Why there is no activation.
#[derive(Debug, Error)]
pub enum MarbleError {
    #[error("coordinator.marble is not set: name the marble there, or let EDG_MARBLE_TYPE in")]
    NoType,
    #[error("{name} from the host: {reason}")]
    Variable { name: &'static str, reason: String },
    #[error("the coordinator cannot be reached: {0}")]
    Unreachable(String),
    #[error("the coordinator is not ready: {0}")]
    NotReady(String),
    #[error("the coordinator refused: {message} (gRPC code {code})")]
    Refused { code: i32, message: String },
    #[error("this is not the coordinator that the manifest means: {0}")]
    Stranger(String),
    #[error("the coordinator's answer is broken: {0}")]
    Broken(String),
    #[error(
        "the coordinator gives no variable {name}, which environment.{variable} takes its value from"
    )]
    NoSecret { variable: String, name: String },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "the coordinator's file {} would be kept on the volume {}: files with secrets belong in memory; \
         give it another path",
        path.display(),
        volume.display()
    )]
    OnVolume { path: PathBuf, volume: PathBuf },
    #[error(
        "the coordinator gives no variable {0} with the image's key: 64 hexadecimal digits, as \
         {{{{ hex .Secrets.NAME }}}} writes a secret of 32 bytes"
    )]
    NoImageKey(String),
    #[error("the image cannot be opened with the coordinator's key: {0}")]
    ImageKey(io::Error),
    #[error("no quote can be had: {0}")]
    Quote(io::Error),
    #[error("the key or request cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("{0}")]
    Start(io::Error),
}

/// As sysexits.h has them: EX_UNAVAILABLE, EX_PROTOCOL, EX_NOPERM.
const UNAVAILABLE: u8 = 69;
const STRANGER: u8 = 76;
const REFUSED: u8 = 77;
/// What else goes wrong before the application.
const OURS: u8 = 125;

impl MarbleError {
    /// How the container ends.
    pub fn exit_code(&self) -> u8 {
        match self {
            MarbleError::Unreachable(_) | MarbleError::NotReady(_) => UNAVAILABLE,
            MarbleError::Stranger(_) | MarbleError::Broken(_) => STRANGER,
            MarbleError::Refused { .. } => REFUSED,
            _ => OURS,
        }
    }

    /// Whether it may be another in a moment.
    fn is_passing(&self) -> bool {
        matches!(self, MarbleError::Unreachable(_) | MarbleError::NotReady(_))
    }
}

/// In the environment of the helper that renews: the marble's UUID.
pub const UUID: &str = "BULLA_AGENT_MARBLE_UUID";

/// Between attempts to reach the coordinator at the start.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause after a renewal that failed.
const RETRY: Duration = Duration::from_secs(60);

const ROOT_CA: &str = "MARBLE_PREDEFINED_ROOT_CA";
const CHAIN: &str = "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN";
const KEY: &str = "MARBLE_PREDEFINED_PRIVATE_KEY";
const COORDINATOR_ROOT: &str = "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA";

/// What an activation leaves for the application.
pub struct Activated {
    pub uuid: Uuid,
    pub env: BTreeMap<String, OsString>,
    /// Empty: as the manifest says.
    pub argv: Vec<String>,
}

/// Activates, waiting for the coordinator as long as the settings say.
pub fn activate(settings: &Coordinator) -> Result<Activated, MarbleError> {
    let request = Wish::new(settings)?;
    if settings.insecure_any {
        eprintln!("bulla-agent: INSECURE: any coordinator is accepted, unverified");
    }
    let uuid = uuid_of(settings)?;
    let end = Instant::now() + Duration::from_secs(settings.wait_seconds.into());
    let mut is_told = false;
    let mut done = loop {
        match once(settings, &request, uuid, None) {
            Err(error) if error.is_passing() && Instant::now() < end => {
                if !is_told {
                    eprintln!("bulla-agent: {error}; trying again");
                    is_told = true;
                }
                std::thread::sleep(PAUSE);
            }
            other => break other?,
        }
    };
    if let Some(path) = &settings.uuid_file {
        let put = || {
            files::directory(path.parent().unwrap_or(path), 0o700)?;
            files::put(path, uuid.to_string().as_bytes(), 0o600)
        };
        put().map_err(file_error(path))?;
    }
    let mut env: BTreeMap<String, OsString> = std::mem::take(&mut done.parameters.env)
        .into_iter()
        .map(|(name, value)| (name, OsString::from_vec(value)))
        .collect();
    for (variable, name) in &settings.secrets {
        let value = env.get(name).cloned();
        let value = value.ok_or_else(|| MarbleError::NoSecret {
            variable: variable.clone(),
            name: name.clone(),
        })?;
        env.insert(variable.clone(), value);
    }
    if settings.image_key.is_some() && std::env::var_os("HOME").is_none() {
        env.entry("HOME".into())
            .or_insert_with(|| image_key::home().into());
    }
    Ok(Activated {
        uuid,
        env,
        argv: std::mem::take(&mut done.parameters.argv),
    })
}

/// Renews for ever.
pub fn renew(settings: &Coordinator, uuid: Uuid) {
    let wish = match Wish::new(settings) {
        Ok(wish) => wish,
        Err(error) => return eprintln!("bulla-agent: no renewal of the certificate: {error}"),
    };
    let (news, wake) = mpsc::channel();
    std::thread::scope(|scope| {
        if let Some(every) = crl_period(settings) {
            let (wish, news) = (&wish, news.clone());
            scope.spawn(move || revoked::follow(settings, wish, every, &news));
        }
        renew_certificate(settings, &wish, uuid, &wake);
        // While it is there, nobody else can end the channel.
        drop(news);
    });
}

fn renew_certificate(settings: &Coordinator, wish: &Wish, uuid: Uuid, wake: &mpsc::Receiver<()>) {
    let mut period = match present(settings).map(|identity| period(settings, &identity.certificate))
    {
        Ok(period) => period,
        Err(error) => return eprintln!("bulla-agent: no renewal of the certificate: {error}"),
    };
    let mut pause = period;
    loop {
        // In its time, or when certificates have another issuer.
        let _ = wake.recv_timeout(pause);
        let renewed =
            present(settings).and_then(|identity| once(settings, wish, uuid, Some(identity)));
        while wake.try_recv().is_ok() {}
        pause = match renewed {
            Ok(done) => {
                period = self::period(settings, &done.leaf);
                tell(settings, &done.parameters);
                period
            }
            Err(error) => {
                eprintln!("bulla-agent: the marble's certificate cannot be renewed: {error}");
                RETRY.min(period / 16).max(Duration::from_millis(200))
            }
        };
    }
}

/// How often revocation lists are looked for, if they are.
fn crl_period(settings: &Coordinator) -> Option<Duration> {
    let seconds = settings.crl_seconds?;
    Some(Duration::from_secs(seconds.into()))
}

/// After two thirds of the certificate's life, or sooner if the settings say so.
fn period(settings: &Coordinator, leaf: &[u8]) -> Duration {
    let most = settings
        .renew_seconds
        .map_or(Duration::MAX, |seconds| Duration::from_secs(seconds.into()));
    let now = UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
    let left = bulla_attest::Certificate::decode(leaf)
        .map_or(0, |leaf| leaf.not_after.saturating_sub(now));
    (Duration::from_secs(left) * 2 / 3).min(most)
}

/// What is asked for, from the settings and the variables that the manifest lets in.
struct Wish {
    address: String,
    marble_type: String,
    names: Vec<String>,
}

impl Wish {
    fn new(settings: &Coordinator) -> Result<Wish, MarbleError> {
        Wish::with(settings, |name| std::env::var(name).ok())
    }

    /// The host's variables are here only if the manifest lets them in; they are measured otherwise.
    fn with(
        settings: &Coordinator,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Wish, MarbleError> {
        const ADDRESS: &str = "EDG_MARBLE_COORDINATOR_ADDR";
        const NAMES: &str = "EDG_MARBLE_DNS_NAMES";
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let address = given(ADDRESS).unwrap_or_else(|| settings.address.clone());
        if !is_address(&address) {
            return Err(MarbleError::Variable {
                name: ADDRESS,
                reason: format!("{address:?} is not HOST:PORT"),
            });
        }
        let names: Vec<String> = match given(NAMES) {
            Some(names) => names.split(',').map(|name| name.trim().into()).collect(),
            None => settings.names.clone(),
        };
        if let Some(name) = names.iter().find(|name| !is_name(name)) {
            return Err(MarbleError::Variable {
                name: NAMES,
                reason: format!("{name:?} is no DNS name or address"),
            });
        }
        let marble_type = given("EDG_MARBLE_TYPE")
            .or_else(|| settings.marble.clone())
            .ok_or(MarbleError::NoType)?;
        Ok(Wish {
            address,
            marble_type,
            names,
        })
    }
}

/// The marble's own name: kept in a file, or a new one for each start.
fn uuid_of(settings: &Coordinator) -> Result<Uuid, MarbleError> {
    let given = std::env::var_os("EDG_MARBLE_UUID_FILE").map(PathBuf::from);
    let Some(path) = settings.uuid_file.clone().or(given) else {
        return Ok(Uuid::new_v4());
    };
    match fs::read_to_string(&path) {
        Ok(text) => Uuid::parse_str(text.trim()).map_err(|error| MarbleError::File {
            source: io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
            path,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Uuid::new_v4()),
        Err(source) => Err(MarbleError::File { path, source }),
    }
}

struct Done {
    parameters: Parameters,
    /// DER.
    leaf: Vec<u8>,
}

impl Drop for Done {
    fn drop(&mut self) {
        self.parameters
            .files
            .values_mut()
            .for_each(Zeroize::zeroize);
        self.parameters.env.values_mut().for_each(Zeroize::zeroize);
    }
}

/// One activation: the files are in their places afterwards.
fn once(
    settings: &Coordinator,
    wish: &Wish,
    uuid: Uuid,
    present: Option<Identity>,
) -> Result<Done, MarbleError> {
    let trusted: Root = trust::root(settings, &wish.address)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "bulla marble");
    let is_renewal = present.is_some();
    let identity = match present {
        Some(identity) => identity,
        None => Identity {
            certificate: params.clone().self_signed(&key)?.der().to_vec(),
            key: Zeroizing::new(key.serialize_der()),
        },
    };
    params.subject_alt_names = alternative_names(&wish.names)?;
    let request = Request {
        quote: quote(&identity.certificate).map_err(MarbleError::Quote)?,
        csr: params.serialize_request(&key)?.der().to_vec(),
        marble_type: wish.marble_type.clone(),
        uuid: uuid.to_string(),
    };
    // First: what fails after an activation would have cost one of the marble's budget.
    let lists = match settings.crl_seconds {
        Some(_) => {
            let path = revoked::path(&wish.marble_type);
            Some(wire::lists(&wish.address, &identity, &path)?)
        }
        None => None,
    };
    let (parameters, server) = wire::activate(&wish.address, &identity, &request)?;
    let mut done = Done {
        parameters,
        leaf: Vec::new(),
    };
    let chain = check(
        &trusted,
        text(&done.parameters, CHAIN)?,
        text(&done.parameters, COORDINATOR_ROOT)?,
        &server,
    )?;
    done.leaf = chain;
    if let Some(name) = &settings.image_key {
        // No program needs it.
        let key = done.parameters.env.remove(name).map(Zeroizing::new);
        if !is_renewal {
            image_key::give(name, key.as_ref().map(|key| &key[..]))?;
        }
    }
    if let Some(lists) = lists {
        let root = pem_certificates(text(&done.parameters, COORDINATOR_ROOT)?).unwrap_or_default();
        let root = root.into_iter().next().unwrap_or_default();
        revoked::understood(&lists, &root)?.put(settings)?;
        if is_renewal {
            wait_for_peers(settings, text(&done.parameters, CHAIN)?);
        }
    }
    lay_out(settings, &done.parameters)?;
    Ok(done)
}

/// A certificate of a new issuer is shown only when peers have had the time to load its list: who has
/// none refuses.
fn wait_for_peers(settings: &Coordinator, chain: &str) {
    let issuer = |text: &str| pem_certificates(text)?.into_iter().nth(1);
    let shown = fs::read_to_string(settings.directory.join("tls.crt")).unwrap_or_default();
    if issuer(&shown) != issuer(chain) {
        std::thread::sleep(crl_period(settings).unwrap_or_default() * 2);
    }
}

fn text<'a>(parameters: &'a Parameters, name: &str) -> Result<&'a str, MarbleError> {
    parameters
        .env
        .get(name)
        .and_then(|value| std::str::from_utf8(value).ok())
        .ok_or_else(|| MarbleError::Broken(format!("it has no {name}")))
}

/// The quote over a certificate, in the form that marbles send: a header of 16 bytes (version 1, type
/// 2, length) before it.
fn quote(certificate: &[u8]) -> io::Result<Vec<u8>> {
    let device = Device::new();
    let mut report_data = [0; 64];
    report_data[..32].copy_from_slice(&sha256(&[certificate]));
    let quote = device.quote(&report_data)?;
    device.forget()?;
    let mut out = Vec::with_capacity(16 + quote.len());
    out.extend(1u32.to_le_bytes());
    out.extend(2u32.to_le_bytes());
    out.extend((quote.len() as u64).to_le_bytes());
    out.extend(quote);
    Ok(out)
}

/// Puts the files of an activation where they belong. The key comes first, and `tls.pem` has both.
fn lay_out(settings: &Coordinator, parameters: &Parameters) -> Result<(), MarbleError> {
    let place = &settings.directory;
    let (chain, key) = (text(parameters, CHAIN)?, text(parameters, KEY)?);
    let root = text(parameters, COORDINATOR_ROOT)?;
    let marble_root = text(parameters, ROOT_CA)?;
    let both = Zeroizing::new([key, chain].concat());
    let trusted = [root, marble_root].concat();
    let own: [(&str, &str, u32); 5] = [
        ("tls.key", key, 0o600),
        ("tls.crt", chain, 0o644),
        ("tls.pem", &both, 0o600),
        ("ca.crt", &trusted, 0o644),
        ("marble-root.crt", marble_root, 0o644),
    ];
    let paths = parameters.files.keys().map(Path::new);
    for path in paths.chain([place.as_path()]) {
        if let Some(volume) = files::volume_of(path).map_err(file_error(path))? {
            let path = path.to_owned();
            return Err(MarbleError::OnVolume { path, volume });
        }
    }
    files::directory(place, 0o755).map_err(file_error(place))?;
    for (name, content, mode) in own {
        let path = place.join(name);
        files::put(&path, content.as_bytes(), mode).map_err(file_error(&path))?;
    }
    for (path, content) in &parameters.files {
        let path = Path::new(path);
        let write = || {
            if let Some(parent) = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
            {
                files::directory(parent, 0o700)?;
            }
            files::put(path, content, 0o600)
        };
        write().map_err(file_error(path))?;
    }
    Ok(())
}

/// The certificate and key that are in use.
fn present(settings: &Coordinator) -> Result<Identity, MarbleError> {
    let path = settings.directory.join("tls.pem");
    let text = fs::read_to_string(&path).map_err(file_error(&path))?;
    let text = Zeroizing::new(text);
    let unusable = || MarbleError::File {
        source: io::Error::new(io::ErrorKind::InvalidData, "no certificate and key"),
        path: path.clone(),
    };
    let blocks = pem::parse_many(text.as_bytes()).map_err(|_| unusable())?;
    let key = blocks
        .into_iter()
        .find(|block| block.tag() == "PRIVATE KEY");
    let leaf = pem_certificates(&text)
        .unwrap_or_default()
        .into_iter()
        .next();
    Ok(Identity {
        certificate: leaf.ok_or_else(unusable)?,
        key: Zeroizing::new(key.ok_or_else(unusable)?.into_contents()),
    })
}

/// Tells the application that there are new files.
fn tell(settings: &Coordinator, parameters: &Parameters) {
    crate::tls::notify(settings.reload_signal);
    let Some((program, arguments)) = settings.reload_command.split_first() else {
        return;
    };
    let ended = Command::new(program)
        .args(arguments)
        .envs(
            parameters
                .env
                .iter()
                .map(|(name, value)| (name, OsStr::from_bytes(value))),
        )
        .env_remove(UUID)
        .env_remove(crate::RENEWER)
        .stdin(Stdio::null())
        .status();
    match ended {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("bulla-agent: coordinator.reload_command: {program}: {status}"),
        Err(error) => eprintln!("bulla-agent: coordinator.reload_command: {program}: {error}"),
    }
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> MarbleError {
    let path = path.to_owned();
    move |source| MarbleError::File {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_before_settings() {
        let settings = Coordinator {
            marble: Some("web".into()),
            ..Coordinator::default()
        };
        let wish = Wish::with(&settings, |_| None).unwrap();
        assert_eq!(
            (&wish.address[..], &wish.marble_type[..]),
            ("localhost:2001", "web")
        );
        assert_eq!(wish.names, ["localhost"]);
        let wish = Wish::with(&settings, |name| {
            Some(match name {
                "EDG_MARBLE_TYPE" => "db".into(),
                "EDG_MARBLE_COORDINATOR_ADDR" => "coordinator:2002".into(),
                "EDG_MARBLE_DNS_NAMES" => "db, 10.0.0.7".into(),
                _ => return None,
            })
        })
        .unwrap();
        assert_eq!(
            (&wish.address[..], &wish.marble_type[..]),
            ("coordinator:2002", "db")
        );
        assert_eq!(wish.names, ["db", "10.0.0.7"]);
        let none = Coordinator::default();
        assert!(matches!(
            Wish::with(&none, |_| None),
            Err(MarbleError::NoType)
        ));
        for (variable, value) in [
            ("EDG_MARBLE_COORDINATOR_ADDR", "https://x"),
            ("EDG_MARBLE_DNS_NAMES", "a,,b"),
        ] {
            let given = |name: &str| (name == variable).then(|| value.to_owned());
            assert!(matches!(
                Wish::with(&settings, given),
                Err(MarbleError::Variable { .. })
            ));
        }
    }

    #[test]
    fn exit_codes_say_who_is_to_act() {
        let refused = MarbleError::Refused {
            code: 7,
            message: String::new(),
        };
        assert_eq!(refused.exit_code(), 77);
        assert_eq!(MarbleError::NotReady(String::new()).exit_code(), 69);
        assert_eq!(MarbleError::Stranger(String::new()).exit_code(), 76);
        assert_eq!(MarbleError::NoType.exit_code(), 125);
    }
}
