//! Connections to servers. A server is known by the identity in its certificate, not by the name or
//! address at which it was reached.

use super::connection::Connection;
use super::credentials::{Credentials, roots, unusable};
use super::socket::prepare;
use crate::{Credential, Result, certificate};
use mvm_api::identity::{Identity, SERVER_NAME};
use mvm_model::Name;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long connecting may take, the handshake included.
const DEADLINE: Duration = Duration::from_secs(10);

/// The identity that a server must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The node of this name; any node where none is given.
    Node(Option<Name>),
    /// Any coordinator, or the signer, which has a coordinator's identity.
    Coordinator,
}

impl Expect {
    fn accepts(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (Expect::Node(None), Identity::Node(_)) => true,
            (Expect::Node(Some(wanted)), Identity::Node(name)) => wanted == name,
            (Expect::Coordinator, Identity::Coordinator(_)) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expect::Node(None) => f.write_str("a node"),
            Expect::Node(Some(name)) => write!(f, "the node {name}"),
            Expect::Coordinator => f.write_str("a coordinator"),
        }
    }
}

/// Connects to `address` (`HOST:PORT`) and presents our identity. When this returns, both sides
/// have checked each other's chain, validity and revocation; but a server that refuses our
/// certificate says so only when the stream is first read (TLS 1.3).
pub async fn connect(
    address: &str,
    credentials: &Credentials,
    expect: &Expect,
) -> std::io::Result<Connection<TlsStream<TcpStream>>> {
    // In words: as a source, an error of TLS would be told as the server's fault.
    let unusable = |error: crate::Error| std::io::Error::other(error.to_string());
    let config = config(&credentials.credential(), expect).map_err(unusable)?;
    let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        prepare(&stream)?;
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let first = certificates.first().ok_or(std::io::ErrorKind::InvalidData)?;
        let facts = certificate::read(first).map_err(std::io::Error::other)?;
        Ok(Connection::new(stream, facts, credentials.revocations()))
    };
    let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer");
    tokio::time::timeout(DEADLINE, connecting).await.map_err(late)?
}

/// Returns the TLS configuration of connections with this identity.
fn config(credential: &Credential, expect: &Expect) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = WebPkiServerVerifier::builder_with_provider(roots(credential)?, provider.clone())
        .with_crls(credential.list.clone())
        .build()
        .map_err(unusable)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { chain, expect: expect.clone() }))
        .with_client_auth_cert(credential.chain.clone(), credential.key.clone_key())
        .map_err(unusable)?;
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Checks chain, validity, usage and revocation as webpki does, and then the identity.
#[derive(Debug)]
struct Verifier {
    chain: Arc<WebPkiServerVerifier>,
    expect: Expect,
}

/// The error of a server with another identity than expected.
#[derive(Debug, thiserror::Error)]
#[error("{found} answers where {wanted} should")]
struct Unexpected {
    found: String,
    wanted: String,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, Error> {
        let chain = &self.chain;
        // The chain is checked before the identity, since the error of a foreign or expired
        // certificate says more than that of another name.
        chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let other = |cause| Error::InvalidCertificate(CertificateError::Other(OtherError(cause)));
        let facts = certificate::read(end_entity).map_err(|problem| other(Arc::new(problem)))?;
        if self.expect.accepts(&facts.identity) {
            return Ok(ServerCertVerified::assertion());
        }
        let (found, wanted) = (facts.identity.holder(), self.expect.to_string());
        Err(other(Arc::new(Unexpected { found, wanted })))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
