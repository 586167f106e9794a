//! Certificate revocation lists (RFC 5280, section 5): what tells peers of a marble that it is no
//! longer to be trusted, in a form that every TLS library reads.

use crate::keys::{KeyError, Signer};
use crate::x509::{signed, time_der, write_algorithm};
use time::OffsetDateTime;
use yasna::models::ObjectIdentifier;
use yasna::{Tag, construct_der};

pub struct RevocationList<'a> {
    /// The issuer's distinguished name, DER.
    pub issuer: &'a [u8],
    pub issuer_key_id: &'a [u8; 20],
    /// Grows with every list.
    pub number: u64,
    pub this_update: OffsetDateTime,
    pub next_update: OffsetDateTime,
    /// Serial numbers, big-endian.
    pub serials: &'a [Vec<u8>],
}

impl RevocationList<'_> {
    /// Signs the list (ecdsa-with-SHA384) and returns its DER.
    pub fn sign(&self, signer: &Signer) -> Result<Vec<u8>, KeyError> {
        let body = self.body();
        signed(&body, signer)
    }

    fn body(&self) -> Vec<u8> {
        let authority = construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer
                    .next()
                    .write_tagged_implicit(Tag::context(0), |writer| {
                        writer.write_bytes(self.issuer_key_id);
                    });
            });
        });
        let number = construct_der(|writer| writer.write_u64(self.number));
        construct_der(|writer| {
            writer.write_sequence(|writer| {
                // Version 2.
                writer.next().write_u8(1);
                write_algorithm(writer.next());
                writer.next().write_der(self.issuer);
                writer.next().write_der(&time_der(self.this_update));
                writer.next().write_der(&time_der(self.next_update));
                // An empty list is absent.
                if !self.serials.is_empty() {
                    writer.next().write_sequence(|writer| {
                        for serial in self.serials {
                            writer.next().write_sequence(|writer| {
                                writer.next().write_bigint_bytes(serial, true);
                                writer.next().write_der(&time_der(self.this_update));
                            });
                        }
                    });
                }
                writer.next().write_tagged(Tag::context(0), |writer| {
                    writer.write_sequence(|writer| {
                        for (oid, value) in [([2, 5, 29, 35], authority), ([2, 5, 29, 20], number)]
                        {
                            writer.next().write_sequence(|writer| {
                                writer.next().write_oid(&ObjectIdentifier::from_slice(&oid));
                                writer.next().write_bytes(&value);
                            });
                        }
                    });
                });
            });
        })
    }
}
