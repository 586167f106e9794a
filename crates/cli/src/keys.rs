//! Keys that sign confidential images: a file, a PKCS #11 token, or this machine's own.

use crate::failure::Failure;
use crate::state::State;
use bulla_image::{Description, PublicKey, SigStruct, SigningKey};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Clone, Debug, clap::Args)]
pub struct KeyArguments {
    /// Key to sign with: RSA, 3072 bits, exponent 3, PEM [default: this machine's development key]
    #[arg(long, value_name = "FILE", conflicts_with = "pkcs11_module")]
    pub sign_key: Option<PathBuf>,

    /// Sign on a PKCS #11 token by this library, through OpenSC's pkcs11-tool
    #[arg(long, value_name = "LIBRARY", requires = "pkcs11_key")]
    pub pkcs11_module: Option<PathBuf>,

    /// Label of the key on the token
    #[arg(long, value_name = "LABEL", requires = "pkcs11_module")]
    pub pkcs11_key: Option<String>,

    /// Label of the token [default: the first]
    #[arg(long, value_name = "LABEL", requires = "pkcs11_module")]
    pub pkcs11_token: Option<String>,

    /// Environment variable that holds the token's PIN
    #[arg(long, value_name = "NAME", default_value = "BULLA_PKCS11_PIN")]
    pub pkcs11_pin_env: String,
}

/// Something that signs.
pub enum Signer {
    Key {
        key: Box<SigningKey>,
        development: bool,
    },
    Token(Box<Token>),
}

impl Signer {
    /// The signer that the arguments name.
    pub fn new(arguments: &KeyArguments) -> Result<Signer, Failure> {
        if let (Some(module), Some(label)) = (&arguments.pkcs11_module, &arguments.pkcs11_key) {
            return Ok(Signer::Token(Box::new(Token::new(
                arguments, module, label,
            )?)));
        }
        let (key, development) = match &arguments.sign_key {
            Some(path) => (SigningKey::read(path)?, false),
            None => (State::of_user().development_key()?, true),
        };
        Ok(Signer::Key {
            key: Box::new(key),
            development,
        })
    }

    /// Whether it is this machine's own key.
    pub fn is_development(&self) -> bool {
        matches!(
            self,
            Signer::Key {
                development: true,
                ..
            }
        )
    }

    /// Signs a description.
    pub fn sign(&self, description: &Description) -> Result<SigStruct, Failure> {
        match self {
            Signer::Key { key, .. } => Ok(description.sign(key)?),
            Signer::Token(token) => {
                let signature = token.sign(&description.unsigned()?.signed_bytes())?;
                Ok(description.attach(&token.public, &signature)?)
            }
        }
    }
}

/// A key on a PKCS #11 token. bulla itself is linked statically and loads no libraries, so
/// OpenSC's tool speaks to the token.
pub struct Token {
    options: Vec<String>,
    pin_env: String,
    public: PublicKey,
}

impl Token {
    fn new(arguments: &KeyArguments, module: &Path, label: &str) -> Result<Token, Failure> {
        let mut options = vec!["--module".into(), module.display().to_string()];
        options.extend(["--label".into(), label.into()]);
        if let Some(token) = &arguments.pkcs11_token {
            options.extend(["--token-label".into(), token.clone()]);
        }
        let mut token = Token {
            options,
            pin_env: arguments.pkcs11_pin_env.clone(),
            public: PublicKey::EMPTY,
        };
        let der = token.run(&["--read-object", "--type", "pubkey"], &[], false)?;
        token.public = PublicKey::from_der(&der)?;
        Ok(token)
    }

    fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        self.run(&["--sign", "--mechanism", "SHA256-RSA-PKCS"], bytes, true)
    }

    /// Runs the tool; data goes through files that only we can read, for it reads no pipes.
    fn run(&self, action: &[&str], input: &[u8], login: bool) -> Result<Vec<u8>, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(format!(
                "pkcs11-tool cannot be run ({error}); install OpenSC (Debian: opensc), or sign in \
                 two steps with --digest-out and --signature-in"
            ))
        };
        let dir = tempfile::tempdir().map_err(|error| failed(&error))?;
        let (from, to) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::write(&from, input).map_err(|error| failed(&error))?;
        let mut command = Command::new("pkcs11-tool");
        command
            .args(&self.options)
            .args(action)
            .arg("--output-file")
            .arg(&to);
        if !input.is_empty() {
            command.arg("--input-file").arg(&from);
        }
        if login {
            if std::env::var_os(&self.pin_env).is_none() {
                return Err(Failure::new(format!(
                    "the token wants a PIN; put it into the environment variable {}",
                    self.pin_env
                )));
            }
            command.args(["--login", "--pin", &format!("env:{}", self.pin_env)]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = command.output().map_err(|error| failed(&error))?;
        if !output.status.success() {
            let _ = std::io::stderr().flush();
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().rfind(|line| !line.trim().is_empty());
            return Err(Failure::new(format!(
                "the PKCS #11 token refused: {}; check library, labels and PIN",
                last.unwrap_or("it gave no reason")
            )));
        }
        std::fs::read(&to).map_err(|error| failed(&error))
    }
}
