//! Quotes as bytes: what they contain, without any judgement.
//!
//! Decoding is `dcap-qvl`'s; this module adds that nothing may follow a quote but padding with
//! zeros (which quote providers add), and names the fields of an SGX report that the verification
//! library keeps as reserved. Versions 3 (SGX), 4 and 5 (TDX, and SGX under newer providers).

use bulla_sgx::{Attributes, Report, flags};
use dcap_qvl::quote::{Quote as Decoded, Report as Body};
use parity_scale_codec::Encode;
use serde::Serialize;
use thiserror::Error;

use crate::bytes::{HexBytes, one_line};

/// The largest quote that is looked at, in bytes. Real ones have 4 to 6 KiB.
pub const QUOTE_MAX: usize = 64 << 10;

/// Why bytes are no quote.
#[derive(Debug, Error)]
pub enum QuoteError {
    /// A quote of {0} bytes.
    #[error(
        "{0} bytes are too many for a quote (at most {QUOTE_MAX}); is this another kind of file?"
    )]
    TooLarge(usize),
    #[error(
        "this is not a DCAP quote ({0}); a quote starts with its version (3, 4 or 5) in two bytes"
    )]
    Malformed(String),
    #[error("{0} bytes follow the quote; cut them off, they are part of nothing that is signed")]
    Trailing(usize),
}

/// Which kind of trusted environment made a quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tee {
    /// An SGX enclave.
    Sgx,
    /// A TDX virtual machine.
    Tdx,
}

/// What a report says about an SGX enclave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnclaveIdentity {
    pub mrenclave: HexBytes<32>,
    pub mrsigner: HexBytes<32>,
    pub isv_prod_id: u16,
    pub isv_svn: u16,
    pub debug: bool,
    /// ATTRIBUTES.FLAGS and XFRM.
    pub attributes: u64,
    pub xfrm: u64,
    pub misc_select: u32,
    pub cpu_svn: HexBytes<16>,
    pub config_id: HexBytes<64>,
    pub config_svn: u16,
    pub isv_family_id: HexBytes<16>,
    pub isv_ext_prod_id: HexBytes<16>,
    pub report_data: HexBytes<64>,
}

impl EnclaveIdentity {
    /// From the 384 bytes of a report's body.
    pub fn of_body(body: &[u8; Report::BODY_SIZE]) -> EnclaveIdentity {
        let mut bytes = [0; Report::SIZE];
        bytes[..Report::BODY_SIZE].copy_from_slice(body);
        EnclaveIdentity::of(&Report::from_bytes(&bytes))
    }

    /// From a report.
    pub fn of(report: &Report) -> EnclaveIdentity {
        let Attributes { flags, xfrm } = report.attributes;
        EnclaveIdentity {
            mrenclave: HexBytes(report.mrenclave),
            mrsigner: HexBytes(report.mrsigner),
            isv_prod_id: report.isv_prod_id,
            isv_svn: report.isv_svn,
            debug: flags & flags::DEBUG != 0,
            attributes: flags,
            xfrm,
            misc_select: report.misc_select,
            cpu_svn: HexBytes(report.cpu_svn),
            config_id: HexBytes(report.config_id),
            config_svn: report.config_svn,
            isv_family_id: HexBytes(report.isv_family_id),
            isv_ext_prod_id: HexBytes(report.isv_ext_prod_id),
            report_data: HexBytes(report.report_data),
        }
    }
}

/// What a report says about a TDX virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MachineIdentity {
    pub mr_td: HexBytes<48>,
    pub rtmr: [HexBytes<48>; 4],
    pub debug: bool,
    pub report_data: HexBytes<64>,
}

/// Who is quoted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    Enclave(EnclaveIdentity),
    Machine(MachineIdentity),
}

impl Identity {
    /// The 64 bytes that the quoted environment chose.
    pub fn report_data(&self) -> &[u8; 64] {
        match self {
            Identity::Enclave(enclave) => &enclave.report_data.0,
            Identity::Machine(machine) => &machine.report_data.0,
        }
    }

    /// Whether its owner can read its memory with a debugger.
    pub fn debug(&self) -> bool {
        match self {
            Identity::Enclave(enclave) => enclave.debug,
            Identity::Machine(machine) => machine.debug,
        }
    }
}

/// A decoded quote. Nothing in it has been verified.
#[derive(Clone, Debug)]
pub struct Quote {
    pub tee: Tee,
    pub version: u16,
    /// Identifies the platform's quoting enclave installation (first 16 bytes of the user data).
    pub qe_id: [u8; 16],
    pub identity: Identity,
    /// The certificates that the quote carries, as DER, leaf first; empty when it carries none.
    pub certificates: Vec<Vec<u8>>,
}

impl Quote {
    /// Decodes a quote and returns it with the bytes that are really the quote.
    pub fn decode(bytes: &[u8]) -> Result<(Quote, &[u8]), QuoteError> {
        if bytes.len() > QUOTE_MAX {
            return Err(QuoteError::TooLarge(bytes.len()));
        }
        let malformed = |error: String| QuoteError::Malformed(error);
        let decoded =
            Decoded::parse(bytes).map_err(|error| malformed(one_line(&format!("{error:#}"))))?;
        // The library ignores what follows a part inside its declared length; signed or not, such
        // bytes have no place in a quote.
        let canonical = decoded.encode();
        let (exact, rest) = bytes
            .split_at_checked(canonical.len())
            .filter(|(exact, _)| *exact == canonical)
            .ok_or_else(|| malformed("its parts do not add up".into()))?;
        if rest.iter().any(|byte| *byte != 0) {
            return Err(QuoteError::Trailing(rest.len()));
        }
        let identity = match &decoded.report {
            Body::SgxEnclave(_) => {
                let body = exact
                    .get(..decoded.signed_length())
                    .and_then(|signed| signed.last_chunk())
                    .ok_or_else(|| malformed("the report is cut off".into()))?;
                Identity::Enclave(EnclaveIdentity::of_body(body))
            }
            body => {
                let report = body
                    .as_td10()
                    .ok_or_else(|| malformed("an unknown kind of report".into()))?;
                Identity::Machine(MachineIdentity {
                    mr_td: HexBytes(report.mr_td),
                    rtmr: [
                        HexBytes(report.rt_mr0),
                        HexBytes(report.rt_mr1),
                        HexBytes(report.rt_mr2),
                        HexBytes(report.rt_mr3),
                    ],
                    debug: report.td_attributes[0] & 1 != 0,
                    report_data: HexBytes(report.report_data),
                })
            }
        };
        let tee = match &identity {
            Identity::Enclave(_) => Tee::Sgx,
            Identity::Machine(_) => Tee::Tdx,
        };
        let mut qe_id = [0; 16];
        qe_id.copy_from_slice(&decoded.header.user_data[..16]);
        let quote = Quote {
            tee,
            version: decoded.header.version,
            qe_id,
            identity,
            certificates: dcap_qvl::intel::extract_cert_chain(&decoded).unwrap_or_default(),
        };
        Ok((quote, exact))
    }
}
