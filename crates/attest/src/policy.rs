//! Whom to trust: `policy.toml`, and the verdict about a piece of evidence.
//!
//! Closed by default: an empty policy trusts nobody. Every acceptance of something less than
//! perfect is written down, and may end at a date. Unknown fields are errors, so that a misspelt
//! restriction does not vanish.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::bytes::{HexBytes, one_line};
use crate::collateral::{date, seconds};
use crate::quote::{EnclaveIdentity, Identity, Tee};
use crate::verdict::{Check, Verdict};
use crate::verify::{Evidence, Platform, Status};
use crate::words;

/// The largest policy that is read, in bytes.
pub const POLICY_MAX: usize = 1 << 20;

/// Why a policy cannot be used.
#[derive(Debug, Error)]
pub enum PolicyError {
    #[error("{0} bytes are too many for a policy (at most {POLICY_MAX})")]
    TooLarge(usize),
    #[error("the policy is not UTF-8 text")]
    NotText,
    #[error("the policy cannot be read: {0}")]
    Malformed(String),
}

/// Whom to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Enclaves that are accepted; one of them must match.
    pub accept: Vec<Accept>,
    pub tcb: TcbRules,
    pub platform: PlatformRules,
    /// Accept enclaves whose memory their host may read.
    pub insecure_allow_debug: bool,
    /// Accept emulated platforms, which prove nothing.
    pub insecure_allow_emulated: bool,
    /// Accept any enclave: says only that there is one.
    pub insecure_any_enclave: bool,
}

/// One enclave, or one signer's. All fields that are given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Accept {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Any of these.
    #[serde(
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub mrenclave: Vec<HexBytes<32>>,
    /// Any of these; needs `product_id` and `min_svn`.
    #[serde(
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub mrsigner: Vec<HexBytes<32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product_id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_svn: Option<u16>,
    /// Root hashes of the files: the measured configuration, shown and measured again, must have
    /// one of these. Needs `command`: the same files can be started in many ways.
    #[serde(
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub rootfs: Vec<HexBytes<32>>,
    /// With `rootfs`: the program and its arguments, as the configuration fixes them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// With `rootfs`: what the configuration may leave open or change, in the words of the verdict.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<String>,
    /// Digests of container images (SHA-256 of the image's configuration): the verifier has the
    /// image itself, and measured it.
    #[serde(
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub image: Vec<ImageDigest>,
    /// CONFIGID; all zero where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_id: Option<HexBytes<64>>,
    /// For TDX machines: MRTD, any of these.
    #[serde(
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub mrtd: Vec<HexBytes<48>>,
}

/// `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageDigest(pub [u8; 32]);

impl std::fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", HexBytes(self.0))
    }
}

impl Serialize for ImageDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text
            .strip_prefix("sha256:")
            .ok_or_else(|| D::Error::custom(format!("{text:?} does not begin with sha256:")))?;
        let digest: HexBytes<32> = digits.parse().map_err(D::Error::custom)?;
        Ok(ImageDigest(digest.0))
    }
}

/// Which security levels are good enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcbRules {
    /// Statuses beside `UpToDate`.
    pub accept: Vec<AcceptedStatus>,
    /// Advisories that may apply.
    pub advisories: Vec<AcceptedAdvisory>,
    /// Least evaluation number of the collateral: refuses older collateral that is still in date.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_evaluation_number: Option<u32>,
    /// Accept whatever advisory applies at an accepted status.
    pub insecure_any_advisory: bool,
}

/// A status that is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptedStatus {
    pub status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
}

/// An advisory that is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptedAdvisory {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
}

/// The end of an acceptance: `2027-01-31` (the beginning of that day, UTC) or an RFC 3339 time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Until(pub u64);

impl Serialize for Until {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&date(self.0))
    }
}

impl<'de> Deserialize<'de> for Until {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        seconds(&text)
            .or_else(|| seconds(&format!("{text}T00:00:00Z")))
            .map(Until)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no date; write \"2027-01-31\"")))
    }
}

/// Which machines are good enough. A list that is given must contain the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlatformRules {
    #[serde(
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub fmspc: Vec<HexBytes<6>>,
    #[serde(
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ppid: Vec<HexBytes<16>>,
    #[serde(
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub qe_id: Vec<HexBytes<16>>,
    /// SHA-256 of root certificates of emulated platforms: if given, others are refused even
    /// where `insecure_allow_emulated` is set.
    #[serde(
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub emulated_root: Vec<HexBytes<32>>,
    /// Refuse machines that have hyper-threading on, or do not say.
    pub refuse_hyperthreading: bool,
}

