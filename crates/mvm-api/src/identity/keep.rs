//! Keeping an identity good while its process runs: it is renewed in time, and the list of what is
//! revoked is fetched. Nothing is restarted for it, and no connection is closed.

use super::signer::Signer;
use super::wire::{RevocationList, Signed, SigningRequest};
use super::{Credential, IdentityDir, JoinToken, Result, authority, now, rotate, standing};
use crate::tls::{Expect, Keeper};
use crate::{Client, ClientError, Problem, paths};
use mvm_model::{Code, Millis, Name};
use std::sync::Arc;
use std::time::Duration;

/// How often the list of what is revoked is fetched, in ms; more often where certificates are good
/// for a short while only.
const PERIOD_MS: (Millis, Millis) = (1_000, 30_000);

/// How often it is told that a certificate has run out or soon will, in ms.
const TELL_MS: Millis = 3_600_000;

/// Who signs.
#[derive(Clone)]
pub enum Source {
    /// A signer elsewhere, at the addresses that the identity names.
    Remote,
    /// One in this process.
    Local(Arc<Signer>),
}

/// Renews the identity when it is due and fetches what is revoked, for ever. Failures are logged and
/// tried again: what is in force stays in force. What has run out all the same, or soon will, is told at once
/// and every hour.
pub async fn keep(keeper: Arc<Keeper>, source: Source) {
    let (mut renew_at, mut tell_at) = (0, 0);
    let mut failing = false;
    loop {
        if let Err(problem) = keeper.reload() {
            tracing::warn!("cannot read the identity again: {problem}");
        }
        if mvm_clock::now() >= tell_at {
            standing::tell(&keeper.credential(), now());
            tell_at = mvm_clock::now() + TELL_MS;
        }
        let facts = keeper.credential().facts;
        let period = facts.validity.not_after.saturating_sub(facts.validity.not_before) / 10;
        let outcome = match rotate::due(facts.validity, now()) && mvm_clock::now() >= renew_at {
            true => {
                let wait = rotate::retry_at(facts.validity, now()).saturating_sub(now());
                renew_at = mvm_clock::now() + wait;
                renew(&keeper, &source).await
            }
            false => refresh(&keeper, &source).await,
        };
        match &outcome {
            Err(problem) if !failing => {
                tracing::warn!(code = %problem.code, "cannot reach the signer: {problem}");
            }
            Ok(()) if failing => tracing::info!("the signer is reached again"),
            _ => {}
        }
        failing = outcome.is_err();
        tokio::time::sleep(Duration::from_millis(period.clamp(PERIOD_MS.0, PERIOD_MS.1))).await;
    }
}

/// Gets a new certificate for a new key, and puts it in force.
pub async fn renew(keeper: &Arc<Keeper>, source: &Source) -> Result<()> {
    let key = authority::new_key()?;
    let request = authority::request(&key)?;
    let present = keeper.credential();
    let signed = match source {
        Source::Local(signer) => signer.renew(&present.facts, &request, now()).await?,
        Source::Remote => ask(keeper, paths::CA_RENEW, &SigningRequest { request }).await?,
    };
    keeper.renew(&signed.certificate, &key.serialize_pem())?;
    keeper.revoke(&signed.crl)?;
    tracing::info!(serial = %keeper.credential().facts.serial, "renewed the certificate");
    Ok(())
}

/// Fetches what is revoked, and puts it in force.
pub async fn refresh(keeper: &Arc<Keeper>, source: &Source) -> Result<()> {
    let crl = match source {
        Source::Local(signer) => signer.crl(now()).await?,
        Source::Remote => {
            let get = |client: Client| async move { client.get(paths::CA_CRL).await };
            first::<RevocationList, _>(keeper, get).await?.crl
        }
    };
    if keeper.revoke(&crl)? {
        let number = keeper.revocations().number();
        tracing::info!(number, "took a list of revoked certificates");
    }
    Ok(())
}

/// Becomes the node that a token names, and stores its identity in `dir`. Gives the name.
pub async fn join(token: &JoinToken, dir: &IdentityDir) -> Result<Name> {
    let (credential, name) = token.credential(now())?;
    let signers = credential.signers.clone();
    let keeper = Keeper::in_memory(credential)?;
    // Written first: the same request is made again after an answer that was lost.
    let key = dir.pending_key()?;
    let request = SigningRequest { request: authority::request(&key)? };
    let signed: Signed = ask(&keeper, paths::CA_JOIN, &request).await?;
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

async fn ask(keeper: &Arc<Keeper>, path: &str, body: &SigningRequest) -> Result<Signed> {
    first(keeper, |client| async move { client.post(path, body).await }).await
}

/// What a signer has answered.
type Asked<T> = std::result::Result<T, ClientError>;

async fn first<T, F: Future<Output = Asked<T>>>(
    keeper: &Arc<Keeper>,
    call: impl Fn(Client) -> F,
) -> Result<T> {
    let addresses = keeper.credential().signers.addresses;
    let signer = |address| Client::tls(address, keeper.clone(), Expect::Coordinator);
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
