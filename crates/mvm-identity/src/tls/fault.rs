//! TLS errors in words that say whose certificate is at fault.

use crate::Error;
use rustls::{AlertDescription, CertificateError};

/// Returns the TLS error among the causes of an error, told for people; `None` where the cause is
/// another.
pub(super) fn fault_of(at: &str, error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(fault) = error.downcast_ref::<rustls::Error>() {
            return Some(told(at, fault));
        }
        // The source of an I/O error is its inner error's source, which skips the inner error
        // itself.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn told(at: &str, fault: &rustls::Error) -> Error {
    let at = at.to_owned();
    match fault {
        rustls::Error::AlertReceived(alert) => Error::Refused { at, why: refusal(*alert) },
        rustls::Error::InvalidCertificate(cause) => Error::Untrusted { at, why: distrust(cause) },
        fault => Error::Tls { at, cause: fault.clone() },
    }
}

/// Describes why the other side refuses us.
fn refusal(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => "our certificate has run out".to_owned(),
        AlertDescription::CertificateRevoked => "our certificate was revoked".to_owned(),
        AlertDescription::UnknownCA => "another authority signed our certificate".to_owned(),
        AlertDescription::CertificateRequired => "it wants a certificate".to_owned(),
        AlertDescription::DecryptError | AlertDescription::BadCertificate => {
            format!("our certificate is not in order ({alert:?})")
        }
        AlertDescription::ProtocolVersion => "it speaks another version of TLS".to_owned(),
        alert => format!("{alert:?}"),
    }
}

/// Describes why we do not trust the other side.
fn distrust(cause: &CertificateError) -> String {
    match cause {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has run out".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not good yet; compare the clocks".to_owned()
        }
        CertificateError::Revoked => "its certificate was revoked".to_owned(),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "another authority signed its certificate".to_owned()
        }
        CertificateError::NotValidForName
        | CertificateError::NotValidForNameContext { .. }
        | CertificateError::InvalidPurpose
        | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for one that serves".to_owned()
        }
        CertificateError::Other(other) => other.0.to_string(),
        cause => cause.to_string(),
    }
}
