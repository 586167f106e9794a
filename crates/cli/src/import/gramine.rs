//! Gramine manifests become a bulla.toml. Most of what they say about files has no place in one:
//! the whole image is verified.

use super::{Imported, Taker, text};
use serde_json::Value;

pub fn import(manifest: &Value) -> Result<Imported, String> {
    let mut notes = Vec::new();
    let mut top = Taker::new("", manifest).ok_or("not a table")?;
    let mut out = toml::Table::new();
    let mut libos = top.below("libos");
    let mut loader = top.below("loader");
    let entrypoint = libos
        .as_mut()
        .and_then(|libos| libos.text("entrypoint"))
        .ok_or("libos.entrypoint is missing: is this a Gramine manifest?")?;
    let program = entrypoint.strip_prefix("file:").unwrap_or(&entrypoint);
    out.insert("entrypoint".into(), vec![program.to_owned()].into());
    if let Some(mut libos) = libos {
        libos.explain(
            "check_invalid_pointers",
            "pointers are always checked",
            &mut notes,
        );
        libos.rest(&mut notes);
    }
    if let Some(loader) = loader.take() {
        loader_keys(loader, &mut out, &mut notes);
    }
    if let Some(sgx) = top.below("sgx") {
        sgx_keys(sgx, &mut out, &mut notes);
    }
    if let Some(fs) = top.below("fs") {
        fs_keys(fs, &mut out, &mut notes);
    }
    if let Some(sys) = top.below("sys") {
        sys_keys(sys, &mut notes);
    }
    top.rest(&mut notes);
    let print = |out: &toml::Table| toml::to_string_pretty(out).map_err(|e| e.to_string());
    let check = |text: &str| bulla_image::manifest::Manifest::parse(text);
    let mut text = print(&out)?;
    if let Err(error) = check(&text)
        && let Some(cpu) = out.remove("cpu")
    {
        // Their names of CPU features are not always ours.
        notes.push(format!("sgx.cpu_features: {cpu} left out: {error}"));
        text = print(&out)?;
    }
    check(&text).map_err(|error| format!("cannot be expressed: {error}"))?;
    Ok(Imported { text, notes })
}

fn loader_keys(mut loader: Taker, out: &mut toml::Table, notes: &mut Vec<String>) {
    loader.take("entrypoint");
    let mut arguments = toml::Table::new();
    let argv: Vec<String> = loader.list("argv").iter().map(text).collect();
    if let Some((name, fixed)) = argv.split_first() {
        arguments.insert("fixed".into(), fixed.to_vec().into());
        let program = out["entrypoint"][0].as_str().unwrap_or_default();
        if !program.ends_with(name.rsplit('/').next().unwrap_or(name)) {
            notes.push(format!(
                "loader.argv[0]: {name} is not the program's name; the program sees its path"
            ));
        }
    }
    if loader.flag("insecure__use_cmdline_argv") == Some(true) {
        arguments.insert("mode".into(), "host".into());
    }
    if !arguments.is_empty() {
        out.insert("arguments".into(), arguments.into());
    }
    if let Some(env) = loader.take("env") {
        let mut environment = toml::Table::new();
        for (name, value) in env.as_object().cloned().unwrap_or_default() {
            match Taker::new(&format!("loader.env.{name}"), &value) {
                None => {
                    environment.insert(name, text(&value).into());
                }
                Some(mut entry) => {
                    if entry.flag("passthrough") == Some(true) {
                        let host = toml::Table::from_iter([("host".to_owned(), true.into())]);
                        environment.insert(name.clone(), host.into());
                    }
                    if let Some(value) = entry.text("value") {
                        environment.insert(name.clone(), value.into());
                    }
                    entry.explain(
                        "file",
                        "a value from a file has no equivalent; write the value, or take it from \
                         the coordinator",
                        notes,
                    );
                    entry.rest(notes);
                }
            }
        }
        out.insert("environment".into(), environment.into());
    }
    let (uid, gid) = (loader.number("uid"), loader.number("gid"));
    if uid.is_some() || gid.is_some() {
        let user = format!("{}:{}", uid.unwrap_or(0), gid.unwrap_or(0));
        out.insert("user".into(), user.into());
    }
    for (key, reason) in [
        (
            "log_level",
            "use `bulla run --verbose` or the manual's page on diagnostics",
        ),
        ("log_file", "messages go to standard error"),
        ("argv_src_file", "write the arguments into arguments.fixed"),
        ("env_src_file", "write the variables into [environment]"),
        (
            "insecure__use_host_env",
            "there is no way to let all variables in; name them with `NAME = { host = true }`",
        ),
        (
            "pal_internal_mem_size",
            "not needed: the runtime's memory is its own affair",
        ),
        ("preload", "not needed"),
        (
            "insecure__disable_aslr",
            "the address layout does not depend on the manifest",
        ),
    ] {
        loader.explain(key, reason, notes);
    }
    loader.rest(notes);
}

