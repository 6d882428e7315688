//! Asking a signer: for the certificate of a machine that joins, or for what only it knows.

use crate::directory::{Credential, IdentityDir};
use crate::tls::{Credentials, Expect, client};
use crate::{JoinToken, Result, authority, now};
use mvm_api::types::{Signed, SigningRequest};
use mvm_api::{Client, ClientError, Problem, paths};
use mvm_model::{Code, Name};
use std::sync::Arc;

/// Becomes the node that a token names, and stores its identity in `dir`. Gives the name.
pub async fn join(token: &JoinToken, dir: &IdentityDir) -> Result<Name> {
    let (credential, name) = token.credential(now())?;
    let signers = credential.signers.clone();
    let credentials = Credentials::in_memory(credential)?;
    // Written first: the same request is made again after an answer that was lost.
    let key = dir.pending_key()?;
    let request = SigningRequest { request: authority::request(&key)? };
    let signed: Signed = ask(&credentials, paths::CA_JOIN, &request).await?;
    let key = key.serialize_pem();
    let both = format!("{}\n{key}", signed.certificate);
    // The authority is the one that the token pins, not the one of the answer.
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

/// What a signer answers to a request of the identity that `credentials` holds.
pub async fn ask(
    credentials: &Arc<Credentials>,
    path: &str,
    body: &SigningRequest,
) -> Result<Signed> {
    first(credentials, |client| async move { client.post(path, body).await }).await
}

/// What a signer has answered.
type Asked<T> = std::result::Result<T, ClientError>;

/// What the first of the signers that the identity names says, of those that answer and sign.
pub async fn first<T, F: Future<Output = Asked<T>>>(
    credentials: &Arc<Credentials>,
    call: impl Fn(Client) -> F,
) -> Result<T> {
    let addresses = credentials.credential().signers.addresses;
    let signer = |address| client(address, credentials.clone(), Expect::Coordinator);
    first_of(addresses.into_iter().map(signer), call).await
}

/// What the first of them says that answers and signs: of a fleet's coordinators not all need to.
pub async fn first_of<T, F: Future<Output = Asked<T>>>(
    signers: impl IntoIterator<Item = Client>,
    call: impl Fn(Client) -> F,
) -> Result<T> {
    let mut told = None;
    for signer in signers {
        match call(signer).await {
            // Whoever is out of reach may be the one that signs.
            Err(error @ ClientError::Unreachable { .. }) => told = Some(error),
            Err(ClientError::Problem(problem)) if problem.code == Code::NotASigner => {
                told = told.or(Some(ClientError::Problem(problem)));
            }
            other => return other.map_err(ClientError::into_problem),
        }
    }
    Err(told.map_or_else(
        || {
            Problem::new(Code::NoSigner, "the identity names no signer")
                .hint("name one: --address with `mvm ca issue` or `mvm node invite`")
        },
        ClientError::into_problem,
    ))
}

/// The answer of a coordinator that has not the authority's key (RFC 9110, 15.5.20).
pub fn not_a_signer(name: &Name) -> Problem {
    Problem::new(Code::NotASigner, format!("coordinator {name} does not sign"))
        .hint("ask the one that was started with --ca, or name it in a list: HOST:PORT,HOST:PORT")
}