/// `x = "…"` and `x = ["…", "…"]`. An empty list is refused: it would read as "none" and act as
/// "any".
fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Visitor<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a string, or a list of strings")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            let text = serde::de::value::StrDeserializer::new(text);
            Ok(vec![T::deserialize(text)?])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut values = Vec::new();
            while let Some(value) = list.next_element()? {
                values.push(value);
            }
            if values.is_empty() {
                return Err(A::Error::custom(
                    "the list is empty; leave the field out instead",
                ));
            }
            Ok(values)
        }
    }
    deserializer.deserialize_any(Visitor(std::marker::PhantomData))
}

/// What is known of a container beside its quote: its measured configuration, which was measured
/// again and gave the MRENCLAVEs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disclosed {
    pub mrenclaves: Vec<HexBytes<32>>,
    pub rootfs: HexBytes<32>,
    /// The program and its fixed arguments.
    pub command: Vec<String>,
    /// Whatever else could make these files act differently: what the host may set, files that are
    /// replaced, unusual environment variables, insecure options.
    pub open: Vec<String>,
    /// Only where the verifier has measured the image itself; then nothing else is open.
    pub image: Option<String>,
}

/// One line: where it is, what is wrong, and which name was probably meant.
fn explain(text: &str, error: &toml::de::Error) -> String {
    let message = one_line(error.message());
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(String::new(), |before| {
        format!("line {}: ", before.matches('\n').count() + 1)
    });
    // serde: "unknown field `x`, expected one of `a`, `b`".
    let mut names = message.split('`').skip(1).step_by(2);
    let wrong = names
        .next()
        .filter(|_| message.starts_with("unknown "))
        .unwrap_or("");
    let meant = names
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .filter(|(distance, _)| *distance <= 1 + wrong.len() / 4)
        .min_by_key(|(distance, _)| *distance);
    match meant {
        Some((_, name)) => {
            let kind = message.split('`').next().unwrap_or("").trim();
            format!("{line}{kind} `{wrong}`: did you mean `{name}`?")
        }
        None => format!("{line}{message}"),
    }
}

