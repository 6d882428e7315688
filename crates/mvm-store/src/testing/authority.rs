//! Certificates for a test.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// A certificate authority that lasts as long as a test.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    /// Makes an authority whose certificate is `ca.pem` in `dir`.
    pub fn new(dir: &Path) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("authority");
        std::fs::write(dir.join("ca.pem"), issuer.pem()).expect("ca.pem");
        Authority { issuer, dir: dir.to_owned() }
    }

    /// Returns the path of its own certificate.
    pub fn path(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Signs a certificate for both sides of a connection, and writes it and its key to `NAME.pem`
    /// and `NAME.key`.
    pub fn sign(&self, name: &str, addresses: &[IpAddr]) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = addresses.iter().copied().map(SanType::IpAddress).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        let paths = (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}.key")));
        std::fs::write(&paths.0, certificate.pem()).expect("certificate");
        std::fs::write(&paths.1, key.serialize_pem()).expect("key");
        paths
    }
}
