//! SCONE sessions become a coordinator manifest: services are marbles, secrets are secrets,
//! `$$SCONE::NAME$$` becomes a template. Measurements are another runtime's, so packages must be
//! filled in.

use super::{Imported, Taker, pretty, text};
use serde_json::{Map, Value, json};

struct Session {
    manifest: Value,
    notes: Vec<String>,
}

pub fn import(session: &Value) -> Result<Imported, String> {
    let mut top = Taker::new("", session).ok_or("not a mapping")?;
    let services = top.list("services");
    if services.is_empty() {
        return Err("services is missing: is this a SCONE session?".to_owned());
    }
    let mut out = Session {
        manifest: json!({"Packages": {}, "Marbles": {}}),
        notes: Vec::new(),
    };
    let name = top.text("name").unwrap_or_default();
    if !name.is_empty() {
        out.note(format!(
            "name: {name}: set the manifest in a namespace, such as `--namespace {}`",
            namespace(&name)
        ));
    }
    top.take("version");
    top.explain(
        "predecessor",
        "is a session's hash; set Config.Predecessor to the SHA-256 of the manifest to replace",
        &mut out.notes,
    );
    top.explain(
        "namespace_hash",
        "namespaces are named, not hashed",
        &mut out.notes,
    );
    top.explain(
        "salt",
        "not needed: fingerprints are of the whole text",
        &mut out.notes,
    );
    let secrets = top.list("secrets");
    for (index, secret) in secrets.iter().enumerate() {
        out.secret(index, secret);
    }
    let security = top.below("security").map(|security| out.security(security));
    let images = top.list("images");
    for (index, service) in services.iter().enumerate() {
        out.service(index, service, &images, security.as_ref());
    }
    out.images(&images);
    for (index, volume) in top.list("volumes").iter().enumerate() {
        let name = volume["name"].as_str().unwrap_or_default();
        out.note(format!(
            "volumes[{index}]: {name}: is the container's: `[[mounts]] type = \"volume\"` in \
             bulla.toml; a volume that SCONE wrote cannot be read"
        ));
    }
    if let Some(policy) = top.below("access_policy") {
        out.access(policy);
    }
    if !top.list("creator").is_empty() {
        out.note("creator: is whoever sets the manifest (`bulla coordinator --owner-certificate`)");
    }
    top.rest(&mut out.notes);
    Ok(Imported {
        text: pretty(&out.manifest)?,
        notes: out.notes,
    })
}

/// A namespace's labels are those of DNS.
fn namespace(name: &str) -> String {
    let cleaned: String = name
        .to_lowercase()
        .replace('/', ".")
        .chars()
        .map(|c| match c {
            'a'..='z' | '0'..='9' | '.' => c,
            _ => '-',
        })
        .collect();
    cleaned.trim_matches(['-', '.']).to_owned()
}

/// A name that can stand in a template's field.
fn field(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect()
}

impl Session {
    fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn put(&mut self, section: &str, name: &str, value: Value) {
        self.manifest[section][name] = value;
    }

