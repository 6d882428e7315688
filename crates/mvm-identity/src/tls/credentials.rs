//! The identity of a running process. It is replaced as a whole when it is renewed or a new
//! revocation list arrives. Open connections keep the identity that they were made with.

use crate::certificate::Revoked;
use crate::directory::Signers;
use crate::error::Cause;
use crate::revocations::Revocations;
use crate::{Credential, Error, IdentityDir, Result};
use parking_lot::{Mutex, RwLock};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::sync::Arc;

/// Holds the identity in force; shared behind an `Arc`.
pub struct Credentials {
    dir: Option<IdentityDir>,
    state: RwLock<Arc<State>>,
    /// Held while the next state is derived from the present one.
    changing: Mutex<()>,
    revocations: Arc<Revocations>,
}

struct State {
    credential: Credential,
    /// Counts the changes.
    generation: u64,
    server: Option<Arc<ServerConfig>>,
}

impl Credentials {
    /// Holds the identity of a directory, and writes changes there.
    pub fn open(dir: IdentityDir) -> Result<Arc<Credentials>> {
        let credential = dir.load()?;
        Credentials::new(Some(dir), credential)
    }

    /// Holds an identity in memory only.
    pub fn in_memory(credential: Credential) -> Result<Arc<Credentials>> {
        Credentials::new(None, credential)
    }

    fn new(dir: Option<IdentityDir>, credential: Credential) -> Result<Arc<Credentials>> {
        let revocations = Arc::new(Revocations::new(credential.revoked.clone()));
        let state = RwLock::new(Arc::new(State::new(credential, 0)?));
        Ok(Arc::new(Credentials { dir, state, changing: Mutex::new(()), revocations }))
    }

    fn state(&self) -> Arc<State> {
        self.state.read().clone()
    }

    /// Returns the present identity.
    pub fn credential(&self) -> Credential {
        self.state().credential.clone()
    }

    /// Returns the number of changes so far. A connection of an earlier generation presents an
    /// earlier identity.
    pub fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Returns the revocation list in force.
    pub fn revocations(&self) -> Arc<Revocations> {
        self.revocations.clone()
    }

    /// Returns the TLS configuration for the next incoming connection. Errors: `wrong_identity`
    /// where the identity's role only calls.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let state = self.state();
        state
            .server
            .clone()
            .ok_or_else(|| Error::DoesNotServe { holder: state.credential.facts.identity.holder() })
    }

    /// Stores a renewed certificate and its key (PEM), then puts them in force.
    pub fn renew(&self, certificate: &str, key: &str) -> Result<()> {
        let _changing = self.changing.lock();
        let renewed = self.credential().renewed(certificate, key)?;
        if let Some(dir) = &self.dir {
            dir.renew(certificate, key)?;
        }
        self.replace(renewed)
    }

    /// Stores a revocation list (PEM), then puts it in force. Returns whether the list is newer
    /// than the one in force; an older one changes nothing.
    pub fn revoke(&self, list: &str) -> Result<bool> {
        let _changing = self.changing.lock();
        let mut now = self.credential();
        let der = CertificateRevocationListDer::from_pem_slice(list.as_bytes())
            .map_err(|e| Error::RevocationList(e.into()))?;
        let revoked = Revoked::read(&der, &now.roots)?;
        if now.list.is_some() && revoked.number <= now.revoked.number {
            return Ok(false);
        }
        if let Some(dir) = &self.dir {
            dir.store_list(list)?;
        }
        (now.list, now.revoked) = (Some(der), revoked.clone());
        self.replace(now)?;
        self.revocations.replace(revoked);
        Ok(true)
    }

    /// Replaces the signers that renew the identity.
    pub fn ask_at(&self, signers: Signers) -> Result<()> {
        let _changing = self.changing.lock();
        if let Some(dir) = &self.dir {
            dir.store_signers(&signers)?;
        }
        self.replace(Credential { signers, ..self.credential() })
    }

    /// Puts in force what another process has written into the directory.
    pub fn reload(&self) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let _changing = self.changing.lock();
        let (now, there) = (self.credential(), dir.load()?);
        let other = there.facts.serial != now.facts.serial || there.roots != now.roots;
        let more = there.revoked.number > now.revoked.number;
        if more {
            self.revocations.replace(there.revoked.clone());
        }
        match other || more {
            // A certificate stays revoked, even if the directory holds an older list.
            true if more => self.replace(there),
            true => self.replace(Credential { list: now.list, revoked: now.revoked, ..there }),
            false => Ok(()),
        }
    }

    fn replace(&self, credential: Credential) -> Result<()> {
        let mut state = self.state.write();
        *state = Arc::new(State::new(credential, state.generation + 1)?);
        Ok(())
    }
}

impl State {
    fn new(credential: Credential, generation: u64) -> Result<State> {
        let serves = credential.facts.identity.role().serves();
        let server = serves.then(|| server(&credential)).transpose()?.map(Arc::new);
        Ok(State { credential, generation, server })
    }
}

/// Returns the trusted authorities in the form that the verifiers take.
pub(super) fn roots(credential: &Credential) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for root in &credential.roots {
        roots.add(root.clone()).map_err(unusable)?;
    }
    Ok(Arc::new(roots))
}

fn server(credential: &Credential) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(credential)?, provider.clone())
            .with_crls(credential.list.clone())
            .build()
            .map_err(unusable)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credential.chain.clone(), credential.key.clone_key())
        .map_err(unusable)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

pub(super) fn unusable(cause: impl Into<Cause>) -> Error {
    Error::Unusable(cause.into())
}
