//! Hardware quotes through AESM: Intel's architectural enclave service, on a UNIX socket.
//!
//! The protocol is `messages.proto` of Intel's SGX software: each message is preceded by its length
//! (32 bits, little endian), one connection carries one request and its response. On AKS the quote
//! helper's socket is this very service. The DCAP library, which does the same in-process, is a C++
//! library that cannot be loaded into a static program: `bulla-quote-helper` loads it, and serves it by
//! the same protocol ([`crate::aesm_server`]).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulla_sgx::{Report, TargetInfo};
use prost::Message;
use thiserror::Error;

use crate::quote::QUOTE_MAX;

/// Where AESM listens, also in AKS pods that mount the quote helper's directory.
pub const SOCKET: &str = "/var/run/aesmd/aesm.socket";

/// The first request may make the service fetch the PCK certificate.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Largest response: a quote, and some.
const RESPONSE_MAX: usize = QUOTE_MAX + 4096;
/// Bytes of an attestation key's id.
pub(crate) const KEY_ID_SIZE: usize = 256;
/// Most keys that a service can offer; real ones have two or three.
const KEYS_MAX: u32 = 64;
/// Offset of the algorithm in a key id, and ECDSA P-256 (sgx_ql_att_key_id_t).
pub(crate) const ALGORITHM_AT: usize = 154;
pub(crate) const ECDSA_P256: u32 = 2;

/// Why AESM gave no quote.
#[derive(Debug, Error)]
pub enum AesmError {
    #[error(
        "AESM cannot be reached at {}: {source}; install and start aesmd, mount its directory into the container, or set SGX_AESM_SOCKET", socket.display()
    )]
    Connect { socket: PathBuf, source: io::Error },
    #[error("AESM did not answer properly: {0}; look at its log (journalctl -u aesmd)")]
    Talk(io::Error),
    #[error("AESM refuses ({request}): {} (code {code}); {}", meaning(*code).0, meaning(*code).1)]
    Refused { request: &'static str, code: u32 },
    #[error(
        "AESM offers no ECDSA P-256 attestation key; install libsgx-aesm-ecdsa-plugin and libsgx-aesm-quote-ex-plugin"
    )]
    NoKey,
}

