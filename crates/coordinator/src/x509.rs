//! X.509 certificates (RFC 5280), written to the byte: names, extensions and signatures as Go's
//! library writes them, so that what MarbleRun's clients compare compares equal.

use crate::keys::{KeyError, Signer};
use crate::manifest::{CertificateTemplate, Subject};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use time::OffsetDateTime;
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, Tag, construct_der};

/// Bits of KeyUsage, as Go numbers them.
pub mod key_usage {
    pub const DIGITAL_SIGNATURE: u32 = 1;
    pub const KEY_AGREEMENT: u32 = 1 << 4;
    pub const CERT_SIGN: u32 = 1 << 5;
    pub const CRL_SIGN: u32 = 1 << 6;
}

/// The extended key usages of Go's enumeration that this project uses itself.
pub mod ext_key_usage {
    pub const SERVER: u32 = 1;
    pub const CLIENT: u32 = 2;
}

/// Everything a certificate says. Names are DER, so that twins have equal bytes.
pub struct Certificate<'a> {
    pub issuer: &'a [u8],
    pub subject: &'a [u8],
    pub spki: &'a [u8],
    pub authority_key_id: Option<&'a [u8]>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub key_usage: u32,
    pub ext_key_usage: &'a [u32],
    pub unknown_ext_key_usage: &'a [Vec<u64>],
    pub is_ca: bool,
    pub path_len: Option<u8>,
    pub names: AlternativeNames<'a>,
    /// OID, critical, value.
    pub extra: Vec<(Vec<u64>, bool, Vec<u8>)>,
}

#[derive(Default, Clone, Copy)]
pub struct AlternativeNames<'a> {
    pub dns: &'a [String],
    pub ip: &'a [IpAddr],
    pub email: &'a [String],
}

/// A signed body (ecdsa-with-SHA384), DER.
pub(crate) fn signed(body: &[u8], signer: &Signer) -> Result<Vec<u8>, KeyError> {
    let signature = signer.sign(body)?;
    Ok(construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_der(body);
            write_algorithm(writer.next());
            writer
                .next()
                .write_bitvec_bytes(&signature, signature.len() * 8);
        });
    }))
}

impl Certificate<'_> {
    /// Signs the certificate (ecdsa-with-SHA384) and returns its DER.
    pub fn sign(&self, signer: &Signer) -> Result<Vec<u8>, KeyError> {
        let mut serial = [0u8; 16];
        getrandom::fill(&mut serial).map_err(|e| KeyError::Generate("serial", e.to_string()))?;
        // A positive, non-zero number of full length.
        serial[0] = serial[0] & 0x7f | 0x40;
        let body = self.body(&serial);
        signed(&body, signer)
    }

    fn body(&self, serial: &[u8]) -> Vec<u8> {
        construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer
                    .next()
                    .write_tagged(Tag::context(0), |writer| writer.write_u8(2));
                writer.next().write_bigint_bytes(serial, true);
                write_algorithm(writer.next());
                writer.next().write_der(self.issuer);
                writer.next().write_sequence(|writer| {
                    writer.next().write_der(&time_der(self.not_before));
                    writer.next().write_der(&time_der(self.not_after));
                });
                writer.next().write_der(self.subject);
                writer.next().write_der(self.spki);
                writer.next().write_tagged(Tag::context(3), |writer| {
                    writer.write_sequence(|writer| {
                        for (oid, critical, value) in self.extensions() {
                            writer.next().write_sequence(|writer| {
                                writer.next().write_oid(&ObjectIdentifier::new(oid));
                                if critical {
                                    writer.next().write_bool(true);
                                }
                                writer.next().write_bytes(&value);
                            });
                        }
                    });
                });
            });
        })
    }

    fn extensions(&self) -> Vec<(Vec<u64>, bool, Vec<u8>)> {
        let mut list = Vec::new();
        if self.key_usage != 0 {
            list.push((vec![2, 5, 29, 15], true, key_usage_der(self.key_usage)));
        }
        if !self.ext_key_usage.is_empty() || !self.unknown_ext_key_usage.is_empty() {
            let value = construct_der(|writer| {
                writer.write_sequence(|writer| {
                    let known = self
                        .ext_key_usage
                        .iter()
                        .filter_map(|usage| ext_key_usage_oid(*usage));
                    for oid in known.chain(self.unknown_ext_key_usage.iter().cloned()) {
                        writer.next().write_oid(&ObjectIdentifier::new(oid));
                    }
                });
            });
            list.push((vec![2, 5, 29, 37], false, value));
        }
        let constraints = construct_der(|writer| {
            writer.write_sequence(|writer| {
                if self.is_ca {
                    writer.next().write_bool(true);
                    if let Some(length) = self.path_len {
                        writer.next().write_u8(length);
                    }
                }
            });
        });
        list.push((vec![2, 5, 29, 19], true, constraints));
        let key_id = key_id(self.spki);
        list.push((
            vec![2, 5, 29, 14],
            false,
            construct_der(|writer| writer.write_bytes(&key_id)),
        ));
        if let Some(authority) = self.authority_key_id {
            let value = construct_der(|writer| {
                writer.write_sequence(|writer| {
                    writer
                        .next()
                        .write_tagged_implicit(Tag::context(0), |writer| {
                            writer.write_bytes(authority);
                        });
                });
            });
            list.push((vec![2, 5, 29, 35], false, value));
        }
        let names = &self.names;
        if !(names.dns.is_empty() && names.ip.is_empty() && names.email.is_empty()) {
            list.push((vec![2, 5, 29, 17], false, names.der()));
        }
        list.extend(self.extra.iter().cloned());
        list
    }
}

