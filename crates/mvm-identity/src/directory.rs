//! An identity on disk: certificate and key, the trusted authorities, and the revocation list.
//!
//! `identity.pem` (mode 0600) holds certificate and key together, so that one rename replaces both
//! and a crash cannot leave a key without its certificate.

use crate::certificate::{self, Revoked};
use crate::error::Cause;
use crate::files::{io, make_dir, read_if_there, write_atomically};
use crate::{Error, Result, authority, rotate};
use mvm_api::identity::Facts;
use mvm_model::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The directory with an identity's files.
#[derive(Clone, Debug)]
pub struct IdentityDir {
    path: PathBuf,
}

/// The addresses of the signer, which renews the identity and publishes the revocation list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signers {
    /// `HOST:PORT`, tried in this order.
    pub addresses: Vec<String>,
}

/// A usable identity: its files, read and checked.
#[derive(Debug)]
pub struct Credential {
    /// The contents of our certificate.
    pub facts: Facts,
    /// Our certificate.
    pub chain: Vec<CertificateDer<'static>>,
    /// Our key.
    pub key: PrivateKeyDer<'static>,
    /// The authorities that are trusted.
    pub roots: Vec<CertificateDer<'static>>,
    /// The authorities' revocation list, as they signed it.
    pub list: Option<CertificateRevocationListDer<'static>>,
    /// The contents of the revocation list.
    pub revoked: Revoked,
    /// The signers that renew the identity.
    pub signers: Signers,
}

impl Clone for Credential {
    fn clone(&self) -> Self {
        Credential {
            facts: self.facts.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            roots: self.roots.clone(),
            list: self.list.clone(),
            revoked: self.revoked.clone(),
            signers: self.signers.clone(),
        }
    }
}

impl Credential {
    /// Reads a certificate and its key (PEM, one after the other), the authorities and the
    /// revocation list. Parts that do not belong together are refused.
    pub fn read(
        identity: &[u8],
        roots: &[u8],
        list: Option<&[u8]>,
        signers: Signers,
    ) -> Result<Credential> {
        let (facts, chain, key) = pair(identity)?;
        let roots = certificates(roots)?;
        if roots.is_empty() {
            return Err(damaged("no authority is trusted"));
        }
        let list = list.map(CertificateRevocationListDer::from_pem_slice);
        let list = list.transpose().map_err(damaged)?;
        let revoked = list.as_ref().map(|list| Revoked::read(list, &roots)).transpose()?;
        let revoked = revoked.unwrap_or_default();
        Ok(Credential { facts, chain, key, roots, list, revoked, signers })
    }

    /// Returns the same identity with a renewed certificate and its key (PEM).
    pub fn renewed(&self, certificate: &str, key: &str) -> Result<Credential> {
        let (facts, chain, key) = pair(format!("{certificate}\n{key}").as_bytes())?;
        Ok(Credential { facts, chain, key, ..self.clone() })
    }

    /// Returns whether the certificate is due for renewal at `now`.
    pub fn due(&self, now: Timestamp) -> bool {
        rotate::due(self.facts.validity, now)
    }
}

/// A certificate and the key that belongs to it.
type Pair = (Facts, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn pair(pem: &[u8]) -> Result<Pair> {
    let chain = certificates(pem)?;
    let first = chain.first().ok_or_else(|| damaged("it holds no certificate"))?;
    let facts = certificate::read(first)?;
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(damaged)?;
    let signing = rustls::crypto::ring::sign::any_supported_type(&key).map_err(damaged)?;
    let both = rustls::sign::CertifiedKey::new(chain.clone(), signing);
    both.keys_match().map_err(|_| damaged("its key is not its certificate's"))?;
    Ok((facts, chain, key))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<_, _>>().map_err(damaged)
}

fn damaged(cause: impl Into<Cause>) -> Error {
    Error::Damaged(cause.into())
}

impl IdentityDir {
    /// Refers to the identity in the directory `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> IdentityDir {
        IdentityDir { path: path.into() }
    }

    /// Returns the directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns whether the directory holds an identity.
    pub fn exists(&self) -> bool {
        self.file("identity.pem").exists()
    }

    /// Reads the identity.
    pub fn load(&self) -> Result<Credential> {
        let missing = || Error::Missing(self.path.clone());
        let identity = read_if_there(&self.file("identity.pem"))?.ok_or_else(missing)?;
        let roots = read_if_there(&self.file("ca.pem"))?.ok_or_else(missing)?;
        let list = read_if_there(&self.file("crl.pem"))?;
        let signers = match read_if_there(&self.file("signers.json"))? {
            Some(text) => serde_json::from_slice(&text).map_err(damaged)?,
            None => Signers::default(),
        };
        Credential::read(&identity, &roots, list.as_deref(), signers)
            .map_err(|cause| Error::In { path: self.path.clone(), cause: Box::new(cause) })
    }

    /// Writes a whole identity. Certificate and key come last, since they mark it as whole.
    pub fn store(
        &self,
        certificate: &str,
        key: &str,
        roots: &str,
        list: Option<&str>,
        signers: &Signers,
    ) -> Result<()> {
        make_dir(&self.path, 0o700)?;
        write_atomically(&self.file("ca.pem"), roots.as_bytes(), 0o600)?;
        if let Some(list) = list {
            self.store_list(list)?;
        }
        self.store_signers(signers)?;
        self.renew(certificate, key)
    }

    /// Replaces the signers that renew the identity.
    pub fn store_signers(&self, signers: &Signers) -> Result<()> {
        let text = serde_json::to_vec(signers).map_err(damaged)?;
        write_atomically(&self.file("signers.json"), &text, 0o600)
    }

    /// Returns the key of the certificate that is being requested. The key is kept until the
    /// certificate arrives: a request that is repeated with the same key after a crash gets the
    /// same answer.
    pub fn pending_key(&self) -> Result<rcgen::KeyPair> {
        let file = self.file("pending-key.pem");
        if let Some(pem) = read_if_there(&file)? {
            let pem = String::from_utf8(pem).map_err(damaged)?;
            return rcgen::KeyPair::from_pem(&pem).map_err(damaged);
        }
        make_dir(&self.path, 0o700)?;
        let key = authority::new_key()?;
        write_atomically(&file, key.serialize_pem().as_bytes(), 0o600)?;
        Ok(key)
    }

    /// Removes the pending key once the certificate has arrived.
    pub fn forget_pending_key(&self) -> Result<()> {
        let file = self.file("pending-key.pem");
        match std::fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(io(format!("remove {}", file.display()), e))
            }
            _ => Ok(()),
        }
    }

    /// Replaces the certificate and key.
    pub fn renew(&self, certificate: &str, key: &str) -> Result<()> {
        let both = format!("{}\n{}\n", certificate.trim_end(), key.trim_end());
        write_atomically(&self.file("identity.pem"), both.as_bytes(), 0o600)
    }

    /// Replaces the revocation list (PEM).
    pub fn store_list(&self, list: &str) -> Result<()> {
        write_atomically(&self.file("crl.pem"), list.as_bytes(), 0o600)
    }
}