impl Policy {
    /// Reads `policy.toml`.
    pub fn from_toml(bytes: &[u8]) -> Result<Policy, PolicyError> {
        if bytes.len() > POLICY_MAX {
            return Err(PolicyError::TooLarge(bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| PolicyError::NotText)?;
        let policy: Policy =
            toml::from_str(text).map_err(|error| PolicyError::Malformed(explain(text, &error)))?;
        policy.check()?;
        Ok(policy)
    }

    fn check(&self) -> Result<(), PolicyError> {
        let refuse = |text: String| Err(PolicyError::Malformed(text));
        for (index, accept) in self.accept.iter().enumerate() {
            let name = accept
                .name
                .clone()
                .unwrap_or_else(|| format!("number {}", index + 1));
            let pinned = !accept.mrenclave.is_empty() || !accept.mrtd.is_empty();
            if !pinned
                && accept.mrsigner.is_empty()
                && accept.rootfs.is_empty()
                && accept.image.is_empty()
            {
                return refuse(format!(
                    "[[accept]] {name} names no enclave; give mrenclave, rootfs, image, or mrsigner with product_id and min_svn"
                ));
            }
            if !accept.mrsigner.is_empty()
                && (accept.product_id.is_none() || accept.min_svn.is_none())
            {
                return refuse(format!(
                    "[[accept]] {name} gives mrsigner without product_id and min_svn: everything that signer ever signs would be accepted"
                ));
            }
            if !accept.rootfs.is_empty() && !pinned && accept.command.is_empty() {
                return refuse(format!(
                    "[[accept]] {name} gives rootfs without command: any program of those files would be accepted"
                ));
            }
            if accept.rootfs.is_empty() && !(accept.command.is_empty() && accept.open.is_empty()) {
                return refuse(format!(
                    "[[accept]] {name} gives command or open without rootfs, which they belong to"
                ));
            }
            let enclave = !accept.mrenclave.is_empty()
                || !accept.mrsigner.is_empty()
                || !accept.rootfs.is_empty()
                || !accept.image.is_empty();
            if !accept.mrtd.is_empty() && enclave {
                return refuse(format!(
                    "[[accept]] {name} is both an enclave and a TDX machine"
                ));
            }
        }
        if let Some(odd) = self.tcb.advisories.iter().find(|accepted| {
            let number = accepted.id.strip_prefix("INTEL-SA-").unwrap_or("");
            number.len() < 5 || !number.bytes().all(|byte| byte.is_ascii_digit())
        }) {
            return refuse(format!(
                "{:?} is no advisory's number; write it as in \"INTEL-SA-00615\"",
                odd.id
            ));
        }
        if self
            .tcb
            .accept
            .iter()
            .any(|accepted| accepted.status == Status::Revoked)
        {
            return refuse("a revoked TCB level cannot be accepted".into());
        }
        Ok(())
    }

    /// Judges genuine evidence. `disclosed` is what else is known of the container.
    pub fn judge(&self, evidence: &Evidence, disclosed: Option<&Disclosed>, now: u64) -> Verdict {
        let mut verdict = Verdict::new(now);
        verdict.limit(evidence.collateral_until);
        verdict.push(Check {
            check: "quote",
            value: match evidence.tee {
                Tee::Sgx => "genuine SGX quote".into(),
                Tee::Tdx => "genuine TDX quote".into(),
            },
            rule: "signed by a certified platform".into(),
            pass: true,
            meaning: "signatures, chains, revocation and dates are in order".into(),
            remedy: String::new(),
        });
        verdict.push(self.judge_platform(evidence));
        if let Some(disclosed) = disclosed {
            verdict.push(judge_disclosed(evidence, disclosed));
        }
        verdict.push(self.judge_identity(evidence, disclosed));
        verdict.push(self.judge_debug(evidence));
        let (status, limit) = self.judge_status(evidence, now);
        verdict.push(status);
        limit.into_iter().for_each(|limit| verdict.limit(limit));
        for id in &evidence.tcb.advisories {
            let (check, limit) = self.judge_advisory(id, now);
            verdict.push(check);
            limit.into_iter().for_each(|limit| verdict.limit(limit));
        }
        self.judge_number(evidence)
            .into_iter()
            .for_each(|check| verdict.push(check));
        self.judge_machine(evidence, &mut verdict);
        verdict.evidence = Some(evidence.clone());
        verdict
    }

    fn judge_platform(&self, evidence: &Evidence) -> Check {
        let (value, pass, meaning) = match evidence.platform {
            Platform::Hardware => ("hardware", true, "certified by Intel's root"),
            Platform::Emulated => {
                let roots = &self.platform.emulated_root;
                let known = roots.is_empty() || roots.contains(&evidence.root);
                (
                    "emulated",
                    self.insecure_allow_emulated && known,
                    "software that anyone can run: its quotes prove nothing",
                )
            }
        };
        Check {
            check: "platform",
            value: value.into(),
            rule: if self.insecure_allow_emulated {
                "hardware, or emulated (insecure_allow_emulated)".into()
            } else {
                "hardware".into()
            },
            pass,
            meaning: meaning.into(),
            remedy: "run on a machine with SGX; for tests set insecure_allow_emulated = true (and the root in platform.emulated_root, if it is listed there)".into(),
        }
    }

    fn judge_identity(&self, evidence: &Evidence, disclosed: Option<&Disclosed>) -> Check {
        let matching = self.accept.iter().find(|accept| match &evidence.identity {
            Identity::Enclave(enclave) => accept.matches_enclave(enclave, disclosed),
            Identity::Machine(machine) => accept.mrtd.contains(&machine.mr_td),
        });
        let value = match &evidence.identity {
            Identity::Enclave(enclave) => format!(
                "mrenclave {}, mrsigner {}, product {}, svn {}",
                enclave.mrenclave, enclave.mrsigner, enclave.isv_prod_id, enclave.isv_svn
            ),
            Identity::Machine(machine) => format!("mrtd {}", machine.mr_td),
        };
        let rule = if self.accept.is_empty() {
            if self.insecure_any_enclave {
                "any enclave (insecure_any_enclave)".into()
            } else {
                "none is accepted: the policy has no [[accept]]".into()
            }
        } else {
            let rules: Vec<String> = self.accept.iter().map(Accept::describe).collect();
            rules.join("; or ")
        };
        let pass = matching.is_some() || self.insecure_any_enclave;
        let meaning = match matching {
            Some(accept) => match &accept.name {
                Some(name) => format!("this is {name}"),
                None => "this is the software that the policy names".into(),
            },
            None if pass => "it may be any software at all".into(),
            None => "this is not the software that the policy names".into(),
        };
        let unseen = disclosed.is_none()
            && self
                .accept
                .iter()
                .any(|accept| !accept.rootfs.is_empty() || !accept.image.is_empty());
        Check {
            check: "enclave",
            value,
            rule,
            pass,
            meaning,
            remedy: if unseen {
                "a rule names files or an image: show the configuration with --configuration FILE (from `bulla measure --configuration`), or the image with --image".into()
            } else {
                "compare with `bulla measure IMAGE`; if this software is meant, put its mrenclave into [[accept]]".into()
            },
        }
    }

    fn judge_debug(&self, evidence: &Evidence) -> Check {
        let debug = evidence.identity.debug();
        Check {
            check: "debug",
            value: if debug {
                "debuggable".into()
            } else {
                "production".into()
            },
            rule: if self.insecure_allow_debug {
                "any (insecure_allow_debug)".into()
            } else {
                "production".into()
            },
            pass: !debug || self.insecure_allow_debug,
            meaning: if debug {
                "its host can read and change its memory".into()
            } else if evidence.platform == Platform::Emulated {
                "not a debug enclave (an emulated one is readable all the same)".into()
            } else {
                "its host cannot read its memory".into()
            },
            remedy: "sign and run it without debug; for tests set insecure_allow_debug = true"
                .into(),
        }
    }

    fn judge_status(&self, evidence: &Evidence, now: u64) -> (Check, Option<u64>) {
        let status = evidence.tcb.status;
        let accepted = self
            .tcb
            .accept
            .iter()
            .filter(|accepted| accepted.status == status)
            .max_by_key(|accepted| accepted.until.map_or(u64::MAX, |until| until.0));
        let (pass, limit, rule) = match (status, accepted) {
            (Status::Revoked, _) => (false, None, "never".to_string()),
            (Status::UpToDate, _) => (true, None, "UpToDate".to_string()),
            (_, None) => (false, None, "UpToDate".to_string()),
            (_, Some(AcceptedStatus { until: None, .. })) => {
                (true, None, format!("{status} is accepted"))
            }
            (
                _,
                Some(AcceptedStatus {
                    until: Some(until), ..
                }),
            ) => (
                now < until.0,
                Some(until.0),
                format!("{status} is accepted until {}", date(until.0)),
            ),
        };
        let check = Check {
            check: "tcb status",
            value: format!("{status}, level of {}", date(evidence.tcb.level_date)),
            rule,
            pass,
            meaning: words::meaning(status).into(),
            remedy: words::remedy(status).into(),
        };
        (check, limit)
    }

    fn judge_advisory(&self, id: &str, now: u64) -> (Check, Option<u64>) {
        let accepted = self
            .tcb
            .advisories
            .iter()
            .filter(|accepted| accepted.id == id)
            .max_by_key(|accepted| accepted.until.map_or(u64::MAX, |until| until.0));
        let (pass, limit, rule) = match accepted {
            _ if self.tcb.insecure_any_advisory => {
                (true, None, "any (insecure_any_advisory)".to_string())
            }
            None => (false, None, "not accepted".to_string()),
            Some(AcceptedAdvisory { until: None, .. }) => (true, None, "accepted".to_string()),
            Some(AcceptedAdvisory {
                until: Some(until), ..
            }) => (
                now < until.0,
                Some(until.0),
                format!("accepted until {}", date(until.0)),
            ),
        };
        let check = Check {
            check: "advisory",
            value: id.into(),
            rule,
            pass,
            meaning: words::advisory(id),
            remedy: format!(
                "if it is acceptable, add {{id = \"{id}\", until = DATE}} to [tcb].advisories"
            ),
        };
        (check, limit)
    }

    fn judge_number(&self, evidence: &Evidence) -> Option<Check> {
        let least = self.tcb.min_evaluation_number?;
        let number = evidence.tcb.evaluation_number;
        Some(Check {
            check: "evaluation number",
            value: number.to_string(),
            rule: format!("at least {least}"),
            pass: number >= least,
            meaning: "how new Intel's judgement is that the collateral contains".into(),
            remedy: "fetch the collateral again, with update=early where the service offers it"
                .into(),
        })
    }

    fn judge_machine(&self, evidence: &Evidence, verdict: &mut Verdict) {
        let machine = &evidence.machine;
        let mut pin = |check: &'static str, value: String, listed: Vec<String>| {
            if listed.is_empty() {
                return;
            }
            verdict.push(Check {
                pass: listed.contains(&value),
                check,
                rule: listed.join(" or "),
                value,
                meaning: "which machine it is".into(),
                remedy: "if this machine is meant, add it to [platform]".into(),
            });
        };
        let rules = &self.platform;
        let text = |list: &[HexBytes<16>]| list.iter().map(ToString::to_string).collect();
        let fmspc = rules.fmspc.iter().map(ToString::to_string).collect();
        pin("fmspc", machine.fmspc.to_string(), fmspc);
        pin("ppid", machine.ppid.clone(), text(&rules.ppid));
        pin("qe id", machine.qe_id.to_string(), text(&rules.qe_id));
        if rules.refuse_hyperthreading {
            verdict.push(Check {
                check: "hyper-threading",
                value: match machine.hyperthreading {
                    Some(true) => "on".into(),
                    Some(false) => "off".into(),
                    None => "not said".into(),
                },
                rule: "off".into(),
                pass: machine.hyperthreading == Some(false),
                meaning: "another thread of the same core can observe the enclave".into(),
                remedy: "switch it off in the BIOS, or drop platform.refuse_hyperthreading".into(),
            });
        }
    }
}

/// What was shown must be this enclave's, even where no rule asks for it.
fn judge_disclosed(evidence: &Evidence, disclosed: &Disclosed) -> Check {
    let own = match &evidence.identity {
        Identity::Enclave(enclave) => disclosed.mrenclaves.contains(&enclave.mrenclave),
        Identity::Machine(_) => false,
    };
    let mut value = format!(
        "files {}, command {:?}",
        disclosed.rootfs, disclosed.command
    );
    if let Some(image) = &disclosed.image {
        value = format!("image {image}, {value}");
    }
    for item in &disclosed.open {
        value = format!("{value}; open: {item}");
    }
    Check {
        check: "configuration",
        value,
        rule: "measures to the enclave's MRENCLAVE".into(),
        pass: own,
        meaning: if own {
            "this is what the enclave was started with".into()
        } else {
            "it is another enclave's: the peer runs something else".into()
        },
        remedy: "show the peer's own configuration, made by the same version of bulla with the same options".into(),
    }
}

impl Accept {
    fn matches_enclave(&self, enclave: &EnclaveIdentity, disclosed: Option<&Disclosed>) -> bool {
        if !self.mrtd.is_empty() {
            return false;
        }
        // The configuration counts only if it is this enclave's.
        let disclosed =
            disclosed.filter(|disclosed| disclosed.mrenclaves.contains(&enclave.mrenclave));
        let among =
            |list: &[HexBytes<32>], value: &HexBytes<32>| list.is_empty() || list.contains(value);
        let pinned = !self.mrenclave.is_empty()
            || !self.mrsigner.is_empty()
            || !self.rootfs.is_empty()
            || !self.image.is_empty();
        let rootfs = self.rootfs.is_empty()
            || disclosed.is_some_and(|disclosed| {
                self.rootfs.contains(&disclosed.rootfs)
                    && (self.command.is_empty() || self.command == disclosed.command)
                    && disclosed.open.iter().all(|item| self.open.contains(item))
            });
        let image = self.image.is_empty()
            || disclosed
                .and_then(|disclosed| disclosed.image.clone())
                .is_some_and(|image| self.image.iter().any(|digest| digest.to_string() == image));
        pinned
            && among(&self.mrenclave, &enclave.mrenclave)
            && among(&self.mrsigner, &enclave.mrsigner)
            && self.product_id.is_none_or(|id| id == enclave.isv_prod_id)
            && self.min_svn.is_none_or(|least| enclave.isv_svn >= least)
            && self.config_id.unwrap_or(HexBytes([0; 64])) == enclave.config_id
            && rootfs
            && image
    }

    fn describe(&self) -> String {
        let mut parts = Vec::new();
        let mut list = |name: &str, values: Vec<String>| {
            if !values.is_empty() {
                parts.push(format!("{name} {}", values.join(" or ")));
            }
        };
        let text = |values: &[HexBytes<32>]| values.iter().map(ToString::to_string).collect();
        list("mrenclave", text(&self.mrenclave));
        list("mrsigner", text(&self.mrsigner));
        list(
            "product",
            self.product_id.iter().map(ToString::to_string).collect(),
        );
        list(
            "svn at least",
            self.min_svn.iter().map(ToString::to_string).collect(),
        );
        list("rootfs", text(&self.rootfs));
        if !self.command.is_empty() {
            list("command", vec![format!("{:?}", self.command)]);
        }
        list(
            "image",
            self.image.iter().map(ToString::to_string).collect(),
        );
        list("mrtd", self.mrtd.iter().map(ToString::to_string).collect());
        parts.join(", ")
    }
}