impl AlternativeNames<'_> {
    fn der(&self) -> Vec<u8> {
        construct_der(|writer| {
            writer.write_sequence(|writer| {
                let mut name = |tag: u64, bytes: &[u8]| {
                    writer
                        .next()
                        .write_tagged_implicit(Tag::context(tag), |writer| {
                            writer.write_bytes(bytes);
                        });
                };
                self.dns.iter().for_each(|dns| name(2, dns.as_bytes()));
                self.email
                    .iter()
                    .for_each(|email| name(1, email.as_bytes()));
                for ip in self.ip {
                    match ip {
                        IpAddr::V4(ip) => name(7, &ip.octets()),
                        IpAddr::V6(ip) => name(7, &ip.octets()),
                    }
                }
            });
        })
    }
}

/// The subject key identifier: RFC 7093, method 1.
pub fn key_id(spki: &[u8]) -> [u8; 20] {
    use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};
    let digest = match SubjectPublicKeyInfo::from_der(spki) {
        Ok((_, info)) => Sha256::digest(&info.subject_public_key.data),
        Err(_) => Sha256::digest(spki),
    };
    let mut id = [0; 20];
    id.copy_from_slice(&digest[..20]);
    id
}

pub(crate) fn write_algorithm(writer: DERWriter<'_>) {
    writer.write_sequence(|writer| {
        // ecdsa-with-SHA384
        writer
            .next()
            .write_oid(&ObjectIdentifier::from_slice(&[1, 2, 840, 10045, 4, 3, 3]));
    });
}

/// UTCTime until 2049, GeneralizedTime from then on (RFC 5280, 4.1.2.5).
pub(crate) fn time_der(time: OffsetDateTime) -> Vec<u8> {
    let time = time.to_offset(time::UtcOffset::UTC);
    let (tag, year) = match time.year() {
        year @ 1950..=2049 => (0x17, format!("{:02}", year % 100)),
        year => (0x18, format!("{year:04}")),
    };
    let text = format!(
        "{year}{:02}{:02}{:02}{:02}{:02}Z",
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    );
    let mut der = vec![tag, text.len() as u8];
    der.extend_from_slice(text.as_bytes());
    der
}

/// A BIT STRING whose bit 0 is Go's bit 0.
fn key_usage_der(usage: u32) -> Vec<u8> {
    let bytes = [
        (usage as u8).reverse_bits(),
        ((usage >> 8) as u8).reverse_bits(),
    ];
    let used = 16 - (u16::from_be_bytes(bytes).trailing_zeros() as usize).min(16);
    construct_der(|writer| writer.write_bitvec_bytes(&bytes[..used.div_ceil(8)], used))
}

fn ext_key_usage_oid(usage: u32) -> Option<Vec<u64>> {
    let kp = |last: u64| vec![1, 3, 6, 1, 5, 5, 7, 3, last];
    Some(match usage {
        0 => vec![2, 5, 29, 37, 0],
        1..=8 => kp(u64::from(usage)),
        9 => kp(9),
        10 => vec![1, 3, 6, 1, 4, 1, 311, 10, 3, 3],
        11 => vec![2, 16, 840, 1, 113730, 4, 1],
        12 => vec![1, 3, 6, 1, 4, 1, 311, 2, 1, 22],
        13 => vec![1, 3, 6, 1, 4, 1, 311, 61, 1, 1],
        _ => return None,
    })
}

/// A distinguished name in the order and string types of Go: one SET per attribute type.
pub fn name_der(subject: &Subject) -> Vec<u8> {
    construct_der(|writer| {
        writer.write_sequence(|writer| {
            let mut set = |attribute: u64, values: &[String]| {
                if values.is_empty() {
                    return;
                }
                writer.next().write_set_of(|writer| {
                    for value in values {
                        writer.next().write_sequence(|writer| {
                            writer
                                .next()
                                .write_oid(&ObjectIdentifier::from_slice(&[2, 5, 4, attribute]));
                            if is_printable(value) {
                                writer.next().write_printable_string(value);
                            } else {
                                writer.next().write_utf8_string(value);
                            }
                        });
                    }
                });
            };
            let one = |text: &String| match text.is_empty() {
                true => Vec::new(),
                false => vec![text.clone()],
            };
            set(6, &subject.country);
            set(10, &subject.organization);
            set(11, &subject.organizational_unit);
            set(7, &subject.locality);
            set(8, &subject.province);
            set(9, &subject.street_address);
            set(17, &subject.postal_code);
            set(3, &one(&subject.common_name));
            set(5, &one(&subject.serial_number));
        });
    })
}

