//! A relay: plain connections on one side, attested TLS on the other.
//!
//! One thread per connection and direction is not needed: everything runs on one thread's event
//! loop. Certificates are made anew when two thirds of their time have passed.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::ratls::{Approver, TlsIdentity, client_config, server_config};

/// How long a peer may take to connect and shake hands.
const HANDSHAKE_MAX: Duration = Duration::from_secs(20);
/// Most connections at once; more wait.
const CONNECTIONS_MAX: usize = 4096;
/// How long a certificate is used; it is valid for a day.
const RENEW_AFTER: Duration = Duration::from_secs(16 * 3600);

/// Makes a key and certificate.
pub type Issuer = Box<dyn Fn() -> Result<TlsIdentity, String> + Send + Sync>;

/// Which side of TLS the relay is.
pub enum Side {
    /// Plain in, TLS to an approved server out.
    Client { server: Arc<dyn Approver> },
    /// TLS in (from approved clients, if there is an approver), plain out.
    Server { clients: Option<Arc<dyn Approver>> },
}

enum Ready {
    Client(TlsConnector),
    Server(TlsAcceptor),
}

/// Relays from `listen` to `forward` until the process ends. Says on which address it listens, and
/// why connections fail, through `log`.
pub fn run(
    listen: &str,
    forward: &str,
    side: Side,
    issuer: Option<Issuer>,
    log: &mut dyn FnMut(String),
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(listen, forward, side, issuer, log))
}

async fn serve(
    listen: &str,
    forward: &str,
    side: Side,
    issuer: Option<Issuer>,
    log: &mut dyn FnMut(String),
) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    log(format!("proxy listens on {}", listener.local_addr()?));
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (failures, mut failed) = tokio::sync::mpsc::unbounded_channel::<String>();
    let mut ready = Arc::new(prepare(&side, issuer.as_ref())?);
    let mut made = Instant::now();
    loop {
        let permit = slots
            .clone()
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        let (plain, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // A client that is gone already, or no descriptors for a moment.
                Err(error) => {
                    log(format!("a connection could not be accepted: {error}"));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
            Some(line) = failed.recv() => {
                log(line);
                continue;
            }
        };
        if issuer.is_some() && made.elapsed() > RENEW_AFTER {
            match prepare(&side, issuer.as_ref()) {
                Ok(fresh) => {
                    ready = Arc::new(fresh);
                    made = Instant::now();
                }
                Err(error) => log(format!("the certificate cannot be renewed: {error}")),
            }
        }
        let (ready, failures, forward) = (ready.clone(), failures.clone(), forward.to_string());
        tokio::spawn(async move {
            if let Err(error) = relay(plain, &ready, &forward).await {
                let _ = failures.send(format!("{peer}: {error}"));
            }
            drop(permit);
        });
    }
}

fn prepare(side: &Side, issuer: Option<&Issuer>) -> io::Result<Ready> {
    let own = issuer
        .map(|issue| issue().map_err(io::Error::other))
        .transpose()?;
    Ok(match side {
        Side::Client { server } => {
            let config = client_config(server.clone(), own.as_ref()).map_err(io::Error::other)?;
            Ready::Client(Arc::new(config).into())
        }
        Side::Server { clients } => {
            let own = own.ok_or_else(|| io::Error::other("a server needs a certificate"))?;
            let config = server_config(&own, clients.clone()).map_err(io::Error::other)?;
            Ready::Server(Arc::new(config).into())
        }
    })
}

async fn relay(accepted: TcpStream, ready: &Ready, forward: &str) -> io::Result<()> {
    let connect = async {
        let stream = TcpStream::connect(forward).await?;
        stream.set_nodelay(true)?;
        io::Result::Ok(stream)
    };
    accepted.set_nodelay(true)?;
    match ready {
        Ready::Client(connector) => {
            let host = forward.rsplit_once(':').map_or(forward, |(host, _)| host);
            let host = host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_string();
            let name = ServerName::try_from(host).map_err(io::Error::other)?;
            let tls = timeout(HANDSHAKE_MAX, async {
                connector.connect(name, connect.await?).await
            })
            .await??;
            copy(accepted, tls).await
        }
        Ready::Server(acceptor) => {
            let tls = timeout(HANDSHAKE_MAX, acceptor.accept(accepted)).await??;
            // Only a client that was approved reaches the program behind.
            let plain = timeout(HANDSHAKE_MAX, connect).await??;
            copy(plain, tls).await
        }
    }
}

async fn copy<A, B>(mut plain: A, mut tls: B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let copied = copy_bidirectional(&mut plain, &mut tls).await;
    let _ = tls.shutdown().await;
    match copied {
        // Peers that hang up without a farewell are everyday.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        other => other.map(drop),
    }
}