fn sgx_keys(mut sgx: Taker, out: &mut toml::Table, notes: &mut Vec<String>) {
    if let Some(size) = sgx.text("enclave_size") {
        notes.push(
            "sgx.enclave_size: became memory; memory is committed when it is used, so it may be \
             larger without a slower start"
                .to_owned(),
        );
        out.insert("memory".into(), size.into());
    }
    if let Some(threads) = sgx.number("max_threads").or(sgx.number("thread_num")) {
        out.insert("threads".into(), (threads as i64).into());
    }
    for (theirs, ours) in [("isvprodid", "product_id"), ("isvsvn", "security_version")] {
        if let Some(value) = sgx.number(theirs) {
            out.insert(ours.into(), (value as i64).into());
        }
    }
    if sgx.flag("debug") == Some(true) {
        out.insert("insecure_debug".into(), true.into());
    }
    if let Some(features) = sgx.below("cpu_features") {
        let mut needed = Vec::new();
        for (feature, value) in features.entries() {
            match value.as_str() {
                Some("required") => needed.push(toml::Value::from(feature)),
                Some("unspecified") => {}
                _ => notes.push(format!(
                    "sgx.cpu_features.{feature}: {}: has no equivalent; features can only be \
                     required",
                    text(&value)
                )),
            }
        }
        if !needed.is_empty() {
            let cpu = toml::Table::from_iter([("features".to_owned(), needed.into())]);
            out.insert("cpu".into(), cpu.into());
        }
    }
    let allowed = sgx.list("allowed_files");
    for file in &allowed {
        notes.push(format!(
            "sgx.allowed_files: {}: files that are not verified have no equivalent; put it into \
             the image, a volume, or an insecure_passthrough mount",
            uri(file)
        ));
    }
    let trusted = sgx.list("trusted_files");
    if !trusted.is_empty() {
        notes.push(format!(
            "sgx.trusted_files: {} entries are not needed: every file of the image is verified; \
             make sure that the image has them",
            trusted.len()
        ));
    }
    let protected = sgx.list("protected_files");
    for file in &protected {
        notes.push(format!(
            "sgx.protected_files: {}: use a mount of type volume",
            uri(file)
        ));
    }
    for (key, reason) in [
        (
            "remote_attestation",
            "quotes are always there, in /dev/attestation",
        ),
        ("edmm_enable", "decided by what the machine offers"),
        ("use_exinfo", "decided by what the machine offers"),
        ("preheat_enclave", "not needed"),
        ("require_exinfo", "decided by what the machine offers"),
        (
            "rpc_thread_num",
            "there are no helper threads for system calls",
        ),
        (
            "file_check_policy",
            "every file of the image is verified, always",
        ),
        ("ra_client_spid", "EPID is gone: quotes are DCAP's"),
        ("ra_client_linkable", "EPID is gone: quotes are DCAP's"),
        ("enable_stats", "use `bulla run --report`"),
        ("profile", "profiling is not the manifest's"),
        ("vtune_profile", "profiling is not the manifest's"),
        ("sigfile", "signatures are `bulla build`'s"),
        ("date", "signatures are `bulla build`'s"),
    ] {
        sgx.explain(key, reason, notes);
    }
    sgx.rest(notes);
}

