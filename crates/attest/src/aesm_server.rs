//! The other end of [`crate::Aesm`]: serves a quoting library as AESM does, so that what makes quotes
//! can be a process of its own, and nobody who asks needs that library.
//!
//! One request a connection, one connection at a time (the libraries lock inside anyway); each is
//! bounded in size and time.

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use bulla_sgx::{Report, TargetInfo};
use prost::Message;

use crate::aesm::{
    ALGORITHM_AT, BytesResponse, CodeResponse, ECDSA_P256, KEY_ID_SIZE, KeysResponse,
    NumberResponse, QuoteResponse, Request, Response, read_until,
};
use crate::quote::QUOTE_MAX;

/// Largest request: a REPORT, a key's id, and some.
const REQUEST_MAX: usize = 4096;
/// A client that needs longer to say what it wants is let go.
const PATIENCE: Duration = Duration::from_secs(2);
/// Size of the public key's hash, which nobody here asks for but the protocol transports.
const PUBLIC_KEY_SIZE: u64 = 32;

/// What makes quotes. Errors are AESM's codes.
pub trait QuotingLibrary {
    fn target_info(&self) -> Result<[u8; TargetInfo::SIZE], u32>;
    fn quote_size(&self) -> Result<u32, u32>;
    fn quote(&self, report: &[u8; Report::SIZE]) -> Result<Vec<u8>, u32>;
}

/// AESM's code for a parameter that is wrong.
const PARAMETER: u32 = 3;
/// And for a request that it does not know.
const UNSUPPORTED: u32 = 1;

/// Serves until the socket fails.
pub fn serve(listener: &UnixListener, library: &dyn QuotingLibrary) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        // A client that misbehaves loses its connection, no more.
        let _ = answer(&mut stream, library);
    }
}

fn answer(stream: &mut UnixStream, library: &dyn QuotingLibrary) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut length = [0; 4];
    read_until(stream, &mut length, deadline)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > REQUEST_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    read_until(stream, &mut message, deadline)?;
    let response = match Request::decode(&message[..]) {
        Ok(request) => respond(&request, library),
        Err(_) => unsupported(),
    };
    let message = response.encode_to_vec();
    stream.write_all(&(message.len() as u32).to_le_bytes())?;
    stream.write_all(&message)
}

fn unsupported() -> Response {
    Response {
        unsupported: Some(CodeResponse { code: UNSUPPORTED }),
        ..Response::default()
    }
}

/// The id of the only key: all of it but the algorithm is the quoting enclave's business.
fn key_id() -> Vec<u8> {
    let mut id = vec![0; KEY_ID_SIZE];
    id[ALGORITHM_AT..ALGORITHM_AT + 4].copy_from_slice(&ECDSA_P256.to_le_bytes());
    id
}

fn respond(request: &Request, library: &dyn QuotingLibrary) -> Response {
    let empty = Response::default();
    if request.key_count.is_some() {
        return Response {
            key_count: Some(NumberResponse {
                code: 0,
                number: Some(1),
            }),
            ..empty
        };
    }
    if let Some(keys) = &request.keys {
        let fits = keys.buf_size as usize >= KEY_ID_SIZE;
        return Response {
            keys: Some(KeysResponse {
                code: if fits { 0 } else { PARAMETER },
                ids: fits.then(key_id),
            }),
            ..empty
        };
    }
    if let Some(init) = &request.init {
        let target = library.target_info();
        return Response {
            init: Some(BytesResponse {
                code: target.err().unwrap_or(0),
                // The first call asks for the key's size only.
                bytes: target
                    .ok()
                    .filter(|_| init.buf_size.is_some())
                    .map(Vec::from),
                public_key_size: Some(PUBLIC_KEY_SIZE),
            }),
            ..empty
        };
    }
    if request.size.is_some() {
        let size = library.quote_size();
        return Response {
            size: Some(NumberResponse {
                code: size.err().unwrap_or(0),
                number: size.ok(),
            }),
            ..empty
        };
    }
    if let Some(wanted) = &request.quote {
        let quote = <&[u8; Report::SIZE]>::try_from(&wanted.report[..])
            .map_err(|_| PARAMETER)
            .and_then(|report| library.quote(report))
            .and_then(|quote| {
                let room = QUOTE_MAX.min(wanted.buf_size as usize);
                (quote.len() <= room).then_some(quote).ok_or(PARAMETER)
            });
        return Response {
            quote: Some(QuoteResponse {
                code: quote.as_ref().err().copied().unwrap_or(0),
                quote: quote.ok(),
            }),
            ..empty
        };
    }
    unsupported()
}
