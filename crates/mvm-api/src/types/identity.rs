//! Requests and responses about identities. Certificates, keys, signing requests and revocation
//! lists are PEM text.

use crate::identity::{Facts, Identity};
use mvm_model::{Millis, Name};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `POST /v1/ca/join` and `POST /v1/ca/renew`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SigningRequest {
    /// A signing request (PKCS #10). Of it the key alone counts: who it is for says the
    /// certificate that the caller has shown.
    pub request: String,
}

/// A certificate, and whom to trust.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Signed {
    /// The certificate.
    pub certificate: String,
    /// The authority.
    pub ca: String,
    /// What it has revoked.
    pub crl: String,
}

/// `PUT /v1/agent/crl`, and what `GET /v1/ca/crl` and `POST /v1/ca/revoke` give.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RevocationList {
    /// The list, signed.
    pub crl: String,
}

/// `POST /v1/ca/invites`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// The node's name.
    pub name: Name,
    /// How long the token is good, in seconds.
    pub ttl_s: u64,
    /// Where the node reaches the signer: `HOST:PORT`.
    pub addresses: Vec<String>,
}

/// A join token.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct Invitation {
    /// The node's name.
    pub name: Name,
    /// The token: a secret, good once.
    pub token: String,
    /// When it runs out.
    pub expires_at: Millis,
}

/// `POST /v1/ca/revoke`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// Whose certificates.
    pub identity: Identity,
}

/// Somebody who has certificates, as `GET /v1/ca/identities` lists them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct IdentityView {
    /// Who.
    pub identity: Identity,
    /// Its certificates that have not run out.
    pub certificates: Vec<CertificateView>,
}

/// A certificate as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CertificateView {
    /// What it says.
    #[serde(flatten)]
    pub facts: Facts,
    /// Since when it is revoked, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Millis>,
}
