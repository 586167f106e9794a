//! `bulla coordinator`: the service that knows a cluster's marbles.

use crate::coordinator_args::CoordinatorArguments;
use crate::failure::Failure;
use crate::state::State;
use bulla_coordinator::api::{client, client_tls, marble, marble_tls, metrics, serve};
use bulla_coordinator::attested::{ThisEnclave, Verifier};
use bulla_coordinator::core::{Cluster, Coordinator, Credentials, Options, Owner};
use bulla_coordinator::manifest::certificate_der;
use bulla_coordinator::quote::{NoPlatform, QuoteIssuer, QuoteVerifier};
use bulla_coordinator::seal::{EnclaveKeys, InsecureFileKey, SealingKeys};
use bulla_coordinator::store::{
    Anchor, ClientTls, DirectoryPlace, DirectoryStore, EtcdPlace, FileAnchor, Kubernetes,
    KubernetesOptions, ObjectPlace, Place,
};
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;

pub fn run(arguments: &CoordinatorArguments) -> Result<u8, Failure> {
    if arguments.in_enclave {
        return crate::in_enclave::run(arguments);
    }
    bulla_coordinator::log::as_json(arguments.log_json);
    bulla_coordinator::api::serve::raise_limits();
    let coordinator = Arc::new(open(arguments)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::new)?;
    runtime.block_on(serve_all(arguments, coordinator))?;
    Ok(0)
}

fn open(arguments: &CoordinatorArguments) -> Result<Coordinator, Failure> {
    let is_enclave = is_enclave();
    if !is_enclave && !arguments.insecure_outside_enclave {
        return Err(Failure::new(
            "the coordinator does not run in an enclave: its secrets would be open to this \
             machine. Start it with --in-enclave, or say --insecure-outside-enclave",
        ));
    }
    let anchor = arguments
        .freshness_anchor
        .clone()
        .map(|path| Box::new(FileAnchor::new(path)) as Box<dyn Anchor>);
    let keys: Box<dyn SealingKeys> = match is_enclave {
        true => Box::new(EnclaveKeys::default()),
        false => {
            std::fs::create_dir_all(&arguments.state)
                .map_err(|error| Failure::new(format!("{}: {error}", arguments.state.display())))?;
            let path = arguments.state.join("insecure_sealing_key");
            Box::new(InsecureFileKey::open(&path).map_err(Failure::new)?)
        }
    };
    let issuer: Box<dyn QuoteIssuer> = match is_enclave {
        true => Box::new(ThisEnclave::default()),
        false => Box::new(NoPlatform),
    };
    let verifier = verifier(arguments.collateral.as_deref());
    if !is_enclave {
        eprintln!(
            "bulla: INSECURE: the coordinator runs outside an enclave; whoever controls this \
             machine reads every secret"
        );
    }
    // In an enclave the state is on a volume, which has an anchor of its own.
    if arguments.freshness_anchor.is_none() && !arguments.is_shared() && !is_enclave {
        eprintln!(
            "bulla: no --freshness-anchor: an old copy of the state that is put back is not noticed"
        );
    }
    let options = Options {
        names: arguments.names.clone(),
        owner: owner(arguments)?,
        namespace: String::new(),
    };
    match shared_place(arguments)? {
        Some(place) => {
            let store = place.open("root").map_err(Failure::new)?;
            Coordinator::over(options, store, keys, verifier, issuer)
        }
        None => {
            let store = DirectoryStore::open(&arguments.state, anchor).map_err(Failure::new)?;
            Coordinator::start(options, store, keys, verifier, issuer)
        }
    }
    .map_err(Failure::new)
}

fn is_enclave() -> bool {
    Path::new("/dev/attestation/user_report_data").exists()
}

/// Where replicas keep their state together, if they do.
fn shared_place(arguments: &CoordinatorArguments) -> Result<Option<Box<dyn Place>>, Failure> {
    let replica = match &arguments.replica {
        Some(name) => name.clone(),
        None if is_enclave() => EnclaveKeys::default().name().map_err(Failure::new)?,
        None => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
    };
    if arguments.kubernetes {
        let api = Kubernetes::new(&kubernetes(arguments)).map_err(Failure::new)?;
        let place = ObjectPlace::new(Arc::new(api), &arguments.kubernetes_prefix, &replica);
        return Ok(Some(Box::new(
            place.anchored(arguments.freshness_anchor.clone()),
        )));
    }
    if arguments.etcd.is_empty() {
        return Ok(None);
    }
    let tls = store_tls(arguments);
    let place = EtcdPlace::new(&arguments.etcd, &tls, &arguments.etcd_prefix, &replica);
    let place = place.map_err(Failure::new)?;
    Ok(Some(Box::new(
        place.anchored(arguments.freshness_anchor.clone()),
    )))
}

