//! Images whose key the coordinator releases.
//!
//! The container begins on a root in memory that holds the agent, its settings, /dev, /proc and /sys,
//! and nothing of the image. The agent proves the enclave to the coordinator and writes the key that it
//! gets to `/dev/attestation/image_key`. The kernel then opens the image, moves /dev, /proc and /sys
//! there, mounts what the configuration asks for, and lets the agent go on as the image's user with the
//! image as its root. Only the agent can do so, and only once: until it has, no other program runs.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use bulla_abi::config::{Config, ImageKey, ImageKeySource};

use super::{
    InitError, MemFs, ROOT, TMPFS_MAGIC, attach, budget, detached_root, mount, open_image,
    populate, populate_configured, unpopulated,
};
use crate::errno::{EACCES, EIO, EKEYREJECTED};
use crate::fs::context::FsContext;
use crate::fs::dentry::Dentry;
use crate::fs::lower;
use crate::platform::platform;
use crate::process::boot;
use crate::sync::SpinLock;
use crate::{Result, Thread};

/// What waits for its key.
static SEALED: SpinLock<Option<Arc<Config>>> = SpinLock::new(None);

/// Whether the key has still to come from the coordinator.
pub fn awaits_key(config: &Config) -> bool {
    let source = config.encryption.as_ref().map(|encryption| encryption.key);
    source == Some(ImageKeySource::Coordinator) && config.image_key.is_none()
}

/// Whether the container still waits.
pub fn is_waiting() -> bool {
    SEALED.lock().is_some()
}

/// The root to wait on.
pub(super) fn init(config: &Config) -> core::result::Result<Arc<FsContext>, InitError> {
    let memory = MemFs::new(TMPFS_MAGIC, budget(), budget().limit());
    let root = detached_root(memory.empty_root(0o755), "tmpfs");
    // Mounts and the working directory belong to the image.
    let first = Config {
        memory: config.memory,
        files: config.files.clone(),
        ..Config::default()
    };
    let context = populate(root, &first).map_err(unpopulated)?;
    *SEALED.lock() = Some(Arc::new(config.clone()));
    Ok(context)
}

/// Opens the image with its key and makes it the root of the agent, which asks for this.
pub fn open(thread: &Arc<Thread>, key: &[u8]) -> Result<()> {
    let process = &thread.process;
    if !process.agent.load(Ordering::Relaxed) {
        return Err(EACCES.because("only the agent gives the key of the image"));
    }
    let key = key
        .try_into()
        .map_err(|_| EKEYREJECTED.because("the key of an image has 32 bytes"))?;
    let sealed = SEALED.lock().clone();
    let sealed = sealed.ok_or(EACCES.because("the image is open"))?;
    let config = Config {
        image_key: Some(ImageKey(key)),
        ..Config::clone(&sealed)
    };
    if lower::image_cipher(&config).is_err() {
        return Err(EKEYREJECTED.because("the key is not that of the image's files"));
    }
    // Once, also if it fails: what is half mounted is not tried again.
    *SEALED.lock() = None;
    change_root(thread, &config).map_err(|message| {
        platform().log(
            0,
            &format!("the encrypted image cannot be opened: {message}"),
        );
        EIO.because("the encrypted image cannot be opened")
    })
}

fn change_root(thread: &Arc<Thread>, config: &Config) -> core::result::Result<(), String> {
    let root = open_image(config).map_err(|error| error.message)?;
    let context = Arc::new(FsContext::new(root));
    context.set_umask(0);
    let former = thread.fs();
    let former_root = former.root();
    for old in mount::take_all() {
        let Some(point) = &old.point else { continue };
        let path = point.display_path(&former_root);
        let root: Arc<Dentry> = old.root.clone();
        attach(&context, &path, root, old.kind, old.flags())
            .map_err(|error| format!("{}: {error:?}", String::from_utf8_lossy(&path)))?;
    }
    populate_configured(&context, config).map_err(|failed| unpopulated(failed).message)?;
    let user = boot::user(&context, &config.user).map_err(|error| error.message.to_string())?;
    ROOT.call_once(|| context.root());
    former.set_root(context.root());
    former.set_cwd(context.cwd());
    crate::attestation::file::set_owner(user.credentials.ruid, user.credentials.rgid);
    *thread.process.credentials.lock() = user.credentials;
    Ok(())
}
