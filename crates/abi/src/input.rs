//! What the host adds when it starts a container, and the check of it.
//!
//! Nothing of this is measured, so nothing of it is believed: [`Config::admit`] runs inside the
//! enclave, before anything else looks at the configuration, and refuses whatever the measured
//! [`HostPolicy`](crate::config::HostPolicy) does not let in. The loader calls the same function
//! first, only so that a mistake is explained before the enclave is built.

use crate::config::{Config, FixedFile, HostPolicy, ImageKey, ImageKeySource};
use crate::pattern;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use serde::{Deserialize, Serialize};

/// Most bytes of a serialised [`HostInput`]: Linux's own limit for arguments and environment is 2 MiB.
pub const SIZE_MAX: u64 = 1 << 20;
/// As many name servers as C libraries look at; more are dropped there too.
const NAMESERVERS_MAX: usize = 3;
/// Lines of /etc/hosts that the host may add.
const HOSTS_MAX: usize = 1024;

/// The host's part of a start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInput {
    /// Arguments; `None` when none were given.
    pub arguments: Option<Vec<Vec<u8>>>,
    /// `NAME=value`.
    pub environment: Vec<Vec<u8>>,
    pub hostname: Option<String>,
    /// The host's /etc/resolv.conf.
    pub resolver: Option<Vec<u8>>,
    /// Lines for /etc/hosts.
    pub hosts: Vec<u8>,
    /// The standard streams are a terminal. Always allowed: the streams are the host's anyway.
    pub terminal: bool,
    /// The key of an encrypted image.
    pub image_key: Option<ImageKey>,
    /// Secrets of the environment, by their names.
    pub secrets: Vec<Secret>,
}

/// A secret's value as the host gives it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    pub name: String,
    pub value: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}, …)", self.name)
    }
}

/// A program that the host wants to start in the running container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The host's name for it, given back when it has ended.
    pub token: u64,
    pub arguments: Vec<Vec<u8>>,
    /// `NAME=value`, after the container's own.
    pub environment: Vec<Vec<u8>>,
    /// `None`: the container's.
    pub user: Option<String>,
    /// `None`: the container's.
    pub workdir: Option<Vec<u8>>,
    /// The host's descriptors for its standard streams.
    pub standard: [u32; 3],
    /// They are a terminal.
    pub terminal: bool,
    /// Not a new program, but this signal for the running one of this token.
    pub signal: u32,
}

impl ExecRequest {
    /// The bytes that the loader passes.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("an ExecRequest always serialises")
    }

    /// Reads it back; `None` when it is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Option<ExecRequest> {
        let (request, rest) = postcard::take_from_bytes(bytes).ok()?;
        rest.is_empty().then_some(request)
    }
}

/// Why the host's input is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    Arguments,
    Argument(String),
    Variable(String),
    Value { name: String, pattern: String },
    Required(String),
    Hostname,
    HostnameSyntax(String),
    Resolver,
    Zero,
    NoImageKey,
    ImageKey,
    CoordinatorsImageKey,
    NoSecret(String),
    Secret(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Arguments => f.write_str(
                "arguments were given, but the manifest locks them; leave them out, or build the \
                 image again with [arguments] mode = \"append\" or \"host\"",
            ),
            Refused::Argument(word) => write!(
                f,
                "the argument {word:?} matches none of the manifest's patterns; see `bulla inspect`"
            ),
            Refused::Variable(name) => write!(
                f,
                "the environment variable {name} was given, but the manifest does not let the \
                 host set it; leave it out, or build the image again with {name} = {{ host = true }} \
                 under [environment]"
            ),
            Refused::Value { name, pattern } => write!(
                f,
                "the value of the environment variable {name} does not match the manifest's \
                 pattern {pattern:?}"
            ),
            Refused::Required(name) => write!(
                f,
                "the environment variable {name} must be given; add `-e {name}=VALUE`"
            ),
            Refused::Hostname => f.write_str(
                "a host name was given, but the manifest fixes it; leave it out, or build the \
                 image again with [network] hostname = \"host\"",
            ),
            Refused::HostnameSyntax(name) => write!(
                f,
                "{name:?} is not a host name; use letters, digits, dots and hyphens, at most 64"
            ),
            Refused::Resolver => f.write_str(
                "name servers or host names were given, but the manifest fixes them; leave --dns \
                 and --add-host out",
            ),
            Refused::NoImageKey => {
                f.write_str("the image's files are encrypted; give their key with --key-file FILE")
            }
            Refused::ImageKey => {
                f.write_str("a key was given, but the image is not encrypted; leave --key-file out")
            }
            Refused::CoordinatorsImageKey => f.write_str(
                "a key was given, but it is the coordinator that releases the image's; leave \
                 --key-file out",
            ),
            Refused::NoSecret(name) => write!(
                f,
                "the secret {name} must be given; add `--secret {name}=FILE`"
            ),
            Refused::Secret(name) => write!(
                f,
                "the secret {name} was given, but the manifest takes no such one from the host; \
                 leave it out, or build the image again with VARIABLE = {{ secret = {name:?}, \
                 insecure_host = true }} under [environment]"
            ),
            Refused::Zero => f.write_str("an argument or variable contains a zero byte"),
        }
    }
}