    fn secret(&mut self, index: usize, secret: &Value) {
        let Some(mut secret) = Taker::new(&format!("secrets[{index}]"), secret) else {
            return self.note(format!("secrets[{index}]: is no mapping, left out"));
        };
        let name = secret.text("name").unwrap_or_default();
        let path = format!("secrets[{index}] {name}");
        let id = field(&name);
        if id != name {
            self.note(format!(
                "{path}: is called {id} here, so that templates can name it"
            ));
        }
        let kind = secret.text("kind").unwrap_or_else(|| "ascii".to_owned());
        let size = secret.number("size");
        let has_value = ["value", "content"]
            .map(|key| secret.take(key).is_some())
            .contains(&true);
        let bits = size.unwrap_or(32) * 8;
        let mut spec = match kind.as_str() {
            "ascii" | "binary" if has_value => {
                self.note(format!(
                    "{path}: its value is left out, so that it is in no manifest: give it with \
                     `bulla secret set`"
                ));
                json!({"Type": "plain", "UserDefined": true})
            }
            "ascii" | "binary" => {
                if kind == "ascii" {
                    self.note(format!(
                        "{path}: a generated text became {bits} random bits; templates show it \
                         with hex or base64"
                    ));
                }
                json!({"Type": "symmetric-key", "Size": bits, "Shared": true, "Hidden": true})
            }
            "private-key" | "x509" | "x509-ca" => self.certificate(&path, &kind, &mut secret),
            other => {
                self.note(format!("{path}: kind {other} has no equivalent, left out"));
                return;
            }
        };
        if has_value && spec["Type"] != "plain" {
            self.note(format!(
                "{path}: its value is left out: give it with `bulla secret set` (UserDefined)"
            ));
            spec["UserDefined"] = true.into();
            if let Some(spec) = spec.as_object_mut() {
                spec.remove("Shared");
            }
        }
        let exports: Vec<Value> = secret
            .list("export")
            .iter()
            .filter_map(|to| to.as_str().or_else(|| to["session"].as_str()))
            .map(|to| namespace(to).into())
            .collect();
        if !exports.is_empty() {
            spec["Export"] = exports.into();
        }
        if secret.flag("export_public") == Some(true) {
            self.note(format!(
                "{path}: export_public has no equivalent: the root is public \
                 (`bulla certificate`), certificates are given to marbles"
            ));
        }
        if let Some(mut import) = secret.below("import") {
            let from = import.text("session").unwrap_or_default();
            let theirs = import.text("secret").unwrap_or_else(|| name.clone());
            spec = json!({
                "Type": spec["Type"],
                "Import": {"Namespace": namespace(&from), "Secret": field(&theirs)},
            });
            import.rest(&mut self.notes);
        }
        secret.rest(&mut self.notes);
        self.put("Secrets", &id, spec);
    }

    fn certificate(&mut self, path: &str, kind: &str, secret: &mut Taker) -> Value {
        let key = secret.text("key_type").unwrap_or_default().to_lowercase();
        let mut spec = match key.as_str() {
            "ed25519" => json!({"Type": "cert-ed25519"}),
            "p-384" | "p384" => json!({"Type": "cert-ecdsa", "Size": 384}),
            "rsa" => json!({"Type": "cert-rsa", "Size": 3072}),
            _ => json!({"Type": "cert-ecdsa", "Size": 256}),
        };
        spec["Shared"] = true.into();
        if kind == "private-key" {
            self.note(format!(
                "{path}: keys come with a certificate; templates take .Private and .Public"
            ));
            return spec;
        }
        let mut cert = Map::new();
        if let Some(name) = secret.text("common_name") {
            cert.insert("Subject".into(), json!({"CommonName": name}));
        }
        let names = secret.list("dns");
        if !names.is_empty() {
            cert.insert("DNSNames".into(), names.into());
        }
        if kind == "x509-ca" {
            cert.insert("IsCA".into(), true.into());
        }
        match secret.text("endpoint").as_deref() {
            Some("server") => cert.insert("ExtKeyUsage".into(), json!([1])),
            Some("client") => cert.insert("ExtKeyUsage".into(), json!([2])),
            _ => None,
        };
        if !cert.is_empty() {
            spec["Cert"] = cert.into();
        }
        if let Some(life) = secret.text("valid_for") {
            match life
                .strip_suffix('d')
                .unwrap_or(&life)
                .trim()
                .parse::<u32>()
            {
                Ok(days) => spec["ValidFor"] = days.into(),
                Err(_) => self.note(format!("{path}: valid_for {life}: write days in ValidFor")),
            }
        }
        if let Some(issuer) = secret.text("issuer") {
            self.note(format!(
                "{path}: issuer {issuer}: certificates are signed by the namespace's own CA"
            ));
        }
        if secret.take("private_key").is_some() {
            self.note(format!(
                "{path}: private_key: the key is made with the certificate"
            ));
        }
        spec
    }

    /// `$$SCONE::NAME:format$$` as a template of ours; the second is whether there was any.
    fn template(&mut self, path: &str, text: &str, is_file: bool) -> (String, bool) {
        let mut out = String::new();
        let mut rest = text;
        let mut found = false;
        while let Some(start) = rest.find("$$SCONE::") {
            let (before, after) = rest.split_at(start);
            let Some(end) = after[9..].find("$$") else {
                break;
            };
            let (name, format) = after[9..9 + end]
                .split_once(':')
                .unwrap_or((&after[9..9 + end], ""));
            found = true;
            out += before;
            out += &self.expression(path, name, format, is_file);
            rest = &after[9 + end + 2..];
        }
        out += rest;
        (out, found)
    }