fn store_tls(arguments: &CoordinatorArguments) -> ClientTls {
    ClientTls {
        authority: arguments.store_ca.clone(),
        identity: arguments
            .store_cert
            .clone()
            .zip(arguments.store_key.clone()),
    }
}

/// Where the Kubernetes API is, as the command line says.
pub fn kubernetes(arguments: &CoordinatorArguments) -> KubernetesOptions {
    KubernetesOptions {
        server: arguments.kubernetes_api.clone(),
        namespace: arguments.kubernetes_namespace.clone(),
        token: arguments.kubernetes_token.clone(),
        tls: store_tls(arguments),
    }
}

/// What verifies quotes; `collateral` is a file or a directory of them.
pub fn verifier(collateral: Option<&Path>) -> Box<dyn QuoteVerifier> {
    let emulated = State::of_user().emulated_fuses();
    Box::new(Verifier::new(collateral).or_emulated(emulated))
}

fn owner(arguments: &CoordinatorArguments) -> Result<Option<Owner>, Failure> {
    let certificate = match &arguments.owner_certificate {
        None => None,
        Some(path) => {
            let pem = std::fs::read_to_string(path)
                .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
            Some(
                certificate_der(&pem)
                    .map_err(|reason| Failure::new(format!("{}: {reason}", path.display())))?,
            )
        }
    };
    let token_hash = match &arguments.owner_token_sha256 {
        None => None,
        Some(text) => Some(bulla_coordinator::parse_sha256(text).ok_or_else(|| {
            Failure::new("--owner-token-sha256 takes the 64 hex digits of a SHA-256")
        })?),
    };
    Ok(
        (certificate.is_some() || token_hash.is_some()).then_some(Owner {
            certificate,
            token_hash,
        }),
    )
}

async fn serve_all(arguments: &CoordinatorArguments, app: Arc<Coordinator>) -> Result<(), Failure> {
    if let Some(path) = &arguments.manifest
        && app.status().code == 2
    {
        let manifest = std::fs::read(path)
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        app.set_manifest(&manifest, Credentials::default())
            .await
            .map_err(Failure::new)?;
    }
    let place: Box<dyn Place> = match shared_place(arguments)? {
        Some(place) => place,
        None => Box::new(DirectoryPlace {
            directory: arguments.state.clone(),
            anchor: arguments.freshness_anchor.clone(),
        }),
    };
    let cluster = Cluster::new(app.clone(), Some(place));
    if arguments.is_shared() {
        tokio::spawn(cluster.clone().follow(arguments.peers.clone()));
    }
    let bind = async |address: &str| {
        TcpListener::bind(address)
            .await
            .map_err(|error| Failure::new(format!("cannot listen on {address}: {error}")))
    };
    let clients = bind(&arguments.client_address).await?;
    let mesh = bind(&arguments.mesh_address).await?;
    let place = |listener: &TcpListener| {
        listener
            .local_addr()
            .map_or_else(|_| String::new(), |address| address.to_string())
    };
    eprintln!(
        "bulla: coordinator: client API on {}, marbles on {}; {}",
        place(&clients),
        place(&mesh),
        app.status().message
    );
    tokio::spawn(serve::over_tls(
        clients,
        client_tls(&app).map_err(Failure::new)?,
        client::router(cluster.clone()),
        app.clone(),
    ));
    tokio::spawn(serve::over_tls(
        mesh,
        marble_tls(&app).map_err(Failure::new)?,
        marble::router(cluster.clone()),
        app.clone(),
    ));
    if let Some(address) = &arguments.metrics_address {
        let listener = bind(address).await?;
        eprintln!("bulla: coordinator: metrics on {}", place(&listener));
        tokio::spawn(serve::plain(listener, metrics::router(cluster.clone())));
    }
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(Failure::new)?;
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result.map_err(Failure::new)?,
    }
    Ok(())
}
