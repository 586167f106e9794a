//! Accepting connections, within limits: how many, how long a handshake or a header may take.

use crate::core::Coordinator;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// A handshake that takes longer is somebody holding a place.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADER: Duration = Duration::from_secs(10);
/// Half-open and idle connections cost memory: a few kilobytes each.
const MOST_CONNECTIONS: usize = 4096;
/// One that is longer open than this without ending is closed; clients connect again.
const LIFE: Duration = Duration::from_secs(300);

/// The certificate and address of a connection's other side.
#[derive(Clone, Default)]
pub struct Peer {
    /// DER.
    pub certificate: Option<Arc<Vec<u8>>>,
    pub address: Option<IpAddr>,
}

/// Serves a router over TLS until the listener fails. The future is dropped to stop.
pub async fn over_tls(
    listener: TcpListener,
    tls: ServerConfig,
    router: Router,
    coordinator: Arc<Coordinator>,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Some((stream, address)) = accept(&listener).await else {
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            coordinator
                .events
                .refused_connections
                .fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let acceptor = acceptor.clone();
        let router = router.clone();
        tokio::spawn(async move {
            let _place = place;
            let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
            let Ok(Ok(stream)) = handshake.await else {
                return;
            };
            let (_, session) = stream.get_ref();
            let peer = Peer {
                certificate: session
                    .peer_certificates()
                    .and_then(|chain| chain.first())
                    .map(|certificate| Arc::new(certificate.to_vec())),
                address: Some(address),
            };
            connection(stream, router.layer(axum::Extension(peer))).await;
        });
    }
}

/// Serves a router over plain HTTP.
pub async fn plain(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(64));
    loop {
        let Some((stream, _)) = accept(&listener).await else {
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            let _place = place;
            connection(stream, router).await;
        });
    }
}

async fn accept(listener: &TcpListener) -> Option<(tokio::net::TcpStream, IpAddr)> {
    match listener.accept().await {
        Ok((stream, address)) => {
            let _ = stream.set_nodelay(true);
            Some((stream, address.ip()))
        }
        Err(_) => {
            // Out of descriptors, most likely: give connections time to end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn connection<S>(stream: S, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .max_header_list_size(32 << 10)
        .keep_alive_interval(Duration::from_secs(30));
    let service = TowerToHyperService::new(router);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(LIFE, serving).await;
}
