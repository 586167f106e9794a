//! `bulla sign`: signs a confidential image again, at once or in two steps.

use crate::banner;
use crate::build::{self, OutputArguments, Report};
use crate::enclave::{self, Programs};
use crate::failure::Failure;
use crate::keys::{KeyArguments, Signer};
use crate::state::hex;
use bulla_abi::config::Config;
use bulla_abi::layout::LayoutKind;
use bulla_image::{Date, Description, Options, PublicKey, SigStruct};
use bulla_oci::built::{self, Built};
use bulla_oci::output::{self, Content, Entry, LayerCompression};
use bulla_oci::source::ImageSource;
use bulla_oci::{Cache, Store};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  bulla sign redis:7-sgx -t redis:7-prod --sign-key key.pem
  bulla sign redis:7-sgx --pkcs11-module /usr/lib/softhsm/libsofthsm2.so --pkcs11-key bulla
In two steps, the key being elsewhere:
  bulla sign redis:7-sgx --digest-out digests/
  openssl dgst -sha256 -sign key.pem -out digests/dynamic.signature digests/dynamic.signed
  openssl dgst -sha256 -sign key.pem -out digests/static.signature digests/static.signed
  bulla sign redis:7-sgx --signature-in digests/ --public-key key.pub -o redis-sgx.tar

DIR/dynamic.signed and static.signed are the bytes to be signed (SHA-256, PKCS #1 v1.5), *.digest
their SHA-256 for tools that take a digest.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The confidential image
    pub image: OsString,

    /// Name of the result [default: the image's name, if it has one]
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub tag: Option<String>,

    /// Product id to sign
    #[arg(long, value_name = "NUMBER")]
    pub product_id: Option<u16>,

    /// Security version to sign
    #[arg(long, value_name = "NUMBER")]
    pub security_version: Option<u16>,

    /// First step: write what is to be signed into this directory
    #[arg(long, value_name = "DIR", conflicts_with_all = ["signature_in", "sign_key", "pkcs11_module"])]
    pub digest_out: Option<PathBuf>,

    /// Second step: take the signatures from this directory
    #[arg(long, value_name = "DIR", requires = "public_key", conflicts_with_all = ["sign_key", "pkcs11_module"])]
    pub signature_in: Option<PathBuf>,

    /// Public half of the key that signed, PEM
    #[arg(long, value_name = "FILE")]
    pub public_key: Option<PathBuf>,

    #[command(flatten)]
    pub key: KeyArguments,

    #[command(flatten)]
    pub output: OutputArguments,

    #[command(flatten)]
    pub registry: crate::registry::RegistryArguments,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let cache = Cache::of_user()?;
    let store = Store::of(&cache)?;
    let source = ImageSource::parse(&arguments.image)?;
    let image = source.open(&cache, &arguments.registry.options())?;
    if !image.is_built() {
        return Err(Failure::new(format!(
            "{} is not a confidential image; make one with `bulla build`",
            arguments.image.display()
        )));
    }
    let built = cache.built(&image)?;
    let kinds = [LayoutKind::Dynamic, LayoutKind::Static];
    let mut descriptions = Vec::new();
    for kind in kinds {
        descriptions.push(description(&built, kind, arguments)?);
    }
    if let Some(dir) = &arguments.digest_out {
        return write_digests(dir, &kinds, &descriptions);
    }
    let name = match (&arguments.tag, &source) {
        (Some(tag), _) => tag,
        (None, ImageSource::Named(name)) => name,
        _ => return Err(Failure::new("give the result a name with -t")),
    };
    let name = bulla_oci::full_name(name)?;
    let mut development = false;
    let signed: Vec<SigStruct> = match (&arguments.signature_in, &arguments.public_key) {
        (Some(dir), Some(key)) => {
            let key = PublicKey::read(key)?;
            let attach = |(kind, description): (&LayoutKind, &Description)| {
                let path = dir.join(format!("{}.signature", kind.name()));
                let signature = std::fs::read(&path).map_err(|error| {
                    Failure::new(format!(
                        "cannot read the signature {}: {error}",
                        path.display()
                    ))
                })?;
                Ok::<_, Failure>(description.attach(&key, &signature)?)
            };
            kinds
                .iter()
                .zip(&descriptions)
                .map(attach)
                .collect::<Result<_, _>>()?
        }
        _ => {
            let signer = Signer::new(&arguments.key)?;
            development = signer.is_development();
            let sign = |description| signer.sign(description);
            descriptions.iter().map(sign).collect::<Result<_, _>>()?
        }
    };
    let report = Report {
        name: name.clone(),
        digest: String::new(),
        mrenclave_dynamic: hex(&descriptions[0].mrenclave),
        mrenclave_static: hex(&descriptions[1].mrenclave),
        mrsigner: hex(&signed[0].mrsigner()),
        product_id: signed[0].isv_prod_id,
        security_version: signed[0].isv_svn,
        development_key: development,
        insecure: banner::names(&read_config(&built, kinds[0])?.insecure),
    };
    let entries = entries(&built, &kinds, &signed);
    let compression = match arguments.output.push {
        true => LayerCompression::Gzip,
        false => LayerCompression::None,
    };
    let layers: Vec<_> = entries
        .iter()
        .map(|entries| output::write_layer(&store, entries, compression))
        .collect::<Result<_, _>>()?;
    let original = build::original_config(&image.config);
    let digest = build::write(&store, &original, &report, &layers)?;
    cache.keep_built(&store.open(&digest)?, entries.iter().flatten())?;
    let report = Report {
        digest: digest.to_string(),
        ..report
    };
    build::deliver(
        &store,
        &digest,
        &name,
        &arguments.output,
        &arguments.registry,
    )?;
    build::print(&report, arguments.json)
}

