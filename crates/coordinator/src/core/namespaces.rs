//! Several manifests in one coordinator.
//!
//! A namespace is a [`Coordinator`] of its own: own root, own secrets, own users, own recovery keys
//! and own store; only the enclave and its doors are shared. The default namespace, whose name is
//! empty, keeps the list of the others, sealed with its state. They are opened when first asked
//! for. Names are labels joined by dots; who may update a namespace's manifest may make namespaces
//! below it.
//!
//! Secrets cross from one to another only where the owner's manifest exports them and the other's
//! imports them, looked up at each activation: taking an export back works at once.

use super::live::Namespace;
use super::{Coordinator, Credentials, Error, Live, Options, Owner};
use crate::json::Bytes;
use crate::manifest::{Resource, certificate_der};
use crate::secrets::Secret;
use crate::store::Place;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// Each has a thread and a journal.
const MOST_NAMESPACES: usize = 1000;
const MOST_LABEL: usize = 63;
const MOST_LABELS: usize = 4;

/// The default namespace and those beside it.
pub struct Cluster {
    /// Opened ones, by their ids. First, so that they are closed before the root is.
    open: Mutex<HashMap<String, Arc<Coordinator>>>,
    /// Held while one is opened, so that none is opened twice.
    opening: Mutex<()>,
    root: Arc<Coordinator>,
    place: Option<Box<dyn Place>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceView {
    pub name: String,
    pub code: u8,
}

impl Cluster {
    /// `place`: where namespaces are kept. None: there are none.
    pub fn new(root: Arc<Coordinator>, place: Option<Box<dyn Place>>) -> Arc<Cluster> {
        let cluster = Arc::new(Cluster {
            root,
            place,
            open: Mutex::default(),
            opening: Mutex::default(),
        });
        let _ = cluster.root.others.set(Arc::downgrade(&cluster));
        cluster
    }

    pub fn root(&self) -> &Arc<Coordinator> {
        &self.root
    }

    /// The coordinator of a namespace, if there is one.
    pub fn get(self: &Arc<Self>, name: &str) -> Result<Option<Arc<Coordinator>>, Error> {
        if name.is_empty() {
            return Ok(Some(self.root.clone()));
        }
        let Ok(live) = self.root.live() else {
            return Ok(None);
        };
        let (Some(entry), Some(place)) = (live.core.namespaces.get(name), &self.place) else {
            return Ok(None);
        };
        if let Some(coordinator) = self.opened(&entry.id) {
            return Ok(Some(coordinator));
        }
        super::waiting(|| self.open(name, entry, place.as_ref())).map(Some)
    }

    /// Opens a namespace that nobody has used since the start.
    fn open(
        self: &Arc<Self>,
        name: &str,
        entry: &Namespace,
        place: &dyn Place,
    ) -> Result<Arc<Coordinator>, Error> {
        let _alone = self.opening.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(coordinator) = self.opened(&entry.id) {
            return Ok(coordinator);
        }
        let store = place.open(&entry.id)?;
        let options = Options {
            names: self.root.options.names.clone(),
            owner: Some(Owner {
                certificate: Some(entry.owner.0.clone()),
                token_hash: None,
            }),
            namespace: name.to_owned(),
        };
        let coordinator = self
            .root
            .beside(options, store)
            .map_err(|error| Error::Internal(error.to_string()))?;
        let _ = coordinator.others.set(Arc::downgrade(self));
        let coordinator = Arc::new(coordinator);
        self.open
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .insert(entry.id.clone(), coordinator.clone());
        Ok(coordinator)
    }

    fn opened(&self, id: &str) -> Option<Arc<Coordinator>> {
        let open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        open.get(id).cloned()
    }

    /// The coordinator that a marble's type belongs to, and the type there: `NAMESPACE/TYPE`, if
    /// there is such a namespace.
    pub fn of_marble<'a>(
        self: &Arc<Self>,
        marble_type: &'a str,
    ) -> Result<(Arc<Coordinator>, &'a str), Error> {
        if let Some((name, rest)) = marble_type.split_once('/')
            && !name.is_empty()
            && let Some(coordinator) = self.get(name)?
        {
            return Ok((coordinator, rest));
        }
        Ok((self.root.clone(), marble_type))
    }