impl HostInput {
    /// The bytes that the loader passes.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a HostInput always serialises")
    }

    /// Reads it back; `None` when it is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Option<HostInput> {
        let (input, rest) = postcard::take_from_bytes(bytes).ok()?;
        rest.is_empty().then_some(input)
    }
}

impl Config {
    /// The configuration with what the host adds to it, or the reason why it may not.
    pub fn admit(mut self, input: &HostInput) -> Result<Config, Refused> {
        self.terminal = input.terminal;
        let source = self.encryption.as_ref().map(|encryption| encryption.key);
        match (source, &input.image_key) {
            (Some(ImageKeySource::InsecureHost), None) => return Err(Refused::NoImageKey),
            (Some(ImageKeySource::Coordinator), Some(_)) => {
                return Err(Refused::CoordinatorsImageKey);
            }
            (None, Some(_)) => return Err(Refused::ImageKey),
            (_, key) => self.image_key = key.clone(),
        }
        self.admit_arguments(input)?;
        self.admit_environment(input)?;
        self.admit_secrets(input)?;
        if let Some(name) = &input.hostname {
            if !self.host.hostname && *name != self.hostname {
                return Err(Refused::Hostname);
            }
            if !is_hostname(name) {
                return Err(Refused::HostnameSyntax(name.clone()));
            }
            self.hostname = name.clone();
        }
        self.admit_resolver(input)?;
        self.write_names(&input.hosts);
        Ok(self)
    }

    fn admit_arguments(&mut self, input: &HostInput) -> Result<(), Refused> {
        let Some(words) = &input.arguments else {
            self.argv.append(&mut self.default_arguments);
            return Ok(());
        };
        let patterns = self.host.arguments.as_ref().ok_or(Refused::Arguments)?;
        for word in words {
            if word.contains(&0) {
                return Err(Refused::Zero);
            }
            if !patterns
                .iter()
                .any(|pattern| pattern::matches(pattern, word))
            {
                return Err(Refused::Argument(shown(word)));
            }
        }
        self.argv.extend(words.iter().cloned());
        Ok(())
    }

    fn admit_environment(&mut self, input: &HostInput) -> Result<(), Refused> {
        for variable in &input.environment {
            if variable.contains(&0) {
                return Err(Refused::Zero);
            }
            let name = name_of(variable);
            let value = variable.get(name.len() + 1..).unwrap_or_default();
            let allowed = self.host.variable(name);
            let allowed = allowed.ok_or_else(|| Refused::Variable(shown(name)))?;
            if !pattern::matches(&allowed.pattern, value) {
                return Err(Refused::Value {
                    name: allowed.name.clone(),
                    pattern: allowed.pattern.clone(),
                });
            }
            match self.env.iter().position(|known| name_of(known) == name) {
                Some(at) => self.env[at] = variable.clone(),
                None => self.env.push(variable.clone()),
            }
        }
        let given = |name: &str| {
            self.env
                .iter()
                .any(|known| name_of(known) == name.as_bytes())
        };
        let mut wanted = self.host.environment.iter();
        match wanted.find(|variable| variable.required && !given(&variable.name)) {
            Some(missing) => Err(Refused::Required(missing.name.clone())),
            None => Ok(()),
        }
    }

