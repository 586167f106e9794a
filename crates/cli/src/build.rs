//! `bulla build`: from an image to a confidential image.

use crate::banner;
use crate::enclave::{self, Programs};
use crate::failure::Failure;
use crate::image_key;
use crate::keys::Signer;
use crate::settle::settle;
use crate::state::hex;
use crate::workload::{Draft, Source};
use bulla_abi::config::{Encryption, ImageKeySource, Insecure, Rootfs, VERSION};
use bulla_abi::layout::LayoutKind;
use bulla_image::manifest::Manifest;
use bulla_image::{Date, EnclaveImage, Options, SigStruct};
use bulla_oci::built::{self, About};
use bulla_oci::listing::Files;
use bulla_oci::output::{self, Content, Entry, LayerCompression, NewImage};
use bulla_oci::{Cache, Digest, ImageConfig, Store, Stored};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  bulla build redis.tar -t redis:7-sgx                      kept on this machine, for `bulla run`
  bulla build redis.tar -t redis:7-sgx -o redis-sgx.tar     an archive, for `podman load`
  bulla build redis:7 -t registry.example/me/redis:7-sgx --push --sign-key key.pem

Equal image, manifest and key give equal bytes. The date in the signature is that of the image, or
SOURCE_DATE_EPOCH.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The image to convert
    #[arg(required_unless_present = "rootfs")]
    pub image: Option<OsString>,

    /// Convert a plain directory instead of an image
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    pub rootfs: Option<PathBuf>,

    /// Name of the result
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub tag: String,

    /// Manifest (bulla.toml) of the container; without one the image's configuration is locked
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,

    /// Encrypt the image's files with this key (32 bytes in a file), which `bulla run --key-file`
    /// then needs
    #[arg(long, value_name = "KEYFILE")]
    pub encrypt: Option<PathBuf>,

    #[command(flatten)]
    pub key: crate::keys::KeyArguments,

    #[command(flatten)]
    pub output: OutputArguments,

    #[command(flatten)]
    pub registry: crate::registry::RegistryArguments,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Where a confidential image goes.
#[derive(Debug, clap::Args)]
pub struct OutputArguments {
    /// Also write an archive that `podman load`, `docker load` and `bulla run` take; with a / at
    /// the end an OCI layout directory
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Also push to the registry that the name says
    #[arg(long)]
    pub push: bool,
}