    fn expression(&mut self, path: &str, name: &str, format: &str, is_file: bool) -> String {
        let (name, part) = match name.rsplit_once('.') {
            Some((name, part @ ("key" | "crt" | "chain"))) => (name, part),
            _ => (name, ""),
        };
        let spec = &self.manifest["Secrets"][field(name)];
        let kind = spec["Type"].as_str().unwrap_or_default().to_owned();
        let name = field(name);
        if kind.is_empty() {
            self.note(format!(
                "{path}: $$SCONE::{name}$$: there is no such secret"
            ));
        }
        if format == "chain" || part == "chain" || format == "pkcs12" {
            self.note(format!(
                "{path}: {name}: format chain or pkcs12 has no equivalent: only the certificate"
            ));
        }
        match (kind.as_str(), format) {
            ("plain", _) if is_file => format!("{{{{ raw .Secrets.{name} }}}}"),
            ("plain", _) => format!("{{{{ string .Secrets.{name} }}}}"),
            ("symmetric-key", "base64") => format!("{{{{ base64 .Secrets.{name} }}}}"),
            ("symmetric-key", "binary" | "raw") if is_file => {
                format!("{{{{ raw .Secrets.{name} }}}}")
            }
            ("symmetric-key", _) => format!("{{{{ hex .Secrets.{name} }}}}"),
            _ if part == "key" || format == "privatekey" || format == "key" => {
                format!("{{{{ pem .Secrets.{name}.Private }}}}")
            }
            _ => format!("{{{{ pem .Secrets.{name}.Cert }}}}"),
        }
    }

    fn service(
        &mut self,
        index: usize,
        service: &Value,
        images: &[Value],
        security: Option<&Security>,
    ) {
        let Some(mut service) = Taker::new(&format!("services[{index}]"), service) else {
            return self.note(format!("services[{index}]: is no mapping, left out"));
        };
        let name = service
            .text("name")
            .unwrap_or_else(|| format!("service{index}"));
        let path = format!("services[{index}] {name}");
        let mut package = match security {
            Some(security) => security.package.clone(),
            None => json!({}),
        };
        let mut ids = service.list("mrenclaves");
        let mut signer = None;
        for entry in service.list("attestation") {
            match &entry["mrenclave"] {
                Value::Array(list) => ids.extend(list.iter().cloned()),
                Value::Null => {}
                one => ids.push(one.clone()),
            }
            if entry["signer"].is_object() {
                signer = Some(entry["signer"].clone());
            }
        }
        match (signer, ids.is_empty()) {
            (Some(signer), true) => {
                package["SignerID"] = signer["mrsigner"].clone();
                package["ProductID"] = match &signer["isvprodid"] {
                    Value::Null => json!(0),
                    id => id.clone(),
                };
                package["SecurityVersion"] = [&signer["isvsvn_min"], &signer["isvsvn"]]
                    .into_iter()
                    .find(|version| !version.is_null())
                    .cloned()
                    .unwrap_or(json!(0));
                if !signer["isvsvn_max"].is_null() {
                    self.note(format!(
                        "{path}: isvsvn_max has no equivalent: versions only rise"
                    ));
                }
            }
            _ => {
                package["UniqueIDs"] = ids.into();
                self.note(format!(
                    "{path}: Packages.{name}.UniqueIDs are SCONE's enclaves: put what `bulla \
                     measure` prints for the image"
                ));
            }
        }
        self.put("Packages", &name, package);
        let mut env = Map::new();
        for (key, value) in service
            .below("environment")
            .map(|env| env.entries().collect::<Vec<_>>())
            .unwrap_or_default()
        {
            let value = text(&value);
            if value.contains("@@") || value.contains("\\@\\@") {
                self.note(format!(
                    "{path}: environment.{key}: values of the host are bulla.toml's: `{key} = \
                     {{ host = true }}`"
                ));
                continue;
            }
            let (value, _) = self.template(&path, &value, false);
            env.insert(key, value.into());
        }
        let mut argv = Vec::new();
        if let Some(command) = service.take("command") {
            let words: Vec<String> = match &command {
                Value::Array(list) => list.iter().map(text).collect(),
                other => text(other).split_whitespace().map(str::to_owned).collect(),
            };
            for word in words {
                if word.starts_with("@@") {
                    self.note(format!(
                        "{path}: command: {word}: arguments of the host are bulla.toml's \
                         ([arguments])"
                    ));
                    continue;
                }
                if word.contains("$$SCONE::") {
                    self.note(format!(
                        "{path}: command: {word}: arguments hold no secrets here; use a variable \
                         or a file"
                    ));
                }
                argv.push(Value::from(word));
            }
        }
        let image = service.text("image_name");
        let files = image
            .as_ref()
            .map(|image| self.files(image, images))
            .unwrap_or_default();
        let mut parameters = json!({});
        for (key, value, is_empty) in [
            ("Env", Value::from(env.clone()), env.is_empty()),
            ("Argv", Value::from(argv.clone()), argv.is_empty()),
            ("Files", Value::from(files.clone()), files.is_empty()),
        ] {
            if !is_empty {
                parameters[key] = value;
            }
        }
        self.put(
            "Marbles",
            &name,
            json!({"Package": name, "Parameters": parameters}),
        );
        if let Some(directory) = service.text("pwd") {
            self.note(format!(
                "{path}: pwd: `workdir = \"{directory}\"` in bulla.toml"
            ));
        }
        for (key, reason) in [
            (
                "fspf_path",
                "the image is always verified; there is no fspf file",
            ),
            (
                "fspf_key",
                "the image is always verified; there is no fspf file",
            ),
            (
                "fspf_tag",
                "the image is always verified; there is no fspf file",
            ),
            (
                "platforms",
                "use Infrastructures, or `bulla revoke --platform`",
            ),
        ] {
            service.explain(key, reason, &mut self.notes);
        }
        service.rest(&mut self.notes);
    }

