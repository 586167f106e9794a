//! Accepting connections, within limits: how many, how long a handshake, a header or a body may
//! take. [`places`](super::places) says who makes room when there are too many.

use super::body;
use super::places::{Activity, Places};
use crate::core::Coordinator;
use axum::Router;
use axum::extract::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

/// A handshake that takes longer is somebody holding a place.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADER: Duration = Duration::from_secs(10);
/// Half-open and idle connections cost memory: a few kilobytes each.
const MOST_CONNECTIONS: usize = 4096;
/// The metrics have few readers.
const MOST_PLAIN: usize = 64;
/// Of all descriptors a door may have a third: the other door, files and the store need some too.
const SHARE_OF_DESCRIPTORS: u64 = 3;
/// One that is longer open than this without ending is closed; clients connect again.
const LIFE: Duration = Duration::from_secs(300);

/// The certificate and address of a connection's other side.
#[derive(Clone, Default)]
pub struct Peer {
    /// DER.
    pub certificate: Option<Arc<Vec<u8>>>,
    pub address: Option<IpAddr>,
}

/// As many connections as the process may have, within reason.
fn most_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = limit.unwrap_or(u64::MAX) / SHARE_OF_DESCRIPTORS;
    usize::try_from(share).map_or(MOST_CONNECTIONS, |share| share.clamp(16, MOST_CONNECTIONS))
}

/// Lets the process have as many connections as it may; where that is refused there are fewer
/// places.
pub fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Serves a router over TLS until the listener fails. The future is dropped to stop.
pub async fn over_tls(
    listener: TcpListener,
    tls: ServerConfig,
    router: Router,
    coordinator: Arc<Coordinator>,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let places = Places::new(most_connections());
    loop {
        let Some((stream, address)) = accept(&listener, &places).await else {
            continue;
        };
        let acceptor = acceptor.clone();
        let router = router.clone();
        let has_place = places.serve(|activity| async move {
            let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
            let Ok(Ok(stream)) = handshake.await else {
                return;
            };
            activity.touch();
            let (_, session) = stream.get_ref();
            let peer = Peer {
                certificate: session
                    .peer_certificates()
                    .and_then(|chain| chain.first())
                    .map(|certificate| Arc::new(certificate.to_vec())),
                address: Some(address),
            };
            connection(stream, router.layer(axum::Extension(peer)), activity).await;
        });
        if !has_place {
            coordinator
                .events
                .refused_connections
                .fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Serves a router over plain HTTP.
pub async fn plain(listener: TcpListener, router: Router) {
    let places = Places::new(MOST_PLAIN);
    loop {
        let Some((stream, _)) = accept(&listener, &places).await else {
            continue;
        };
        let router = router.clone();
        places.serve(|activity| connection(stream, router, activity));
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Places,
) -> Option<(tokio::net::TcpStream, IpAddr)> {
    match listener.accept().await {
        Ok((stream, address)) => {
            let _ = stream.set_nodelay(true);
            Some((stream, address.ip()))
        }
        Err(_) => {
            // Out of descriptors, most likely: somebody who waits makes room.
            places.make_room();
            tokio::time::sleep(Duration::from_millis(10)).await;
            None
        }
    }
}

async fn connection<S>(stream: S, router: Router, activity: Arc<Activity>)
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
    let service =
        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let activity = activity.clone();
            let mut router = router.clone();
            async move {
                let request: Request = request.map(axum::body::Body::new);
                let answer = body::answered(request, &activity, |request| async move {
                    router
                        .call(request)
                        .await
                        .unwrap_or_else(|never| match never {})
                });
                Ok::<_, std::convert::Infallible>(answer.await)
            }
        });
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(LIFE, serving).await;
}