/// What was built.
#[derive(Serialize)]
pub struct Report {
    pub name: String,
    /// Digest of the manifest, by which registries know it.
    pub digest: String,
    pub mrenclave_dynamic: String,
    pub mrenclave_static: String,
    pub mrsigner: String,
    pub product_id: u16,
    pub security_version: u16,
    pub development_key: bool,
    /// The manifest's insecure options.
    pub insecure: Vec<&'static str>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let cache = Cache::of_user()?;
    let store = Store::of(&cache)?;
    let name = bulla_oci::full_name(&arguments.tag)?;
    let manifest = match &arguments.manifest {
        Some(path) => Manifest::read(path)?,
        None => Manifest::default(),
    };
    let signer = Signer::new(&arguments.key)?;
    let (source, source_name) = match (&arguments.rootfs, &arguments.image) {
        (Some(directory), _) => (Source::Directory(directory), directory.as_os_str()),
        (None, Some(image)) => (Source::Image(image), &**image),
        (None, None) => return Err(Failure::new("no image given; see `bulla build --help`")),
    };
    let stored = source.stored(&arguments.registry.options())?;
    let key_source = match image_key::is_coordinators(&manifest) {
        true => ImageKeySource::Coordinator,
        false => ImageKeySource::InsecureHost,
    };
    let encrypted = match &arguments.encrypt {
        Some(key) => Some(Encrypted::new(&cache, &stored, key, key_source)?),
        None => {
            image_key::refuse_in_clear(&manifest)?;
            None
        }
    };
    let rootfs = encrypted
        .as_ref()
        .map_or(&stored.rootfs, |encrypted| &encrypted.rootfs);
    let mut draft = settle(&manifest, &stored.config, rootfs.clone())?;
    if let Some(encrypted) = &encrypted {
        draft.config.encryption = Some(encrypted.description.clone());
        if key_source == ImageKeySource::InsecureHost {
            draft.config.insecure.push(Insecure::HostImageKey);
        }
    }
    let date = date(&stored.config);
    let mut enclaves = Vec::new();
    for kind in [LayoutKind::Dynamic, LayoutKind::Static] {
        enclaves.push(sign(&draft, kind, &manifest, &signer, date)?);
    }
    // Names and digests of files would tell what is in an encrypted image.
    let list = match encrypted {
        Some(_) => Vec::new(),
        None => Files::open(&stored.path, &stored.rootfs)?.list()?,
    };
    let about = About {
        bulla: env!("CARGO_PKG_VERSION").into(),
        config_version: VERSION,
        source: name_only(Path::new(source_name)),
        source_id: stored.digest.to_string(),
        manifest: serde_json::to_value(&manifest).map_err(Failure::new)?,
        image_config: stored.config.clone(),
    };
    let compression = match arguments.output.push {
        true => LayerCompression::Gzip,
        false => LayerCompression::None,
    };
    let loader = loader()?;
    warn_of_dynamic(&loader);
    let mut last = vec![
        file("files.json", json(&list)?),
        file("about.json", json(&about)?),
    ];
    for (config, _, sigstruct, kind) in &enclaves {
        last.push(file(&format!("{}.config", kind.name()), config.clone()));
        last.push(file(
            &format!("{}.sigstruct", kind.name()),
            sigstruct.to_bytes().to_vec(),
        ));
    }
    let program = |name: &str, mode, content| Entry {
        path: format!("{}/{name}", built::DIR),
        mode,
        content,
    };
    let programs = [
        program("", 0o755, Content::Directory),
        program("bulla", 0o755, Content::File(loader)),
        file("bootstrap", bulla_image::embedded::BOOTSTRAP.to_vec()),
        file("runtime", bulla_image::embedded::RUNTIME.to_vec()),
    ];
    let rootfs = [program(
        "rootfs.img",
        0o644,
        Content::File(match &encrypted {
            Some(encrypted) => encrypted.path.clone(),
            None => stored.path.clone(),
        }),
    )];
    let entries = [&programs[..], &rootfs, &last];
    let layers: Vec<_> = entries
        .into_iter()
        .map(|entries| output::write_layer(&store, entries, compression))
        .collect::<Result<_, _>>()?;

    let insecure = &draft.config.insecure;
    let report = report(&name, &enclaves, signer.is_development(), insecure);
    let digest = write(&store, &stored.config, &report, &layers)?;
    cache.keep_built(&store.open(&digest)?, entries.into_iter().flatten())?;
    let report = Report {
        digest: digest.to_string(),
        ..report
    };
    deliver(
        &store,
        &digest,
        &name,
        &arguments.output,
        &arguments.registry,
    )?;
    print(&report, arguments.json)
}

/// An encrypted copy of a root file system, for the time of the build.
struct Encrypted {
    path: PathBuf,
    rootfs: Rootfs,
    description: Encryption,
}

impl Encrypted {
    fn new(
        cache: &Cache,
        stored: &Stored,
        key: &Path,
        source: ImageKeySource,
    ) -> Result<Encrypted, Failure> {
        let key = image_key::read(key)?;
        let path = cache.dir().join(format!(
            ".encrypted.{}.{}",
            stored.digest.hex(),
            std::process::id()
        ));
        let mut made = Encrypted {
            path,
            rootfs: Rootfs::default(),
            description: image_key::describe(&key, source),
        };
        let out = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&made.path);
        let out = out.map_err(|error| {
            Failure::new(format!("cannot write {}: {error}", made.path.display()))
        })?;
        let cipher = image_key::cipher(&key);
        let mut encrypt = |number, block: &mut [u8]| cipher.encrypt(number, block);
        made.rootfs = bulla_rootfs::encrypt(&stored.path, &stored.rootfs, out, &mut encrypt)
            .map_err(Failure::new)?;
        Ok(made)
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        // What cannot be removed only takes up space.
        let _ = std::fs::remove_file(&self.path);
    }
}

