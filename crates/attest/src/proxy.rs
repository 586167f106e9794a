//! A relay: plain connections on one side, attested TLS on the other.
//!
//! One thread per connection and direction is not needed: everything runs on one thread's event
//! loop, but for judging peers, which may have to fetch collateral. Certificates are made anew when
//! two thirds of their time have passed.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::ratls::{Approval, Approver, Peers, TlsIdentity, client_config, server_config};

/// Most connections at once; more wait.
const CONNECTIONS_MAX: usize = 4096;
/// Most peers that are judged at once.
const JUDGED_MAX: usize = 64;
/// How long a certificate is used; it is valid for a day.
const RENEW_AFTER: Duration = Duration::from_secs(16 * 3600);

/// Makes a key and certificate.
pub type Issuer = Box<dyn Fn() -> Result<TlsIdentity, String> + Send + Sync>;

/// Which side of TLS the relay is.
pub enum Side {
    /// Plain in, TLS to an approved server out.
    Client { server: Peers },
    /// TLS in (from approved clients, if there is an approver), plain out.
    Server { clients: Option<Peers> },
}

enum Ready {
    Client(TlsConnector),
    Server(TlsAcceptor),
}

/// What is relayed.
pub struct Relay {
    /// Plain or TLS, depending on the side: connections come here.
    pub listen: String,
    /// And go there.
    pub forward: String,
    pub side: Side,
    pub issuer: Option<Issuer>,
    /// How long a peer may take to connect and shake hands.
    pub timeout: Duration,
}

/// Relays until the process ends. Says on which address it listens, and why connections fail,
/// through `log`.
pub fn run(relay: Relay, log: &mut dyn FnMut(String)) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(JUDGED_MAX)
        .enable_all()
        .build()?;
    let aside = |peers| match peers {
        Peers::Attested(approver) => Peers::Attested(Arc::new(Aside(approver))),
        issued => issued,
    };
    let relay = Relay {
        side: match relay.side {
            Side::Client { server } => Side::Client {
                server: aside(server),
            },
            Side::Server { clients } => Side::Server {
                clients: clients.map(aside),
            },
        },
        ..relay
    };
    runtime.block_on(serve(relay, log))
}

/// Lets the other connections go on while a peer is judged, which may take as long as fetching
/// collateral does.
struct Aside(Arc<dyn Approver>);

impl Approver for Aside {
    fn approve(&self, certificate: &[u8], now: u64) -> Result<Approval, String> {
        tokio::task::block_in_place(|| self.0.approve(certificate, now))
    }
}

async fn serve(relay: Relay, log: &mut dyn FnMut(String)) -> io::Result<()> {
    let Relay {
        listen,
        forward,
        side,
        issuer,
        timeout,
    } = relay;
    check_address(&listen)?;
    check_address(&forward)?;
    let listener = TcpListener::bind(&listen)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("{listen}: {error}")))?;
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
        let (ready, failures, forward) = (ready.clone(), failures.clone(), forward.clone());
        tokio::spawn(async move {
            if let Err(error) = pass(plain, &ready, &forward, timeout).await {
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

/// `host:port`.
fn check_address(address: &str) -> io::Result<()> {
    let parts = address.rsplit_once(':');
    match parts.filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        Some(_) => Ok(()),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{address:?} is no address; write HOST:PORT, with a port up to 65535"),
        )),
    }
}

async fn pass(
    accepted: TcpStream,
    ready: &Ready,
    forward: &str,
    patience: Duration,
) -> io::Result<()> {
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
            let tls = in_time(patience, async {
                connector.connect(name, connect.await?).await
            })
            .await?;
            copy(accepted, tls).await
        }
        Ready::Server(acceptor) => {
            let tls = in_time(patience, acceptor.accept(accepted)).await?;
            // Only a client that was approved reaches the program behind.
            let plain = in_time(patience, connect).await?;
            copy(plain, tls).await
        }
    }
}

async fn in_time<T>(
    patience: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    timeout(patience, work).await.unwrap_or_else(|_| {
        let seconds = crate::bytes::rounded(patience);
        let text = format!("no answer within {seconds} s; more time is given with --timeout");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
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