    /// The files that an image's services get.
    fn files(&mut self, image: &str, images: &[Value]) -> Map<String, Value> {
        let mut files = Map::new();
        let of_image = images.iter().filter(|entry| entry["name"] == image);
        for file in of_image.flat_map(|i| i["injection_files"].as_array().into_iter().flatten()) {
            let path = text(&file["path"]);
            let (content, _) = self.template(
                &format!("image {image}: {path}"),
                file["content"].as_str().unwrap_or_default(),
                true,
            );
            files.insert(path, content.into());
        }
        files
    }

    fn images(&mut self, images: &[Value]) {
        for (index, image) in images.iter().enumerate() {
            let Some(mut image) = Taker::new(&format!("images[{index}]"), image) else {
                continue;
            };
            image.take("name");
            for (at, file) in image.list("injection_files").iter().enumerate() {
                if let Some(mut file) =
                    Taker::new(&format!("images[{index}].injection_files[{at}]"), file)
                {
                    file.take("path");
                    file.take("content");
                    file.explain("mode", "files have mode 0600", &mut self.notes);
                    file.rest(&mut self.notes);
                }
            }
            image.explain(
                "volumes",
                "are the container's: [[mounts]] in bulla.toml",
                &mut self.notes,
            );
            image.explain("mrenclaves", "belong into Packages", &mut self.notes);
            image.explain("tags", "the image is always verified", &mut self.notes);
            image.rest(&mut self.notes);
        }
    }

    fn security(&mut self, mut security: Taker) -> Security {
        let mut package = json!({});
        let mut statuses: Vec<Value> = Vec::new();
        if let Some(mut attestation) = security.below("attestation") {
            match attestation.text("mode").as_deref() {
                None | Some("hardware") => {}
                Some("none") => {
                    package["InsecureAllowEmulated"] = true.into();
                    self.note(
                        "security.attestation.mode: none: there is no marble without a quote; \
                         emulated ones are let in (InsecureAllowEmulated)",
                    );
                }
                Some(other) => self.note(format!(
                    "security.attestation.mode: {other} has no equivalent: quotes are DCAP's"
                )),
            }
            for tolerated in attestation.list("tolerate") {
                match tolerated.as_str().unwrap_or_default() {
                    "debug-mode" => package["Debug"] = true.into(),
                    "software-hardening-needed" => statuses.push("SWHardeningNeeded".into()),
                    "insecure-configuration" | "hyperthreading" => {
                        statuses.push("ConfigurationNeeded".into());
                        statuses.push("ConfigurationAndSWHardeningNeeded".into());
                    }
                    "outdated-tcb" => {
                        statuses.push("OutOfDate".into());
                        statuses.push("OutOfDateConfigurationNeeded".into());
                    }
                    other => self.note(format!(
                        "security.attestation.tolerate: {other} has no equivalent, left out"
                    )),
                }
            }
            statuses.dedup();
            let advisories = attestation.list("ignore_advisories");
            if !advisories.is_empty() {
                package["AcceptedAdvisories"] = advisories.into();
            }
            attestation.rest(&mut self.notes);
        }
        if !statuses.is_empty() {
            package["AcceptedTCBStatuses"] = statuses.into();
        }
        security.rest(&mut self.notes);
        Security { package }
    }

