//! Keeping an identity good while its process runs: it is renewed in time, and the list of what is
//! revoked is fetched. Nothing is restarted for it, and no connection is closed.

use crate::signer::Signer;
use mvm_api::types::{RevocationList, SigningRequest};
use mvm_api::{Client, paths};
use mvm_identity::enrolment::{ask, first};
use mvm_identity::tls::Credentials;
use mvm_identity::{Result, authority, now, rotate, standing};
use mvm_model::Millis;
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
pub async fn keep(credentials: Arc<Credentials>, source: Source) {
    let (mut renew_at, mut tell_at) = (0, 0);
    let mut failing = false;
    loop {
        if let Err(problem) = credentials.reload() {
            tracing::warn!("cannot read the identity again: {problem}");
        }
        if mvm_clock::now() >= tell_at {
            standing::tell(&credentials.credential(), now());
            tell_at = mvm_clock::now() + TELL_MS;
        }
        let facts = credentials.credential().facts;
        let period = facts.validity.not_after.saturating_sub(facts.validity.not_before) / 10;
        let outcome = match rotate::due(facts.validity, now()) && mvm_clock::now() >= renew_at {
            true => {
                let wait = rotate::retry_at(facts.validity, now()).saturating_sub(now());
                renew_at = mvm_clock::now() + wait;
                renew(&credentials, &source).await
            }
            false => refresh(&credentials, &source).await,
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
pub async fn renew(credentials: &Arc<Credentials>, source: &Source) -> Result<()> {
    let key = authority::new_key()?;
    let request = authority::request(&key)?;
    let present = credentials.credential();
    let signed = match source {
        Source::Local(signer) => signer.renew(&present.facts, &request, now()).await?,
        Source::Remote => ask(credentials, paths::CA_RENEW, &SigningRequest { request }).await?,
    };
    credentials.renew(&signed.certificate, &key.serialize_pem())?;
    credentials.revoke(&signed.crl)?;
    tracing::info!(serial = %credentials.credential().facts.serial, "renewed the certificate");
    Ok(())
}

/// Fetches what is revoked, and puts it in force.
pub async fn refresh(credentials: &Arc<Credentials>, source: &Source) -> Result<()> {
    let crl = match source {
        Source::Local(signer) => signer.crl(now()).await?,
        Source::Remote => {
            let get = |client: Client| async move { client.get(paths::CA_CRL).await };
            first::<RevocationList, _>(credentials, get).await?.crl
        }
    };
    if credentials.revoke(&crl)? {
        let number = credentials.revocations().number();
        tracing::info!(number, "took a list of revoked certificates");
    }
    Ok(())
}