/// An error code (aesm_error.h of Intel's platform software) in words, and what to do.
fn meaning(code: u32) -> (&'static str, &'static str) {
    match code {
        1 => ("unexpected error", "look at its log"),
        2 | 24 | 25 => (
            "no SGX device",
            "check /dev/sgx_enclave and /dev/sgx_provision in its container",
        ),
        3 => ("wrong parameter", "update the SGX software of this machine"),
        12 => (
            "network failure",
            "check the PCCS URL in /etc/sgx_default_qcnl.conf, and that it can be reached",
        ),
        13 => ("network busy", "try again"),
        14 => (
            "proxy setting",
            "check its proxy settings (/etc/aesmd.conf)",
        ),
        15 | 33 => (
            "its files cannot be used",
            "check the permissions of /var/opt/aesmd",
        ),
        17 => ("service stopped", "start aesmd"),
        18 | 19 => ("busy", "try again"),
        20 => (
            "its software is too old for this platform",
            "update the SGX software of this machine",
        ),
        21 => ("out of memory", "free memory on this machine"),
        29 => (
            "out of enclave memory",
            "free enclave memory on this machine",
        ),
        30 => (
            "service unavailable",
            "install libsgx-aesm-quote-ex-plugin and libsgx-aesm-ecdsa-plugin",
        ),
        31 => (
            "platform unknown to Intel",
            "register this platform (PCKIDRetrievalTool, or the multi-package registration agent)",
        ),
        32 | 34 | 35 | 37 => (
            "its stored key does not fit",
            "delete the key in /var/opt/aesmd/data, and restart aesmd",
        ),
        38 => (
            "unsupported attestation key",
            "update the SGX software of this machine",
        ),
        40 | 48 => (
            "the quoting enclave cannot be loaded",
            "install libsgx-ae-qe3 and libsgx-ae-pce, and check /dev/sgx_provision in its container",
        ),
        41 => (
            "no quote provider library",
            "install libsgx-dcap-default-qpl (on Azure: az-dcap-client)",
        ),
        42 => ("the key has no certificate yet", "try again"),
        43 | 44 => (
            "no PCK certificate for this platform",
            "check the quote provider library and its PCCS URL (/etc/sgx_default_qcnl.conf)",
        ),
        45 | 47 => (
            "the report cannot be verified",
            "it was made for another quoting enclave, or before a restart; try again",
        ),
        46 => (
            "the quoting enclave was lost in a power transition",
            "try again",
        ),
        49 | 50 => (
            "the quoting enclave does not fit the platform",
            "update the SGX software and the microcode of this machine together",
        ),
        _ => (
            "an error",
            "look its code up in aesm_error.h, and at its log",
        ),
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyCountRequest {
    #[prost(uint32, optional, tag = "9")]
    pub(crate) timeout: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeysRequest {
    #[prost(uint32, required, tag = "1")]
    pub(crate) buf_size: u32,
    #[prost(uint32, optional, tag = "9")]
    pub(crate) timeout: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct InitRequest {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(crate) key_id: Option<Vec<u8>>,
    #[prost(bool, required, tag = "3")]
    pub(crate) with_public_key: bool,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) buf_size: Option<u64>,
    #[prost(uint32, optional, tag = "9")]
    pub(crate) timeout: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SizeRequest {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(crate) key_id: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "9")]
    pub(crate) timeout: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct QuoteRequest {
    #[prost(bytes = "vec", required, tag = "1")]
    pub(crate) report: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(crate) key_id: Option<Vec<u8>>,
    #[prost(uint32, required, tag = "4")]
    pub(crate) buf_size: u32,
    #[prost(uint32, optional, tag = "9")]
    pub(crate) timeout: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(message, optional, tag = "15")]
    pub(crate) init: Option<InitRequest>,
    #[prost(message, optional, tag = "16")]
    pub(crate) size: Option<SizeRequest>,
    #[prost(message, optional, tag = "17")]
    pub(crate) quote: Option<QuoteRequest>,
    #[prost(message, optional, tag = "21")]
    pub(crate) key_count: Option<KeyCountRequest>,
    #[prost(message, optional, tag = "22")]
    pub(crate) keys: Option<KeysRequest>,
}

/// All responses have an error code, and then a number, bytes, or both, in these places.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NumberResponse {
    #[prost(uint32, required, tag = "1")]
    pub(crate) code: u32,
    #[prost(uint32, optional, tag = "2")]
    pub(crate) number: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct BytesResponse {
    #[prost(uint32, required, tag = "1")]
    pub(crate) code: u32,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(crate) bytes: Option<Vec<u8>>,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) public_key_size: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CodeResponse {
    #[prost(uint32, required, tag = "1")]
    pub(crate) code: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Response {
    #[prost(message, optional, tag = "15")]
    pub(crate) init: Option<BytesResponse>,
    #[prost(message, optional, tag = "16")]
    pub(crate) size: Option<NumberResponse>,
    #[prost(message, optional, tag = "17")]
    pub(crate) quote: Option<QuoteResponse>,
    #[prost(message, optional, tag = "20")]
    pub(crate) unsupported: Option<CodeResponse>,
    #[prost(message, optional, tag = "21")]
    pub(crate) key_count: Option<NumberResponse>,
    #[prost(message, optional, tag = "22")]
    pub(crate) keys: Option<KeysResponse>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct QuoteResponse {
    #[prost(uint32, required, tag = "1")]
    pub(crate) code: u32,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(crate) quote: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeysResponse {
    #[prost(uint32, required, tag = "1")]
    pub(crate) code: u32,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(crate) ids: Option<Vec<u8>>,
}

/// The service behind a socket.
#[derive(Clone, Debug)]
pub struct Aesm {
    socket: PathBuf,
    timeout: Duration,
}

impl Aesm {
    /// The service at SGX_AESM_SOCKET, else at [`SOCKET`].
    pub fn of_machine() -> Aesm {
        let named = std::env::var_os("SGX_AESM_SOCKET").filter(|name| !name.is_empty());
        Aesm::at(Path::new(&named.unwrap_or_else(|| SOCKET.into())))
    }

    pub fn at(socket: &Path) -> Aesm {
        Aesm {
            socket: socket.to_owned(),
            timeout: TIMEOUT,
        }
    }

    /// Gives up earlier, or later.
    pub fn with_timeout(self, timeout: Duration) -> Aesm {
        Aesm { timeout, ..self }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// For whom reports must be made: TARGETINFO of the quoting enclave.
    pub fn target_info(&self) -> Result<[u8; TargetInfo::SIZE], AesmError> {
        let key = self.key_id()?;
        let (target, _) = self.init(&key)?;
        Ok(target)
    }

    /// A quote over a REPORT.
    pub fn quote(&self, report: &[u8; Report::SIZE]) -> Result<Vec<u8>, AesmError> {
        let key_id = self.key_id()?;
        // The service wants its key initialised in the same run.
        self.init(&key_id)?;
        let request = Request {
            size: Some(SizeRequest {
                key_id: Some(key_id.clone()),
                timeout: self.microseconds(),
            }),
            ..Request::default()
        };
        let size = self.transact(&request)?.size.ok_or_else(missing)?;
        refused("quote size", size.code)?;
        let size = size
            .number
            .filter(|size| *size > 0 && *size as usize <= QUOTE_MAX)
            .ok_or_else(missing)?;
        let request = Request {
            quote: Some(QuoteRequest {
                report: report.to_vec(),
                key_id: Some(key_id),
                buf_size: size,
                timeout: self.microseconds(),
            }),
            ..Request::default()
        };
        let answer = self.transact(&request)?.quote.ok_or_else(missing)?;
        refused("quote", answer.code)?;
        answer
            .quote
            .filter(|quote| !quote.is_empty() && quote.len() <= QUOTE_MAX)
            .ok_or_else(missing)
    }

    /// The ECDSA key.
    fn key_id(&self) -> Result<Vec<u8>, AesmError> {
        let request = Request {
            key_count: Some(KeyCountRequest {
                timeout: self.microseconds(),
            }),
            ..Request::default()
        };
        let count = self.transact(&request)?.key_count.ok_or_else(missing)?;
        refused("attestation keys", count.code)?;
        let count = count
            .number
            .filter(|count| *count <= KEYS_MAX)
            .ok_or_else(missing)?;
        let request = Request {
            keys: Some(KeysRequest {
                buf_size: count * KEY_ID_SIZE as u32,
                timeout: self.microseconds(),
            }),
            ..Request::default()
        };
        let keys = self.transact(&request)?.keys.ok_or_else(missing)?;
        refused("attestation keys", keys.code)?;
        let ids = keys.ids.unwrap_or_default();
        let is_ecdsa = |id: &&[u8]| {
            let algorithm = id.get(ALGORITHM_AT..ALGORITHM_AT + 4);
            algorithm == Some(&ECDSA_P256.to_le_bytes())
        };
        let id = ids.chunks_exact(KEY_ID_SIZE).find(is_ecdsa);
        id.map(<[u8]>::to_vec).ok_or(AesmError::NoKey)
    }

    /// Makes the service ready; TARGETINFO.
    fn init(&self, key_id: &[u8]) -> Result<([u8; TargetInfo::SIZE], u64), AesmError> {
        let request = |size: Option<u64>| Request {
            init: Some(InitRequest {
                key_id: Some(key_id.to_vec()),
                with_public_key: size.is_some(),
                buf_size: size,
                timeout: self.microseconds(),
            }),
            ..Request::default()
        };
        let first = self.transact(&request(None))?.init.ok_or_else(missing)?;
        refused("initialisation", first.code)?;
        let size = first
            .public_key_size
            .filter(|size| *size <= 4096)
            .ok_or_else(missing)?;
        let second = self
            .transact(&request(Some(size)))?
            .init
            .ok_or_else(missing)?;
        refused("initialisation", second.code)?;
        let target = second.bytes.unwrap_or_default();
        let target = target.as_slice().try_into().map_err(|_| missing())?;
        Ok((target, size))
    }

    fn microseconds(&self) -> Option<u32> {
        u32::try_from(self.timeout.as_micros()).ok()
    }

    /// One request and its response, bounded in time and size.
    fn transact(&self, request: &Request) -> Result<Response, AesmError> {
        let mut stream =
            UnixStream::connect(&self.socket).map_err(|source| AesmError::Connect {
                socket: self.socket.clone(),
                source,
            })?;
        let deadline = Instant::now() + self.timeout;
        let talk = || -> io::Result<Response> {
            stream.set_write_timeout(Some(self.timeout))?;
            let message = request.encode_to_vec();
            stream.write_all(&(message.len() as u32).to_le_bytes())?;
            stream.write_all(&message)?;
            let mut length = [0; 4];
            read_until(&mut stream, &mut length, deadline)?;
            let length = u32::from_le_bytes(length) as usize;
            if length > RESPONSE_MAX {
                return Err(invalid(&format!("a response of {length} bytes")));
            }
            let mut response = vec![0; length];
            read_until(&mut stream, &mut response, deadline)?;
            Response::decode(&response[..]).map_err(|error| invalid(&error.to_string()))
        };
        let mut talk = talk;
        let response = talk().map_err(AesmError::Talk)?;
        if let Some(CodeResponse { code }) = response.unsupported {
            return Err(AesmError::Refused {
                request: "unsupported",
                code,
            });
        }
        Ok(response)
    }
}

/// A peer that sends a byte now and then must not hold us for ever.
pub(crate) fn read_until(
    stream: &mut UnixStream,
    to: &mut [u8],
    deadline: Instant,
) -> io::Result<()> {
    let mut filled = 0;
    while filled < to.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut to[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

fn missing() -> AesmError {
    AesmError::Talk(invalid("a part of the answer is missing or out of range"))
}

fn refused(request: &'static str, code: u32) -> Result<(), AesmError> {
    if code == 0 {
        Ok(())
    } else {
        Err(AesmError::Refused { request, code })
    }
}