fn uri(value: &Value) -> String {
    let text = match value.get("uri") {
        Some(uri) => text(uri),
        None => text(value),
    };
    text.strip_prefix("file:").unwrap_or(&text).to_owned()
}

fn fs_keys(mut fs: Taker, out: &mut toml::Table, notes: &mut Vec<String>) {
    let mut mounts: Vec<toml::Value> = Vec::new();
    let mut list = fs.list("mounts");
    // The older form is a table of tables.
    if let Some(mount) = fs.take("mount") {
        list.extend(
            mount
                .as_object()
                .into_iter()
                .flatten()
                .map(|(_, m)| m.clone()),
        );
    }
    for (index, mount) in list.iter().enumerate() {
        let Some(mut mount) = Taker::new(&format!("fs.mounts[{index}]"), mount) else {
            continue;
        };
        let kind = mount.text("type").unwrap_or_else(|| "chroot".to_owned());
        let target = mount.text("path").unwrap_or_default();
        let source = mount.text("uri").unwrap_or_default();
        let source = source.strip_prefix("file:").unwrap_or(&source).to_owned();
        let mut table = toml::Table::new();
        table.insert("target".into(), target.clone().into());
        match kind.as_str() {
            "tmpfs" => {
                table.insert("type".into(), "tmpfs".into());
                mounts.push(table.into());
            }
            "encrypted" => {
                notes.push(format!(
                    "fs.mounts[{index}]: {target}: became a protected volume; files that Gramine \
                     encrypted cannot be read: copy their content in"
                ));
                mount.explain("key_name", "a volume's key comes with the volume", notes);
                table.insert("type".into(), "volume".into());
                mounts.push(table.into());
            }
            "chroot" => notes.push(format!(
                "fs.mounts[{index}]: {target} from {source}: files of the host are not mounted; \
                 put them into the image at {target}"
            )),
            other => notes.push(format!(
                "fs.mounts[{index}]: {target}: type {other} has no equivalent, left out"
            )),
        }
        mount.rest(notes);
    }
    if !mounts.is_empty() {
        out.insert("mounts".into(), mounts.into());
    }
    fs.explain("root", "the root is the image", notes);
    fs.explain(
        "start_dir",
        "use workdir, in the image or the manifest",
        notes,
    );
    fs.explain(
        "insecure__keys",
        "keys in the open have no equivalent; a volume's key is the enclave's or the coordinator's",
        notes,
    );
    fs.explain("experimental__enable_flock", "flock is always there", notes);
    fs.rest(notes);
}

fn sys_keys(mut sys: Taker, notes: &mut Vec<String>) {
    for (key, reason) in [
        ("stack", "stacks are as large as the program asks"),
        ("brk", "there is no limit but memory"),
        ("enable_sigterm_injection", "SIGTERM always arrives"),
        (
            "enable_extra_runtime_domain_names_conf",
            "see network.resolver and network.hosts",
        ),
        (
            "insecure__allow_eventfd",
            "eventfd is inside the enclave, and always there",
        ),
        ("experimental__enable_flock", "flock is always there"),
        ("disallow_subprocesses", "has no equivalent"),
        ("fds", "there is no limit to set"),
        ("debug__mock_syscalls", "calls are not mocked"),
        (
            "allowed_ioctls",
            "ioctls on devices of the host are not passed through",
        ),
        (
            "ioctl_structs",
            "ioctls on devices of the host are not passed through",
        ),
    ] {
        sys.explain(key, reason, notes);
    }
    sys.rest(notes);
}