    /// Makes a namespace whose first manifest the holder of `owner` (PEM) sets.
    pub async fn create(
        self: &Arc<Self>,
        name: &str,
        owner: &str,
        credentials: Credentials<'_>,
    ) -> Result<(), Error> {
        super::replicas::retried!(self.root, self.try_create(name, owner, credentials))
    }

    async fn try_create(
        self: &Arc<Self>,
        name: &str,
        owner: &str,
        credentials: Credentials<'_>,
    ) -> Result<(), Error> {
        check_name(name)?;
        if self.place.is_none() {
            return Err(Error::Refused(
                "this coordinator has no place for namespaces".to_owned(),
            ));
        }
        let owner = certificate_der(owner).map_err(Error::BadRequest)?;
        let by = self.who_manages(name, credentials)?;
        let _change = self.root.change.lock().await;
        let live = self.root.live()?;
        if live.core.namespaces.contains_key(name) {
            return Err(Error::Refused(format!("namespace {name} exists already")));
        }
        if live.core.namespaces.len() >= MOST_NAMESPACES {
            return Err(Error::Refused(format!(
                "there are {MOST_NAMESPACES} namespaces already"
            )));
        }
        let mut core = live.core.clone();
        core.namespaces.insert(
            name.to_owned(),
            Namespace {
                id: random_id()?,
                owner: Bytes(owner),
            },
        );
        core.log(
            "Namespace made",
            &[("user", by.into()), ("namespace", name.into())],
        );
        self.root.replace(&live, core).await.map(|_| ())
    }

    /// The user, who may make and delete namespaces of this name: whoever may update the manifest
    /// above it.
    fn who_manages(
        self: &Arc<Self>,
        name: &str,
        credentials: Credentials<'_>,
    ) -> Result<String, Error> {
        let above = name.rsplit_once('.').map_or("", |(above, _)| above);
        let above = self.get(above)?.ok_or_else(|| no_namespace(above))?;
        let live = above.live()?;
        let user = Coordinator::user(&live, credentials)?;
        Coordinator::require(&live, &user, Resource::Manifest, "", "UpdateManifest")?;
        Ok(user)
    }

    /// Removes a namespace and all that is kept for it, for who may make one of its name.
    pub async fn delete(
        self: &Arc<Self>,
        name: &str,
        credentials: Credentials<'_>,
    ) -> Result<(), Error> {
        super::replicas::retried!(self.root, self.try_delete(name, credentials))
    }

    async fn try_delete(
        self: &Arc<Self>,
        name: &str,
        credentials: Credentials<'_>,
    ) -> Result<(), Error> {
        check_name(name)?;
        let by = self.who_manages(name, credentials)?;
        let _change = self.root.change.lock().await;
        let live = self.root.live()?;
        let mut core = live.core.clone();
        let Some(entry) = core.namespaces.remove(name) else {
            return Err(no_namespace(name));
        };
        let below = format!("{name}.");
        if let Some(other) = core.namespaces.keys().find(|key| key.starts_with(&below)) {
            return Err(Error::Refused(format!(
                "namespace {other} is below it: delete that first"
            )));
        }
        core.log(
            "Namespace deleted",
            &[("user", by.into()), ("namespace", name.into())],
        );
        self.root.replace(&live, core).await?;
        self.close(&entry.id);
        // The state is gone from the list, durably; what stays of it nobody can reach.
        if let Some(place) = &self.place
            && let Err(error) = super::waiting(|| place.remove(&entry.id))
        {
            eprintln!("bulla coordinator: what is left of namespace {name}: {error}");
        }
        Ok(())
    }

    fn close(&self, id: &str) {
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        open.remove(id);
    }

    /// Closes namespaces that another replica has deleted.
    fn close_deleted(&self) {
        let Ok(live) = self.root.live() else { return };
        let ids: std::collections::HashSet<&String> = live
            .core
            .namespaces
            .values()
            .map(|entry| &entry.id)
            .collect();
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        open.retain(|id, _| ids.contains(id));
    }