    fn admit_secrets(&mut self, input: &HostInput) -> Result<(), Refused> {
        let known = |name: &str| self.host.secrets.iter().any(|secret| secret.name == name);
        if let Some(other) = input.secrets.iter().find(|given| !known(&given.name)) {
            return Err(Refused::Secret(other.name.clone()));
        }
        for secret in &self.host.secrets {
            let mut given = input.secrets.iter();
            let given = given.find(|given| given.name == secret.name);
            let given = given.ok_or_else(|| Refused::NoSecret(secret.name.clone()))?;
            if given.value.contains(&0) {
                return Err(Refused::Zero);
            }
            let name = secret.variable.as_bytes();
            self.env.retain(|known| name_of(known) != name);
            self.env.push([name, b"=", &given.value[..]].concat());
        }
        Ok(())
    }

    fn admit_resolver(&mut self, input: &HostInput) -> Result<(), Refused> {
        if !self.host.resolver {
            let given = input.resolver.is_some() || !input.hosts.is_empty();
            return if given {
                Err(Refused::Resolver)
            } else {
                Ok(())
            };
        }
        if let Some(text) = &input.resolver {
            self.replace_file("/etc/resolv.conf", resolver(text));
        }
        Ok(())
    }

    /// /etc/hosts and /etc/hostname, as container engines write them, unless the owner fixed them.
    fn write_names(&mut self, host_lines: &[u8]) {
        let name = &self.hostname;
        let mut hosts =
            format!("127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        hosts.push_str(&String::from_utf8_lossy(&self.hosts));
        hosts.push_str(&hosts_lines(host_lines));
        let name = format!("{name}\n");
        for (path, text) in [("/etc/hosts", hosts), ("/etc/hostname", name)] {
            if !self.files.iter().any(|file| file.path == path.as_bytes()) {
                self.replace_file(path, text);
            }
        }
    }

    fn replace_file(&mut self, path: &str, content: String) {
        self.files.retain(|file| file.path != path.as_bytes());
        self.files.push(FixedFile {
            path: path.as_bytes().to_vec(),
            content: content.into_bytes(),
            mode: 0o644,
        });
    }
}

impl HostPolicy {
    /// The rule for an environment variable, if the host may set it.
    pub fn variable(&self, name: &[u8]) -> Option<&crate::config::HostVariable> {
        let mut variables = self.environment.iter();
        variables.find(|variable| variable.name.as_bytes() == name && !name.is_empty())
    }
}

fn name_of(variable: &[u8]) -> &[u8] {
    let end = variable.iter().position(|&byte| byte == b'=');
    &variable[..end.unwrap_or(variable.len())]
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(200).collect()
}

/// Letters, digits, dots, hyphens and underscores; at most HOST_NAME_MAX of Linux.
pub fn is_hostname(name: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (1..=64).contains(&name.len()) && name.chars().all(valid)
}

/// A name as resolvers use it.
fn is_domain(name: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (1..=253).contains(&name.len()) && name.chars().all(valid)
}

/// resolv.conf written anew from what is understood of `text`: name servers, search domains and
/// options of a known form. Everything else is dropped.
pub fn resolver(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(64 << 10)]).to_string();
    let mut out = String::new();
    let mut servers = 0;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                // fe80::1%eth0: the scope is the host's business and means nothing here.
                let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                if let (Some(address), true) = (address, servers < NAMESERVERS_MAX) {
                    out.push_str(&format!("nameserver {address}\n"));
                    servers += 1;
                }
            }
            Some("search" | "domain") => {
                let domains: Vec<&str> = words.filter(|word| is_domain(word)).take(32).collect();
                if !domains.is_empty() {
                    out.push_str(&format!("search {}\n", domains.join(" ")));
                }
            }
            Some("options") => {
                let known = |word: &&str| {
                    word.len() <= 32
                        && word.bytes().all(|byte| {
                            byte.is_ascii_lowercase()
                                || byte.is_ascii_digit()
                                || b":-".contains(&byte)
                        })
                };
                let options: Vec<&str> = words.filter(known).take(16).collect();
                if !options.is_empty() {
                    out.push_str(&format!("options {}\n", options.join(" ")));
                }
            }
            _ => {}
        }
    }
    out
}