    fn access(&mut self, mut policy: Taker) {
        for right in ["read", "update"] {
            for entry in policy.list(right) {
                self.grant(right, &entry);
            }
        }
        policy.explain(
            "create_sessions",
            "who may update a manifest may make namespaces below it",
            &mut self.notes,
        );
        policy.explain(
            "list_sessions",
            "who may update the default manifest may list namespaces",
            &mut self.notes,
        );
        policy.rest(&mut self.notes);
    }

    fn grant(&mut self, right: &str, entry: &Value) {
        match entry {
            Value::String(word) if word.contains("-----BEGIN CERTIFICATE-----") => {
                self.user(right, word);
            }
            Value::String(word) => match word.as_str() {
                "NONE" if right == "read" => self.manifest["Config"]["ManifestReaders"] = json!([]),
                "NONE" => {}
                "CREATOR" => self.note(format!(
                    "access_policy.{right}: CREATOR: name the creator's certificate in Users"
                )),
                "ANY" if right == "read" => {}
                other => self.note(format!(
                    "access_policy.{right}: {other}: has no equivalent: name a certificate in Users"
                )),
            },
            Value::Object(board) => {
                let Some((name, members)) = board.iter().next() else {
                    return;
                };
                let threshold: u64 = match name.as_str() {
                    "require-all" => 0,
                    other => match other
                        .strip_prefix("require-at-least-")
                        .and_then(|count| count.parse().ok())
                    {
                        Some(count) => count,
                        None => {
                            return self.note(format!(
                                "access_policy.{right}: {other}: has no equivalent, left out"
                            ));
                        }
                    },
                };
                let mut users = Vec::new();
                for member in members.as_array().into_iter().flatten() {
                    match member.as_str() {
                        Some(pem) if pem.contains("-----BEGIN CERTIFICATE-----") => {
                            users.push(self.user(right, pem));
                        }
                        _ => self.note(format!(
                            "access_policy.{right}: {name}: a member that is no certificate; \
                             name one in Users"
                        )),
                    }
                }
                users.dedup();
                if users.is_empty() {
                    return;
                }
                let board = format!("{right}-board");
                self.put(
                    "Boards",
                    &board,
                    json!({"Members": users, "Threshold": threshold}),
                );
                match right {
                    "update" => self.manifest["Config"]["UpdateBoards"] = json!([board]),
                    _ => self.note(format!(
                        "access_policy.read: became Boards.{board}; name it in ReadBoards of each \
                         secret that it watches over"
                    )),
                }
            }
            other => self.note(format!(
                "access_policy.{right}: {}: has no equivalent, left out",
                text(other)
            )),
        }
    }

    /// The user with a certificate, made if need be.
    fn user(&mut self, right: &str, pem: &str) -> String {
        let users = self.manifest["Users"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        let known = users
            .iter()
            .find(|(_, user)| user["Certificate"] == pem)
            .map(|(name, _)| name.clone());
        let name = known.unwrap_or_else(|| format!("user{}", users.len() + 1));
        if self.manifest["Users"][&name].is_null() {
            self.put("Users", &name, json!({"Certificate": pem, "Roles": []}));
        }
        if right == "update" {
            self.put(
                "Roles",
                "updater",
                json!({"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}),
            );
            let roles = &mut self.manifest["Users"][&name]["Roles"];
            if !roles
                .as_array()
                .is_some_and(|roles| roles.contains(&json!("updater")))
                && let Some(roles) = roles.as_array_mut()
            {
                roles.push("updater".into());
            }
        } else {
            let readers = &mut self.manifest["Config"]["ManifestReaders"];
            match readers.as_array_mut() {
                Some(readers) => readers.push(name.as_str().into()),
                None => *readers = json!([name]),
            }
        }
        name
    }
}

/// What holds for every service.
struct Security {
    package: Value,
}
