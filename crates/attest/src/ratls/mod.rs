//! RA-TLS: certificates that carry a quote over their own key.
//!
//! The interoperable profile (Confidential Computing Consortium, "Interoperable RA-TLS"): a CBOR
//! tagged array of quote and claims in the TCG DICE evidence extension; the quote's report data is
//! the hash of the claims, the claims hold the hash of the certificate's key. Optionally the
//! collateral travels along in the DICE endorsements extension. Gramine's older extension, a quote
//! whose report data is the hash of the key, is read, and written where asked for.
//!
//! Who holds the key is proven by the TLS handshake, as with any certificate. So a stolen
//! certificate is of no use, and there is no need for a nonce.

mod evidence;
mod issue;
mod issued;
mod tls;

pub use evidence::{Binding, CertificateEvidence, EvidenceError};
pub use issue::{Attester, Identity as TlsIdentity, IssueError, Request, alternative_names, issue};
pub use issued::{Issued, IssuedError, LIST_MAX};
pub use tls::{Approval, Approver, PeerVerifier, Peers, TlsError, client_config, server_config};

use der::asn1::ObjectIdentifier;

/// tcg-dice-TaggedEvidence, later tcg-dice-conceptual-message-wrapper.
pub const EVIDENCE_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.9");
/// tcg-dice-endorsement-manifest.
pub const ENDORSEMENTS_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.2");
/// Gramine's, as it is documented …
pub const GRAMINE_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1337.6");
/// … and as Gramine really writes it, with its tag and length once more inside.
pub const GRAMINE_WRITTEN_OID: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("0.6.9.42.840.113741.1337.6");

/// CBOR tag of evidence that is an SGX or TDX ECDSA quote.
const QUOTE_TAG: u64 = 60_000;
