//! Calls to a signer: a machine that joins asks for its certificate, and a node for a new one or
//! for the revocation list.

use crate::directory::{Credential, IdentityDir};
use crate::tls::{Credentials, Expect, client};
use crate::{Error, JoinToken, Result, authority};
use mvm_api::types::{Signed, SigningRequest};
use mvm_api::{Client, ClientError, paths};
use mvm_model::{Code, Name, Timestamp};
use std::sync::Arc;

/// Becomes the node that a token names, and stores its identity in `dir`. Returns the node's name.
/// Refused where the token has expired at `now`.
pub async fn join(token: &JoinToken, dir: &IdentityDir, now: Timestamp) -> Result<Name> {
    let (credential, name) = token.credential(now)?;
    let signers = credential.signers.clone();
    let credentials = Credentials::in_memory(credential)?;
    // The key is stored first, so that a request whose answer was lost can be repeated with the
    // same key.
    let key = dir.pending_key()?;
    let request = SigningRequest { request: authority::request(&key)? };
    let signed: Signed = ask(&credentials, paths::CA_JOIN, &request).await?;
    let key = key.serialize_pem();
    let both = format!("{}\n{key}", signed.certificate);
    // Only the authority that the token pins is trusted, not the one in the answer.
    Credential::read(
        both.as_bytes(),
        token.ca.as_bytes(),
        Some(signed.crl.as_bytes()),
        signers.clone(),
    )?;
    dir.store(&signed.certificate, &key, &token.ca, Some(&signed.crl), &signers)?;
    dir.forget_pending_key()?;
    Ok(name)
}

/// Asks the signers for an answer to a signing request of the identity in `credentials`.
pub async fn ask(
    credentials: &Arc<Credentials>,
    path: &str,
    body: &SigningRequest,
) -> Result<Signed> {
    first(credentials, |client| async move { client.post(path, body).await }).await
}

/// The outcome of a call to a signer.
type Asked<T> = std::result::Result<T, ClientError>;

/// Returns the answer of the first signer of the identity that is in reach and signs.
pub async fn first<T, F: Future<Output = Asked<T>>>(
    credentials: &Arc<Credentials>,
    call: impl Fn(Client) -> F,
) -> Result<T> {
    let addresses = credentials.credential().signers.addresses;
    let signer = |address| client(address, credentials.clone(), Expect::Coordinator);
    first_of(addresses.into_iter().map(signer), call).await
}

/// Returns the answer of the first signer that is in reach and signs. Not every coordinator of a
/// fleet signs.
pub async fn first_of<T, F: Future<Output = Asked<T>>>(
    signers: impl IntoIterator<Item = Client>,
    call: impl Fn(Client) -> F,
) -> Result<T> {
    let mut told = None;
    for signer in signers {
        match call(signer).await {
            // The signer may be one that is out of reach, so the others' `NotASigner` does not hide
            // that error.
            Err(error @ ClientError::Unreachable { .. }) => told = Some(error),
            Err(ClientError::Problem(problem)) if problem.code == Code::NotASigner => {
                told = told.or(Some(ClientError::Problem(problem)));
            }
            other => return Ok(other?),
        }
    }
    Err(told.map_or(Error::NoSigner, Error::Client))
}
