//! The coordinator's state and what can be done with it.
//!
//! [`Coordinator`] is shared by all connections. Its *phase* says what it is ready for; while it
//! runs, everything that manifests and updates determine is one immutable [`Live`], exchanged as a
//! whole, so readers never see half an update and never wait for one.
//!
//! Lock order: `change` (one administrative operation at a time), then `phase`, then the tables of
//! [`Tables`]. No lock but `change` is held while waiting. Store commits are queued under the lock
//! of the table that they persist, so that the store sees changes in the order they were made.

mod activate;
mod audit;
mod counter;
mod error;
mod events;
mod live;
mod namespaces;
mod policy;
mod query;
mod read;
mod recover;
mod replicas;
mod revoke;
mod secrets;
mod set;
mod tables;
mod update;

pub use activate::{ActivationError, ActivationRequest, Parameters};
pub use audit::{AuditError, AuditLog};
pub use error::Error;
pub use events::{Event, Events};
pub(crate) use live::now;
pub use live::{Core, Live, Pending, Revoked};
pub use namespaces::{Cluster, NamespaceView};
pub use query::{ManifestView, QuoteView, Status};
pub use read::{ReadOutcome, ReadRequestView};
pub use recover::Recovered;
pub use tables::Instance;
pub use update::UpdateOutcome;

use crate::keys::KeyError;
use crate::manifest::SealMode;
use crate::pki::Pki;
use crate::quote::{QuoteIssuer, QuoteVerifier};
use crate::recovery::Recovery;
use crate::seal::SealingKeys;
use crate::store::{Batch, Opened, Store, StoreError};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};
use tables::Tables;

/// How a coordinator is set up.
pub struct Options {
    /// Names and addresses of the coordinator, for its certificates.
    pub names: Vec<String>,
    /// Who may set the first manifest, or a new one in recovery. None: anyone.
    pub owner: Option<Owner>,
    /// The namespace that it serves; empty for the default one.
    pub namespace: String,
}

/// The owner named at start.
#[derive(Clone)]
pub struct Owner {
    /// A client certificate, DER.
    pub certificate: Option<Vec<u8>>,
    /// SHA-256 of a bearer token.
    pub token_hash: Option<[u8; 32]>,
}

/// What a request shows of its sender.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The client's certificate, DER.
    pub certificate: Option<&'a [u8]>,
    /// The token of an `Authorization: Bearer` header.
    pub token: Option<&'a str>,
}

pub struct Coordinator {
    options: Options,
    keys: Arc<dyn SealingKeys>,
    verifier: Arc<dyn QuoteVerifier>,
    issuer: Arc<dyn QuoteIssuer>,
    /// Where secrets of other namespaces are imported from.
    others: OnceLock<Weak<Cluster>>,
    change: tokio::sync::Mutex<()>,
    store: RwLock<Box<dyn Store>>,
    phase: RwLock<Phase>,
    tables: Tables,
    /// The revocation list that was made last.
    list: Mutex<Option<revoke::KeptList>>,
    pub events: Events,
}

/// What the coordinator is ready for.
#[derive(Clone)]
enum Phase {
    /// Sealed state that cannot be opened; a temporary CA.
    Recovery {
        pki: Arc<Pki>,
        recovery: Arc<Mutex<Recovery>>,
        /// As the header has it, which anybody may have written.
        seal_mode: SealMode,
    },
    /// No state yet.
    AcceptingManifest {
        pki: Arc<Pki>,
    },
    Running(Arc<Live>),
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the state cannot be read: {0}")]
    State(String),
}

impl Coordinator {
    /// Opens the store and finds out what to be ready for.
    pub fn start(
        options: Options,
        store: impl Store + 'static,
        keys: Box<dyn SealingKeys>,
        verifier: Box<dyn QuoteVerifier>,
        issuer: Box<dyn QuoteIssuer>,
    ) -> Result<Coordinator, StartError> {
        Coordinator::over(options, Box::new(store), keys, verifier, issuer)
    }

    /// [`Coordinator::start`], with a store of any kind.
    pub fn over(
        options: Options,
        store: Box<dyn Store>,
        keys: Box<dyn SealingKeys>,
        verifier: Box<dyn QuoteVerifier>,
        issuer: Box<dyn QuoteIssuer>,
    ) -> Result<Coordinator, StartError> {
        let (keys, verifier, issuer) = (keys.into(), verifier.into(), issuer.into());
        Coordinator::open(options, store, keys, verifier, issuer)
    }