type Enclave = (Vec<u8>, EnclaveImage, SigStruct, LayoutKind);

fn sign(
    draft: &Draft,
    kind: LayoutKind,
    manifest: &Manifest,
    signer: &Signer,
    date: Date,
) -> Result<Enclave, Failure> {
    let config = draft.config(kind);
    let image = enclave::lay_out(&Programs::embedded(), &config, kind, &Options::default())?;
    let (product, version) = (manifest.product_id, manifest.security_version);
    let sigstruct = signer.sign(&enclave::describe(&image, date, product, version))?;
    Ok((config.to_bytes(), image, sigstruct, kind))
}

fn report(
    name: &str,
    enclaves: &[Enclave],
    development_key: bool,
    insecure: &[Insecure],
) -> Report {
    let of = |wanted: LayoutKind| enclaves.iter().find(|(.., kind)| *kind == wanted);
    let mrenclave = |kind| of(kind).map_or(String::new(), |(_, image, ..)| hex(&image.mrenclave));
    let signed = enclaves.first().map(|(_, _, signed, _)| signed);
    Report {
        name: name.to_owned(),
        digest: String::new(),
        mrenclave_dynamic: mrenclave(LayoutKind::Dynamic),
        mrenclave_static: mrenclave(LayoutKind::Static),
        mrsigner: signed.map_or(String::new(), |signed| hex(&signed.mrsigner())),
        product_id: signed.map_or(0, |signed| signed.isv_prod_id),
        security_version: signed.map_or(0, |signed| signed.isv_svn),
        development_key,
        insecure: banner::names(insecure),
    }
}

/// A small file of the confidential image.
pub fn file(name: &str, bytes: Vec<u8>) -> Entry {
    Entry {
        path: format!("{}/{name}", built::DIR),
        mode: 0o644,
        content: Content::Bytes(bytes),
    }
}