fn is_printable(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&b))
}

/// A name of a common name alone.
pub fn common_name(name: &str) -> Vec<u8> {
    name_der(&Subject {
        common_name: name.to_owned(),
        ..Subject::default()
    })
}

/// A template's validity, names and usages as a certificate for `spki`.
pub fn from_template(
    template: &CertificateTemplate,
    issuer: &[u8],
    authority_key_id: &[u8],
    spki: &[u8],
    validity: (OffsetDateTime, OffsetDateTime),
    signer: &Signer,
) -> Result<Vec<u8>, KeyError> {
    let ip: Vec<IpAddr> = template.ip_addresses.iter().filter_map(|ip| ip.0).collect();
    let mut extra: Vec<_> = template
        .extra_extensions
        .iter()
        .map(|e| (e.id.clone(), e.critical, e.value.0.clone()))
        .collect();
    if !template.crl_distribution_points.is_empty() {
        extra.push((
            vec![2, 5, 29, 31],
            false,
            distribution_points(&template.crl_distribution_points),
        ));
    }
    if !(template.ocsp_servers.is_empty() && template.issuing_certificate_urls.is_empty()) {
        extra.push((
            vec![1, 3, 6, 1, 5, 5, 7, 1, 1],
            false,
            authority_access(template),
        ));
    }
    let path_len = match template.max_path_len {
        0 if template.max_path_len_zero => Some(0),
        length @ 1..=127 => Some(length as u8),
        _ => None,
    };
    Certificate {
        issuer,
        subject: &name_der(&template.subject),
        spki,
        authority_key_id: Some(authority_key_id),
        not_before: validity.0,
        not_after: validity.1,
        key_usage: template.key_usage,
        ext_key_usage: &template.ext_key_usage,
        unknown_ext_key_usage: &template.unknown_ext_key_usage,
        is_ca: template.is_ca,
        path_len,
        names: AlternativeNames {
            dns: &template.dns_names,
            ip: &ip,
            email: &template.email_addresses,
        },
        extra,
    }
    .sign(signer)
}

fn write_uri(writer: DERWriter<'_>, uri: &str) {
    writer.write_tagged_implicit(Tag::context(6), |writer| writer.write_bytes(uri.as_bytes()));
}

fn distribution_points(points: &[String]) -> Vec<u8> {
    construct_der(|writer| {
        writer.write_sequence(|writer| {
            for point in points {
                writer.next().write_sequence(|writer| {
                    writer.next().write_tagged(Tag::context(0), |writer| {
                        writer.write_tagged_implicit(Tag::context(0), |writer| {
                            writer.write_sequence(|writer| write_uri(writer.next(), point));
                        });
                    });
                });
            }
        });
    })
}

fn authority_access(template: &CertificateTemplate) -> Vec<u8> {
    construct_der(|writer| {
        writer.write_sequence(|writer| {
            let ocsp = template.ocsp_servers.iter().map(|uri| (1, uri));
            let issuers = template.issuing_certificate_urls.iter().map(|uri| (2, uri));
            for (method, uri) in ocsp.chain(issuers) {
                writer.next().write_sequence(|writer| {
                    writer.next().write_oid(&ObjectIdentifier::from_slice(&[
                        1, 3, 6, 1, 5, 5, 7, 48, method,
                    ]));
                    write_uri(writer.next(), uri);
                });
            }
        });
    })
}

/// PEM of one block, lines of 64 characters.
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::prelude::BASE64_STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).unwrap_or_default());
        out.push('\n');
    }
    out + "-----END " + label + "-----\n"
}

/// A signing request (PKCS#10, RFC 2986) for names.
pub fn signing_request(
    signer: &Signer,
    subject: &Subject,
    names: AlternativeNames<'_>,
) -> Result<Vec<u8>, KeyError> {
    let info = construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_u8(0);
            writer.next().write_der(&name_der(subject));
            writer.next().write_der(&signer.keys().spki);
            writer
                .next()
                .write_tagged_implicit(Tag::context(0), |writer| {
                    writer.write_set_of(|writer| {
                        writer.next().write_sequence(|writer| {
                            // extensionRequest
                            writer.next().write_oid(&ObjectIdentifier::from_slice(&[
                                1, 2, 840, 113549, 1, 9, 14,
                            ]));
                            writer.next().write_set_of(|writer| {
                                writer.next().write_sequence(|writer| {
                                    writer.next().write_sequence(|writer| {
                                        writer.next().write_oid(&ObjectIdentifier::from_slice(&[
                                            2, 5, 29, 17,
                                        ]));
                                        writer.next().write_bytes(&names.der());
                                    });
                                });
                            });
                        });
                    });
                });
        });
    });
    signed(&info, signer)
}
