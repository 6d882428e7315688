//! Requests and responses about identities. Certificates, keys, signing requests and revocation
//! lists are PEM text.

use crate::identity::{Facts, Identity};
use mvm_model::{Name, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Request of `POST /v1/ca/join` and `POST /v1/ca/renew`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SigningRequest {
    /// A signing request (PKCS #10). Only its key is used. The identity comes from the certificate
    /// that the caller has presented.
    pub request: String,
}

/// A certificate, the authority's certificate, and the revocation list.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Signed {
    /// The certificate.
    pub certificate: String,
    /// The authority's certificate.
    pub ca: String,
    /// The authority's list of revoked certificates.
    pub crl: String,
}

/// Request of `PUT /v1/agent/crl`, and response of `GET /v1/ca/crl` and `POST /v1/ca/revoke`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RevocationList {
    /// The signed list of revoked certificates.
    pub crl: String,
}

/// Request of `POST /v1/ca/invites`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// The node's name.
    pub name: Name,
    /// How long the token is valid, in seconds.
    pub ttl_s: u64,
    /// The addresses where the node reaches the signer: `HOST:PORT`.
    pub addresses: Vec<String>,
}

/// A join token.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct Invitation {
    /// The node's name.
    pub name: Name,
    /// The token: a secret, valid once.
    pub token: String,
    /// When the token expires; ms since the Unix epoch.
    pub expires_at: Timestamp,
}

/// Request of `POST /v1/ca/revoke`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// The identity whose certificates are revoked.
    pub identity: Identity,
}

/// An identity that has certificates, as `GET /v1/ca/identities` lists it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct IdentityView {
    /// The identity.
    pub identity: Identity,
    /// The identity's certificates that have not expired.
    pub certificates: Vec<CertificateView>,
}

/// A certificate as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CertificateView {
    /// The certificate's contents.
    #[serde(flatten)]
    pub facts: Facts,
    /// When the certificate was revoked, ms since the Unix epoch; absent where it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}