    /// What Prometheus reads: of the default namespace, and of those that are open.
    pub fn metrics(&self) -> String {
        let mut open: Vec<_> = self
            .open
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .values()
            .cloned()
            .collect();
        open.sort_by(|a, b| a.options.namespace.cmp(&b.options.namespace));
        let others: Vec<_> = open
            .iter()
            .map(|coordinator| {
                let name = coordinator.options.namespace.clone();
                (name, coordinator.status().code, &coordinator.events)
            })
            .collect();
        self.root.events.metrics(self.root.status().code, &others)
    }

    /// Follows what other replicas write, and joins them by their peers; for ever.
    pub async fn follow(self: Arc<Self>, peers: Vec<String>) {
        let mut told = String::new();
        loop {
            self.close_deleted();
            let mut all = vec![self.root.clone()];
            all.extend(
                self.open
                    .lock()
                    .unwrap_or_else(|e| e.into_inner())
                    .values()
                    .cloned(),
            );
            for coordinator in all {
                let trouble = match coordinator.refresh().await {
                    Ok(()) => coordinator.join_any(&peers).await,
                    Err(error) => error.to_string(),
                };
                // The same trouble each second is one line.
                if !trouble.is_empty() && trouble != told {
                    eprintln!("bulla coordinator: replicas: {trouble}");
                    told = trouble;
                }
            }
            tokio::time::sleep(super::replicas::PACE).await;
        }
    }

    /// All namespaces, for users of the default one who may update its manifest.
    pub fn list(
        self: &Arc<Self>,
        credentials: Credentials<'_>,
    ) -> Result<Vec<NamespaceView>, Error> {
        let live = self.root.live()?;
        let user = Coordinator::user(&live, credentials)?;
        Coordinator::require(&live, &user, Resource::Manifest, "", "UpdateManifest")?;
        live.core
            .namespaces
            .keys()
            .map(|name| {
                let coordinator = self.get(name)?.ok_or_else(|| no_namespace(name))?;
                Ok(NamespaceView {
                    name: name.clone(),
                    code: coordinator.status().code,
                })
            })
            .collect()
    }
}

pub(super) fn no_namespace(name: &str) -> Error {
    Error::NotFound(format!("there is no namespace {name}"))
}

/// Labels as in DNS: they stand in paths and in marble types.
fn check_name(name: &str) -> Result<(), Error> {
    let labels: Vec<&str> = name.split('.').collect();
    let is_label = |label: &&str| {
        (1..=MOST_LABEL).contains(&label.len())
            && label
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match labels.len() <= MOST_LABELS && labels.iter().all(is_label) {
        true => Ok(()),
        false => Err(Error::BadRequest(format!(
            "a namespace is 1 to {MOST_LABELS} labels of a-z, 0-9 and -, joined by dots"
        ))),
    }
}

pub(super) fn random_id() -> Result<String, Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(hex::encode(id))
}

impl Coordinator {
    /// The secrets that this manifest imports, as their owners have them now.
    pub(super) fn imports(&self, live: &Live) -> Result<BTreeMap<String, Secret>, Error> {
        let mut secrets = BTreeMap::new();
        for (name, spec) in &live.manifest.secrets {
            let Some(import) = &spec.import else { continue };
            // One answer for all that may be amiss on the other side.
            let refused = || {
                Error::Refused(format!(
                    "secret {name} cannot be imported: namespace \"{}\" has no secret {} of this \
                     type for this namespace",
                    import.namespace, import.secret
                ))
            };
            let owner = self
                .others
                .get()
                .and_then(std::sync::Weak::upgrade)
                .and_then(|cluster| cluster.get(&import.namespace).ok().flatten())
                .ok_or_else(refused)?;
            let there = owner.live().map_err(|_| refused())?;
            let is_exported = there
                .manifest
                .secrets
                .get(&import.secret)
                .is_some_and(|theirs| {
                    theirs.kind == spec.kind
                        && theirs
                            .export
                            .iter()
                            .any(|to| to == "*" || *to == self.options.namespace)
                });
            match there.core.secrets.get(&import.secret) {
                Some(secret) if is_exported => secrets.insert(name.clone(), secret.clone()),
                _ => return Err(refused()),
            };
        }
        Ok(secrets)
    }
}
