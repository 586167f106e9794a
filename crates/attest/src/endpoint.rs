//! Looking at a live TLS endpoint: its certificate, and that it holds the key; nothing is judged.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

/// Largest answer to a request, in bytes.
const BODY_MAX: usize = 1 << 20;

/// What an endpoint showed.
pub struct Seen {
    /// DER, leaf first. The peer has proven that it holds the leaf's key.
    pub chain: Vec<Vec<u8>>,
    /// The answer to the request, headers included; empty without one.
    pub answer: Vec<u8>,
}

/// Connects, shakes hands, sends `request` (if not empty) and reads the answer, all within a time.
pub fn look(address: &str, request: &[u8], timeout: Duration) -> io::Result<Seen> {
    attempt(address, request, timeout).map_err(|error| explain(error, timeout))
}

/// What an error of the system or of TLS means here.
fn explain(error: io::Error, timeout: Duration) -> io::Error {
    let words = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!(
            "no answer within {} s; check the address, or give it more time (--timeout)",
            crate::bytes::rounded(timeout)
        ),
        io::ErrorKind::ConnectionRefused => {
            "nothing listens there; check the address, and that the program runs".into()
        }
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => {
            format!("the peer hung up ({error}); does it speak TLS at this port?")
        }
        io::ErrorKind::InvalidData if error.get_ref().is_some_and(|inner| inner.is::<Error>()) => {
            format!("the peer does not speak TLS as it should ({error}); check the port")
        }
        _ => return error,
    };
    io::Error::new(error.kind(), words)
}

fn attempt(address: &str, request: &[u8], timeout: Duration) -> io::Result<Seen> {
    let deadline = Instant::now() + timeout;
    let name = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = name
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_string();
    let server = ServerName::try_from(name)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not a host name"))?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut stream = None;
    for address in resolve(address, deadline)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(connected) => {
                stream = Some(connected);
                break;
            }
            Err(error) => last = error,
        }
    }
    let mut stream = Deadline {
        stream: stream.ok_or(last)?,
        deadline,
    };
    let witness = Arc::new(Witness::default());
    let config = ClientConfig::builder_with_provider(witness.provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    let mut connection =
        ClientConnection::new(Arc::new(config), server).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let mut answer = Vec::new();
    if !request.is_empty() {
        let mut tls = rustls::Stream::new(&mut connection, &mut stream);
        tls.write_all(request)?;
        match tls.take(BODY_MAX as u64 + 1).read_to_end(&mut answer) {
            // A peer that hangs up without a farewell has still answered.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ if answer.len() > BODY_MAX => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "an endless answer",
                ));
            }
            _ => {}
        }
    }
    Ok(Seen {
        chain: witness.seen(),
        answer,
    })
}

/// The addresses of `host:port`. The system's resolver knows no time of its own (and may wait for minutes),
/// so it is left behind when time is up.
fn resolve(address: &str, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let address = address.to_string();
    within(deadline, move || Ok(address.to_socket_addrs()?.collect()))
}

/// What `work` comes to, unless it takes too long: then it goes on by itself, for nothing.
fn within<T: Send + 'static>(
    deadline: Instant,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (say, said) = mpsc::sync_channel(1);
    std::thread::Builder::new().spawn(move || drop(say.send(work())))?;
    let left = deadline.saturating_duration_since(Instant::now());
    said.recv_timeout(left)
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A connection with one deadline for all.
struct Deadline {
    stream: TcpStream,
    deadline: Instant,
}

impl Deadline {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Deadline {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(to)
    }
}

impl Write for Deadline {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Accepts any certificate whose key the peer proves to have, and writes down what it is shown.
pub struct Witness {
    seen: Mutex<Vec<Vec<u8>>>,
    /// For the connection, too.
    pub provider: Arc<CryptoProvider>,
}

impl Default for Witness {
    fn default() -> Self {
        Witness {
            seen: Mutex::new(Vec::new()),
            provider: Arc::new(provider::default_provider()),
        }
    }
}

impl Witness {
    /// The chain of the last handshake: DER, leaf first.
    pub fn seen(&self) -> Vec<Vec<u8>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Witness")
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(end_entity).chain(intermediates);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) =
            chain.map(|certificate| certificate.to_vec()).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_that_never_answers_is_left_behind() {
        let deadline = Instant::now() + Duration::from_millis(50);
        let (never, waits) = mpsc::channel::<io::Result<Vec<SocketAddr>>>();
        let stuck = within(deadline, move || waits.recv().unwrap());
        assert_eq!(stuck.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(never);
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(within(later, || Ok(7)).unwrap(), 7);
        assert_eq!(
            resolve("[::1]:5", later).unwrap(),
            ["[::1]:5".parse().unwrap()]
        );
        assert!(!resolve("localhost:5", later).unwrap().is_empty());
        assert!(resolve("no port", later).is_err());
    }
}