/// What is to be signed: the present signature's date, and MRENCLAVE computed anew.
fn description(
    built: &Built,
    kind: LayoutKind,
    arguments: &Arguments,
) -> Result<Description, Failure> {
    let config = read_config(built, kind)?;
    let programs = Programs::of(built)?;
    let image = enclave::lay_out(&programs, &config, kind, &Options::default())?;
    let old = read_signature(built, kind)?;
    let date = Date::from_bcd(old.date).unwrap_or_else(|| Date::from_unix(0));
    Ok(enclave::describe(
        &image,
        date,
        arguments.product_id.unwrap_or(old.isv_prod_id),
        arguments.security_version.unwrap_or(old.isv_svn),
    ))
}

/// The measured configuration of a layout.
pub fn read_config(built: &Built, kind: LayoutKind) -> Result<Config, Failure> {
    let bytes = built.read(&format!("{}.config", kind.name()))?;
    Config::from_bytes(&bytes).ok_or_else(|| {
        let version = built.about().map_or_else(|_| "another version".into(), |about| about.bulla);
        Failure::new(format!(
            "the image was built by bulla {version}, whose configuration this one ({}) cannot read; \
             use that version, or build the image again",
            env!("CARGO_PKG_VERSION")
        ))
    })
}

/// The signature of a layout.
pub fn read_signature(built: &Built, kind: LayoutKind) -> Result<SigStruct, Failure> {
    let bytes = built.read(&format!("{}.sigstruct", kind.name()))?;
    let bytes = bytes.try_into().ok();
    bytes
        .and_then(|bytes| SigStruct::from_bytes(&bytes))
        .ok_or_else(|| {
            Failure::new(
                "the image's signature is damaged; fetch the image again, or `bulla sign` it",
            )
        })
}

fn write_digests(
    dir: &Path,
    kinds: &[LayoutKind],
    descriptions: &[Description],
) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::new(format!("cannot write to {}: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(failed)?;
    for (kind, description) in kinds.iter().zip(descriptions) {
        let bytes = description.unsigned()?.signed_bytes();
        let digest = bulla_oci::Digest::of(&bytes);
        std::fs::write(dir.join(format!("{}.signed", kind.name())), bytes).map_err(failed)?;
        std::fs::write(dir.join(format!("{}.digest", kind.name())), digest.bytes())
            .map_err(failed)?;
    }
    crate::print(&format!(
        "{0}: sign dynamic.signed and static.signed, put the signatures beside them as \
         dynamic.signature and static.signature, then use --signature-in {0}\n",
        dir.display()
    ))
}

/// What is in the layers: the same as at the build, with other signatures in the last one.
fn entries(built: &Built, kinds: &[LayoutKind], signed: &[SigStruct]) -> [Vec<Entry>; 3] {
    let entry = |name: &str, mode| Entry {
        path: format!("{}/{name}", built::DIR),
        mode,
        content: match name {
            "" => Content::Directory,
            name => Content::File(built.path(name)),
        },
    };
    let programs = vec![
        entry("", 0o755),
        entry("bulla", 0o755),
        entry("bootstrap", 0o644),
        entry("runtime", 0o644),
    ];
    let rootfs = vec![entry("rootfs.img", 0o644)];
    let mut last = vec![entry("files.json", 0o644), entry("about.json", 0o644)];
    for (kind, signature) in kinds.iter().zip(signed) {
        last.push(entry(&format!("{}.config", kind.name()), 0o644));
        let bytes = signature.to_bytes().to_vec();
        last.push(build::file(&format!("{}.sigstruct", kind.name()), bytes));
    }
    [programs, rootfs, last]
}