    /// A namespace of the same enclave, in a store of its own.
    fn beside(&self, options: Options, store: Box<dyn Store>) -> Result<Coordinator, StartError> {
        Coordinator::open(
            options,
            store,
            self.keys.clone(),
            self.verifier.clone(),
            self.issuer.clone(),
        )
    }

    fn open(
        options: Options,
        mut store: Box<dyn Store>,
        keys: Arc<dyn SealingKeys>,
        verifier: Arc<dyn QuoteVerifier>,
        issuer: Arc<dyn QuoteIssuer>,
    ) -> Result<Coordinator, StartError> {
        let tables = Tables::default();
        let phase = phase_of(store.load(keys.as_ref())?, &tables, &options.names)?;
        Ok(Coordinator {
            options,
            keys,
            verifier,
            issuer,
            others: OnceLock::new(),
            change: tokio::sync::Mutex::new(()),
            store: RwLock::new(store),
            phase: RwLock::new(phase),
            tables,
            list: Mutex::default(),
            events: Events::default(),
        })
    }

    fn phase(&self) -> Phase {
        self.phase.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn enter(&self, phase: Phase) {
        *self.phase.write().unwrap_or_else(|e| e.into_inner()) = phase;
    }

    /// The running state, or the error of every request that needs it.
    pub fn live(&self) -> Result<Arc<Live>, Error> {
        match self.phase() {
            Phase::Running(live) => Ok(live),
            _ => Err(Error::WrongState),
        }
    }

    /// The certificates in use, in every phase.
    pub fn with_pki<T>(&self, get: impl FnOnce(&Pki) -> T) -> T {
        match self.phase() {
            Phase::Recovery { pki, .. } | Phase::AcceptingManifest { pki } => get(&pki),
            Phase::Running(live) => get(&live.pki),
        }
    }

    /// Uses the store; whoever changes it is waited for.
    fn with_store<T>(&self, work: impl FnOnce(&dyn Store) -> T) -> T {
        let store = match self.store.try_read() {
            Ok(store) => store,
            Err(_) => waiting(|| self.store.read().unwrap_or_else(|e| e.into_inner())),
        };
        work(store.as_ref())
    }

    /// Opens, begins or re-keys what is in the store, which can take as long as its medium does.
    fn change_store<T>(&self, work: impl FnOnce(&mut dyn Store) -> T) -> T {
        waiting(|| {
            let mut store = self.store.write().unwrap_or_else(|e| e.into_inner());
            work(store.as_mut())
        })
    }

    /// Queues a batch; see [`Store::commit`].
    fn queue(
        &self,
        live: &Live,
        epoch: u64,
        batch: Batch,
    ) -> Option<tokio::sync::oneshot::Receiver<Result<u64, StoreError>>> {
        live.is_kept()
            .then(|| self.with_store(|store| store.commit(batch.of(epoch))))
    }

    /// Waits until a queued batch is durable.
    async fn durable(
        receipt: Option<tokio::sync::oneshot::Receiver<Result<u64, StoreError>>>,
    ) -> Result<(), Error> {
        let Some(receipt) = receipt else {
            return Ok(());
        };
        match receipt.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Error::Internal(StoreError::Failed.to_string())),
        }
    }

    /// Makes a changed core durable, then visible.
    async fn replace(&self, before: &Live, core: Core) -> Result<Arc<Live>, Error> {
        let live = Live::new(core).map_err(Error::Internal)?;
        live.follow(before.epoch());
        let receipt = self.queue(
            before,
            before.epoch(),
            Batch::default().put(live::CORE, live.core.encode()),
        );
        Self::durable(receipt).await?;
        let live = Arc::new(live);
        self.enter(Phase::Running(live.clone()));
        Ok(live)
    }
}

/// Does what may wait for a disk or for another machine, and lets the runtime's other tasks go on.
fn waiting<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// What a coordinator is ready for when it has found this.
fn phase_of(opened: Opened, tables: &Tables, names: &[String]) -> Result<Phase, StartError> {
    Ok(match opened {
        Opened::Empty => Phase::AcceptingManifest {
            pki: Arc::new(Pki::generate(names)?),
        },
        Opened::State {
            content: Some(content),
            ..
        } => {
            let live = Live::load(&content).map_err(StartError::State)?;
            tables.load(&content, 0).map_err(StartError::State)?;
            Phase::Running(Arc::new(live))
        }
        Opened::State { header, .. } => Phase::Recovery {
            pki: Arc::new(Pki::generate(names)?),
            recovery: Arc::new(Mutex::new(Recovery::new(header.recovery))),
            seal_mode: header.seal_mode,
        },
    })
}
