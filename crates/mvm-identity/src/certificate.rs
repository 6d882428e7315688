//! Parses certificates and revocation lists.

use crate::error::{Cause, Error, Result};
use mvm_api::identity::{Facts, Serial, Validity};
use mvm_model::Timestamp;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use std::collections::BTreeSet;
use std::time::Duration;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

/// Reads a certificate without checking its signature. A certificate that names no identity, or
/// more than one, is refused.
pub fn read(certificate: &CertificateDer<'_>) -> Result<Facts> {
    let parsed = parse(certificate)?;
    let names = parsed.subject_alternative_name().map_err(unreadable)?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else {
        return Err(unreadable(format!("it speaks for {} identities, not one", uris.len())));
    };
    Ok(Facts {
        identity: uri.parse()?,
        serial: Serial::of(parsed.raw_serial()),
        validity: validity(&parsed),
    })
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>> {
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(unreadable)?;
    match rest.is_empty() {
        true => Ok(parsed),
        false => Err(unreadable("something stands behind it")),
    }
}

/// Returns the validity of any kind of certificate.
pub fn validity_of(certificate: &CertificateDer<'_>) -> Result<Validity> {
    parse(certificate).map(|parsed| validity(&parsed))
}

fn validity(parsed: &X509Certificate<'_>) -> Validity {
    let validity = parsed.validity();
    Validity {
        not_before: time(validity.not_before),
        // X.509 gives the last second of the period.
        not_after: time(validity.not_after) + Duration::from_secs(1),
    }
}

fn time(time: ASN1Time) -> Timestamp {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    Timestamp::EPOCH + Duration::from_secs(seconds)
}

/// The contents of a revocation list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// The list's number: a higher one is newer.
    pub number: u64,
    /// The serial numbers of the revoked certificates.
    pub serials: BTreeSet<Serial>,
}

impl Revoked {
    /// Reads a revocation list. One that none of these authorities has signed is refused.
    pub fn read(
        list: &CertificateRevocationListDer<'_>,
        authorities: &[CertificateDer<'_>],
    ) -> Result<Revoked> {
        let (_, parsed) = CertificateRevocationList::from_der(list).map_err(invalid_list)?;
        let signed = authorities.iter().any(|authority| {
            parse(authority).is_ok_and(|a| parsed.verify_signature(a.public_key()).is_ok())
        });
        if !signed {
            return Err(invalid_list("none of the authorities that are trusted has signed it"));
        }
        let number = parsed.crl_number().map(|number| number.to_u64_digits());
        let number = match number.as_deref() {
            Some([]) => 0,
            Some([number]) => *number,
            _ => return Err(invalid_list("it has no number")),
        };
        let revoked = parsed.iter_revoked_certificates();
        Ok(Revoked { number, serials: revoked.map(|one| Serial::of(one.raw_serial())).collect() })
    }
}

fn unreadable(cause: impl Into<Cause>) -> Error {
    Error::Certificate(cause.into())
}

fn invalid_list(cause: impl Into<Cause>) -> Error {
    Error::RevocationList(cause.into())
}
