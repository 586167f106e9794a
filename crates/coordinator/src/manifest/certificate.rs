//! Certificates as manifests describe them: the JSON form of Go's `x509.Certificate`, as far as
//! it says something about a certificate that is yet to be made.

use crate::json::{Bytes, Decode, Json, JsonError, decode_struct};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CertificateTemplate {
    pub subject: Subject,
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<Address>,
    pub email_addresses: Vec<String>,
    pub key_usage: u32,
    pub ext_key_usage: Vec<u32>,
    pub unknown_ext_key_usage: Vec<Vec<u64>>,
    pub not_before: Moment,
    pub not_after: Moment,
    pub is_ca: bool,
    pub max_path_len: i64,
    pub max_path_len_zero: bool,
    pub extra_extensions: Vec<Extension>,
    pub ocsp_servers: Vec<String>,
    pub issuing_certificate_urls: Vec<String>,
    pub crl_distribution_points: Vec<String>,
}
decode_struct!(CertificateTemplate {
    "Subject" => subject, "DNSNames" => dns_names, "IPAddresses" => ip_addresses,
    "EmailAddresses" => email_addresses, "KeyUsage" => key_usage, "ExtKeyUsage" => ext_key_usage,
    "UnknownExtKeyUsage" => unknown_ext_key_usage, "NotBefore" => not_before,
    "NotAfter" => not_after, "IsCA" => is_ca, "MaxPathLen" => max_path_len,
    "MaxPathLenZero" => max_path_len_zero, "ExtraExtensions" => extra_extensions,
    "OCSPServer" => ocsp_servers, "IssuingCertificateURL" => issuing_certificate_urls,
    "CRLDistributionPoints" => crl_distribution_points,
});

/// Go's `pkix.Name`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    pub country: Vec<String>,
    pub organization: Vec<String>,
    pub organizational_unit: Vec<String>,
    pub locality: Vec<String>,
    pub province: Vec<String>,
    pub street_address: Vec<String>,
    pub postal_code: Vec<String>,
    pub serial_number: String,
    pub common_name: String,
}
decode_struct!(Subject {
    "Country" => country, "Organization" => organization,
    "OrganizationalUnit" => organizational_unit, "Locality" => locality,
    "Province" => province, "StreetAddress" => street_address, "PostalCode" => postal_code,
    "SerialNumber" => serial_number, "CommonName" => common_name,
});

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    pub id: Vec<u64>,
    pub critical: bool,
    pub value: Bytes,
}
decode_struct!(Extension { "Id" => id, "Critical" => critical, "Value" => value });

/// An IP address; Go writes it as text, or null.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address(pub Option<IpAddr>);

impl Decode for Address {
    fn decode(&mut self, json: &Json, path: &str) -> Result<(), JsonError> {
        let mut text = String::new();
        text.decode(json, path)?;
        self.0 = match text.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| JsonError::Value {
                path: path.to_owned(),
                reason: format!("invalid IP address: {text}"),
            })?),
        };
        Ok(())
    }
}

/// A time; Go's zero time (year 1) is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment(#[serde(with = "time::serde::rfc3339::option")] pub Option<OffsetDateTime>);

impl Decode for Moment {
    fn decode(&mut self, json: &Json, path: &str) -> Result<(), JsonError> {
        let mut text = String::new();
        text.decode(json, path)?;
        if text.is_empty() {
            return Ok(());
        }
        let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| JsonError::Value {
            path: path.to_owned(),
            reason: format!("not a time as in 2030-01-31T00:00:00Z: {text}"),
        })?;
        self.0 = (time.year() != 1).then_some(time);
        Ok(())
    }
}