/// Lines of /etc/hosts written anew: an address and names. `localhost` stays ours.
pub fn hosts_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(256 << 10)]).to_string();
    let mut out = String::new();
    for line in text.lines().take(HOSTS_MAX) {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else {
            continue;
        };
        let names = words.filter(|name| is_domain(name) && !name.eq_ignore_ascii_case("localhost"));
        let names: Vec<&str> = names.take(32).collect();
        if !names.is_empty() {
            out.push_str(&format!("{address}\t{}\n", names.join(" ")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostVariable;
    use alloc::vec;

    #[test]
    fn secrets_come_where_they_are_wanted() {
        use crate::config::HostSecret;
        let mut config = config(HostPolicy {
            secrets: vec![HostSecret {
                variable: "A".into(),
                name: "db".into(),
            }],
            ..HostPolicy::default()
        });
        config.env = bytes(&["A=image", "B=1"]);
        let given = |name: &str, value: &[u8]| HostInput {
            secrets: vec![Secret {
                name: name.into(),
                value: value.to_vec(),
            }],
            ..HostInput::default()
        };
        let admitted = config.clone().admit(&given("db", b"x=y")).unwrap();
        assert_eq!(admitted.env, bytes(&["B=1", "A=x=y"]));
        for (input, refused) in [
            (HostInput::default(), Refused::NoSecret("db".into())),
            (given("other", b"x"), Refused::Secret("other".into())),
            (given("db", b"a\0b"), Refused::Zero),
        ] {
            assert_eq!(config.clone().admit(&input), Err(refused));
        }
        // Neither a dump of the input nor a refusal shows a value.
        assert!(!format!("{:?}", given("db", b"value")).contains("118"));
        assert!(!format!("{:?}", given("db", b"value")).contains("value"));
    }

    #[test]
    fn requests_read_back_as_they_were() {
        let request = ExecRequest {
            token: 7,
            arguments: bytes(&["sh", "-c"]),
            standard: [3, 4, 5],
            terminal: true,
            ..ExecRequest::default()
        };
        let mut written = request.to_bytes();
        assert_eq!(ExecRequest::from_bytes(&written), Some(request));
        written.push(0);
        assert_eq!(ExecRequest::from_bytes(&written), None);
        assert_eq!(ExecRequest::from_bytes(&[0xff; 9]), None);
    }

    fn bytes(words: &[&str]) -> Vec<Vec<u8>> {
        words.iter().map(|word| word.as_bytes().to_vec()).collect()
    }

    fn config(host: HostPolicy) -> Config {
        Config {
            argv: bytes(&["server"]),
            default_arguments: bytes(&["--default"]),
            env: bytes(&["A=image", "PATH=/bin"]),
            hostname: "bulla".into(),
            host,
            ..Config::default()
        }
    }

    fn content(config: &Config, path: &str) -> String {
        let found = config
            .files
            .iter()
            .find(|file| file.path == path.as_bytes());
        String::from_utf8(found.unwrap().content.clone()).unwrap()
    }

    #[test]
    fn everything_is_closed_by_default() {
        let admit = |input: HostInput| config(HostPolicy::default()).admit(&input);
        let none = admit(HostInput::default()).unwrap();
        assert_eq!(none.argv, bytes(&["server", "--default"]));
        assert!(content(&none, "/etc/hosts").contains("localhost bulla"));
        let input = HostInput::default;
        for (input, refused) in [
            (
                HostInput {
                    arguments: Some(vec![]),
                    ..input()
                },
                Refused::Arguments,
            ),
            (
                HostInput {
                    environment: bytes(&["A=x"]),
                    ..input()
                },
                Refused::Variable("A".into()),
            ),
            (
                HostInput {
                    environment: bytes(&["LD_PRELOAD=x"]),
                    ..input()
                },
                Refused::Variable("LD_PRELOAD".into()),
            ),
            (
                HostInput {
                    environment: bytes(&["=x"]),
                    ..input()
                },
                Refused::Variable("".into()),
            ),
            (
                HostInput {
                    hostname: Some("x".into()),
                    ..input()
                },
                Refused::Hostname,
            ),
            (
                HostInput {
                    resolver: Some(vec![]),
                    ..input()
                },
                Refused::Resolver,
            ),
            (
                HostInput {
                    hosts: b"1.2.3.4 x".to_vec(),
                    ..input()
                },
                Refused::Resolver,
            ),
        ] {
            assert_eq!(admit(input).unwrap_err(), refused);
        }
        let terminal = admit(HostInput {
            terminal: true,
            ..input()
        })
        .unwrap();
        assert!(terminal.terminal);
    }

    #[test]
    fn patterns_decide_about_arguments_and_variables() {
        let policy = HostPolicy {
            arguments: Some(vec!["--port=[0-9]*".into(), "-v".into()]),
            environment: vec![HostVariable {
                name: "A".into(),
                pattern: "[a-z]*".into(),
                required: false,
            }],
            ..HostPolicy::default()
        };
        let admit = |arguments: &[&str], environment: &[&str]| {
            config(policy.clone()).admit(&HostInput {
                arguments: Some(bytes(arguments)),
                environment: bytes(environment),
                ..HostInput::default()
            })
        };
        let good = admit(&["-v", "--port=80"], &["A=host"]).unwrap();
        assert_eq!(good.argv, bytes(&["server", "-v", "--port=80"]));
        assert_eq!(good.env, bytes(&["A=host", "PATH=/bin"]));
        assert_eq!(
            admit(&["--evil"], &[]).unwrap_err(),
            Refused::Argument("--evil".into())
        );
        assert!(matches!(
            admit(&[], &["A=9"]).unwrap_err(),
            Refused::Value { .. }
        ));
        assert_eq!(admit(&["-v\0"], &[]).unwrap_err(), Refused::Zero);
        assert!(matches!(admit(&[], &["A"]), Err(Refused::Value { .. })));
    }

    #[test]
    fn what_is_required_must_be_given() {
        let policy = HostPolicy {
            environment: vec![HostVariable {
                name: "URL".into(),
                pattern: "*".into(),
                required: true,
            }],
            ..HostPolicy::default()
        };
        let refused = config(policy).admit(&HostInput::default()).unwrap_err();
        assert_eq!(refused, Refused::Required("URL".into()));
    }

    #[test]
    fn resolver_files_are_written_anew() {
        let text = b"# comment\nnameserver 10.0.0.1\nnameserver evil\nnameserver ::1 x\n\
            search a.b \xff c\noptions ndots:5 $(x) edns0\nsortlist 1.2.3.4\n\
            nameserver 1.1.1.1\nnameserver 2.2.2.2\n";
        assert_eq!(
            resolver(text),
            "nameserver 10.0.0.1\nnameserver ::1\nsearch a.b c\noptions ndots:5 edns0\n\
             nameserver 1.1.1.1\n"
        );
        let hosts = b"10.0.0.1 db db.local # x\n6.6.6.6 localhost\nx y\n::2 six localhost\n";
        assert_eq!(hosts_lines(hosts), "10.0.0.1\tdb db.local\n::2\tsix\n");
        let policy = HostPolicy {
            resolver: true,
            hostname: true,
            ..HostPolicy::default()
        };
        let admitted = config(policy).admit(&HostInput {
            resolver: Some(b"nameserver 9.9.9.9".to_vec()),
            hosts: hosts.to_vec(),
            hostname: Some("web-1".into()),
            ..HostInput::default()
        });
        let admitted = admitted.unwrap();
        assert_eq!(
            content(&admitted, "/etc/resolv.conf"),
            "nameserver 9.9.9.9\n"
        );
        assert!(content(&admitted, "/etc/hosts").ends_with("10.0.0.1\tdb db.local\n::2\tsix\n"));
        assert_eq!(content(&admitted, "/etc/hostname"), "web-1\n");
    }

    #[test]
    fn files_that_the_owner_fixed_stay() {
        let mut config = config(HostPolicy::default());
        config.files.push(FixedFile {
            path: b"/etc/hosts".to_vec(),
            content: b"mine".to_vec(),
            mode: 0o600,
        });
        let admitted = config.admit(&HostInput::default()).unwrap();
        assert_eq!(content(&admitted, "/etc/hosts"), "mine");
    }

    #[test]
    fn the_input_survives_its_serialisation() {
        let input = HostInput {
            arguments: Some(bytes(&["a", ""])),
            terminal: true,
            ..HostInput::default()
        };
        assert_eq!(
            HostInput::from_bytes(&input.to_bytes()),
            Some(input.clone())
        );
        assert_eq!(
            HostInput::from_bytes(&[&input.to_bytes()[..], b"x"].concat()),
            None
        );
    }
}