/// Labels and annotations that name an image's identity, and its insecure options.
pub fn identity(report: &Report) -> BTreeMap<String, String> {
    let entries = [
        ("mrenclave.dynamic", report.mrenclave_dynamic.clone()),
        ("mrenclave.static", report.mrenclave_static.clone()),
        ("mrsigner", report.mrsigner.clone()),
        ("product-id", report.product_id.to_string()),
        ("svn", report.security_version.to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let named = entries.into_iter();
    let named = named.map(|(name, value)| (format!("org.bulla.{name}"), value));
    // Nobody who looks at the image should have to look for them.
    let insecure = (!report.insecure.is_empty())
        .then(|| (banner::INSECURE_LABEL.to_owned(), report.insecure.join(",")));
    named.chain(insecure).collect()
}

/// Configuration and manifest of the confidential image.
pub fn write(
    store: &Store,
    original: &ImageConfig,
    report: &Report,
    layers: &[output::Layer],
) -> Result<Digest, Failure> {
    let annotations = identity(report);
    let mut labels: BTreeMap<String, String> = original.labels.iter().cloned().collect();
    labels.extend(annotations.clone());
    labels.insert(built::LABEL.into(), built::FORMAT.into());
    let config = ImageConfig {
        entrypoint: vec![format!("/{}/bulla", built::DIR), "start".into()],
        cmd: Vec::new(),
        // The program's own environment, user and directory are in the measured configuration.
        env: Vec::new(),
        user: String::new(),
        workdir: "/".into(),
        exposed_ports: original.exposed_ports.clone(),
        volumes: original.volumes.clone(),
        stop_signal: original.stop_signal.clone(),
        created: original.created.clone(),
        labels: labels.into_iter().collect(),
    };
    let image = NewImage {
        config: &config,
        annotations,
    };
    Ok(output::write_image(store, &image, layers)?)
}

/// Names the image, writes the archive, pushes.
pub fn deliver(
    store: &Store,
    digest: &Digest,
    name: &str,
    output: &OutputArguments,
    registry: &crate::registry::RegistryArguments,
) -> Result<(), Failure> {
    store.name(name, digest)?;
    if let Some(path) = &output.output {
        let layout = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        match layout {
            true => output::write_layout(store, digest, Some(name), path)?,
            false => output::write_archive(store, digest, Some(name), path)?,
        }
    }
    if output.push {
        bulla_oci::registry::push(store, digest, name, &registry.options())?;
    }
    Ok(())
}

/// Says what was built.
pub fn print(report: &Report, json: bool) -> Result<(), Failure> {
    if report.development_key {
        eprintln!(
            "bulla: warning: signed with this machine's development key; MRSIGNER says nothing to \
             others, use --sign-key for what you publish"
        );
    }
    if json {
        return crate::print_json(report);
    }
    crate::print(&format!(
        "image                {}\ndigest               {}\nMRENCLAVE (dynamic)  {}\n\
         MRENCLAVE (static)   {}\nMRSIGNER             {}\nproduct id           {}\n\
         SVN                  {}\n",
        report.name,
        report.digest,
        report.mrenclave_dynamic,
        report.mrenclave_static,
        report.mrsigner,
        report.product_id,
        report.security_version,
    ))
}

/// What becomes /bulla/bulla: the program that can only start an image, a few MiB, if it lies beside
/// this one as it should; else this one.
fn loader() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::new(format!("cannot find this program's file: {error}")))?;
    let small = own.with_file_name("bulla-start");
    if small.is_file() {
        return Ok(small);
    }
    eprintln!(
        "bulla: warning: there is no {}, so the image gets the whole of bulla, which is larger; \
         install bulla-start beside bulla",
        small.display()
    );
    Ok(own)
}

/// The image has no C library of this machine's: a loader that wants one starts under `bulla run`
/// only, which does not execute it.
fn warn_of_dynamic(loader: &Path) {
    let bytes = std::fs::read(loader).unwrap_or_default();
    let program = crate::check::Program::parse("bulla".into(), &bytes);
    if program.is_none_or(|program| !program.is_static()) {
        eprintln!(
            "bulla: warning: this bulla is linked dynamically, so podman, docker and Kubernetes \
             cannot start the image from its empty root; `bulla run` can"
        );
    }
}

/// The date of the signature: nothing of this day, so that equal input gives equal bytes.
fn date(image: &ImageConfig) -> Date {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok();
    if let Some(seconds) = epoch.and_then(|text| text.parse().ok()) {
        return Date::from_unix(seconds);
    }
    let created = image.created.get(..10).and_then(|day| {
        let mut parts = day.split('-');
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        Date::new(year.parse().ok()?, month.parse().ok()?, day.parse().ok()?).ok()
    });
    created.unwrap_or_else(|| Date::from_unix(0))
}

/// The last part of a path: where files lie on this machine is nobody's business.
fn name_only(path: &Path) -> String {
    match path.exists() {
        true => path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        false => path.to_string_lossy().into_owned(),
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(Failure::new)
}

/// The configuration of the original image, out of a confidential one's.
pub fn original_config(config: &ImageConfig) -> ImageConfig {
    let labels = config.labels.iter();
    let own = |(name, _): &&(String, String)| !name.starts_with("org.bulla.");
    ImageConfig {
        labels: labels.filter(own).cloned().collect(),
        ..config.clone()
    }
}
