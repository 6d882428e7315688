//! The certificate authority: its key, and the certificates and lists that it signs.

use crate::certificate::{self, validity_of};
use crate::error::Cause;
use crate::files::{io, make_dir, read_if_there, write_atomically};
use crate::{Error, Result};
use mvm_api::identity::{Facts, Identity, SERVER_NAME, Serial};
use mvm_model::{Timestamp, hex};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::time::Duration;
use time::OffsetDateTime;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = DAY.saturating_mul(365);
/// How long the certificate of an authority is valid.
const AUTHORITY_LIFETIME: Duration = YEAR.saturating_mul(10);
/// How far clocks may differ. Certificates are valid from this long before they are issued, but
/// from no more than a tenth of their lifetime before.
const SKEW: Duration = Duration::from_secs(300);
/// When a revocation list announces its successor. No verifier refuses an old list: nodes go on
/// serving while no signer is in reach.
const NEXT_LIST: Duration = DAY.saturating_mul(30);

/// The default lifetime of a node's or coordinator's certificate.
pub const NODE_LIFETIME: Duration = DAY.saturating_mul(30);
/// The default lifetime of a person's certificate.
pub const OPERATOR_LIFETIME: Duration = YEAR;

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate in PEM.
    pub pem: String,
    /// The certificate's contents.
    pub facts: Facts,
}

/// A revoked certificate.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Revocation {
    /// The certificate's serial number.
    pub serial: Serial,
    /// When the certificate was revoked.
    pub at: Timestamp,
    /// When the certificate expires. The list need not name it after that.
    pub not_after: Timestamp,
}

/// A certificate authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    not_after: Timestamp,
}

impl Authority {
    /// Makes an authority in the directory `dir`. Fails where the directory has one.
    pub fn create(dir: &Path, now: Timestamp) -> Result<Authority> {
        let (certificate, key) = files(dir);
        if certificate.exists() {
            return Err(Error::AuthorityExists(dir.to_owned()));
        }
        make_dir(dir, 0o700)?;
        let pair = new_key()?;
        let params = params_of_authority(now)?;
        let made = params.self_signed(&pair).map_err(Error::Signing)?;
        // The certificate marks a whole authority, so it is written last.
        write_atomically(&key, pair.serialize_pem().as_bytes(), 0o600)?;
        write_atomically(&certificate, made.pem().as_bytes(), 0o600)?;
        Authority::open(dir)
    }

    /// Opens the authority in the directory `dir`.
    pub fn open(dir: &Path) -> Result<Authority> {
        let (certificate, key) = files(dir);
        let absent = || Error::AuthorityMissing(dir.to_owned());
        let pem = read_if_there(&certificate)?.ok_or_else(absent)?;
        let key = read_if_there(&key)?.ok_or_else(absent)?;
        let damaged = |cause: Cause| Error::AuthorityDamaged { path: dir.to_owned(), cause };
        let pem = String::from_utf8(pem).map_err(|e| damaged(e.into()))?;
        let key = String::from_utf8(key).map_err(|e| damaged(e.into()))?;
        let key = KeyPair::from_pem(&key).map_err(|e| damaged(e.into()))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(e.into()))?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| damaged(e.into()))?;
        Ok(Authority { issuer, pem, not_after: validity_of(&der)?.not_after })
    }

    /// Returns the authority's private key, from which other keys are derived.
    pub(crate) fn secret(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }

    /// Returns the authority's certificate in PEM.
    pub fn certificate(&self) -> &str {
        &self.pem
    }

    /// Issues a certificate for `identity` and the public key, valid for `lifetime` from `now`.
    pub fn issue(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Issued> {
        // X.509 counts in seconds. A lifetime of less than three leaves no time to renew.
        if lifetime < 3 * SECOND {
            return Err(Error::Lifetime(lifetime));
        }
        let not_after = (now + lifetime).min(self.not_after) - SECOND;
        let not_before = now - SKEW.min(lifetime / 10);
        let mut params = CertificateParams::default();
        params.not_before = time(not_before)?;
        params.not_after = time(not_after)?;
        params.serial_number = Some(new_serial()?);
        params.distinguished_name = named(&identity.holder());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let text = |text: &str| text.try_into().map_err(Error::Signing);
        params.subject_alt_names = vec![SanType::URI(text(&identity.to_string())?)];
        if identity.role().serves() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            params.subject_alt_names.push(SanType::DnsName(text(SERVER_NAME)?));
        }
        let made = params.signed_by(key, &self.issuer).map_err(Error::Signing)?;
        Ok(Issued { pem: made.pem(), facts: certificate::read(made.der())? })
    }

    /// Like [`Authority::issue`], for the key of a signing request. Only the key is used; the
    /// request's signature proves that the sender has it.
    pub fn answer(
        &self,
        identity: &Identity,
        request: &str,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Issued> {
        self.issue(identity, &parsed_request(request)?.public_key, lifetime, now)
    }

    /// Signs a revocation list and returns it in PEM. `number` must be higher than that of every
    /// earlier list.
    pub fn list(&self, number: u64, revoked: &[Revocation], now: Timestamp) -> Result<String> {
        let entry = |one: &Revocation| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from(one.serial.bytes()),
                revocation_time: time(one.at)?,
                reason_code: None,
                invalidity_date: None,
            })
        };
        let params = CertificateRevocationListParams {
            this_update: time(now)?,
            next_update: time(now + NEXT_LIST)?,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect::<Result<_>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).and_then(|list| list.pem()).map_err(Error::Signing)
    }
}

/// Returns the paths of the authority's certificate and key.
fn files(dir: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    (dir.join("ca.pem"), dir.join("ca-key.pem"))
}

fn params_of_authority(now: Timestamp) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.not_before = time(now - SKEW)?;
    params.not_after = time(now + AUTHORITY_LIFETIME)?;
    let serial = new_serial()?;
    // The subject's name, too, tells two authorities apart.
    let mark = Serial::of(&serial.to_bytes()[..4]);
    params.serial_number = Some(serial);
    params.distinguished_name = named(&format!("mvm authority {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

/// Makes a new key: ECDSA on P-256.
pub fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Signing)
}

/// Makes a signing request for the key, in PEM. The authority uses only the key in it.
pub fn request(key: &KeyPair) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("mvm");
    params.serialize_request(key).and_then(|request| request.pem()).map_err(Error::Signing)
}

/// Checks the signature of a signing request. Returns the digest of the request's public key in
/// hexadecimal digits.
pub fn request_key(request: &str) -> Result<String> {
    Ok(hex::sha256(parsed_request(request)?.public_key.der_bytes()))
}

fn parsed_request(request: &str) -> Result<CertificateSigningRequestParams> {
    CertificateSigningRequestParams::from_pem(request).map_err(Error::SigningRequest)
}

/// Draws sixteen random bytes that make a positive number of that length.
fn new_serial() -> Result<SerialNumber> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| io("draw a serial number", e.into()))?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn time(at: Timestamp) -> Result<OffsetDateTime> {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).map_err(Error::Time)
}
