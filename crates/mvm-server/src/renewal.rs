//! Keeps the identity of a running process valid: renews it in time, and fetches the revocation
//! list. No process is restarted for it, and no connection is closed.

use crate::Result;
use crate::signer::Signer;
use mvm_api::types::{RevocationList, SigningRequest};
use mvm_api::{Client, paths};
use mvm_clock::Clock;
use mvm_identity::enrolment::{ask, first};
use mvm_identity::tls::Credentials;
use mvm_identity::{authority, expiry, rotate};
use mvm_model::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// The shortest and the longest pause between fetches of the revocation list. The pause is
/// shorter where certificates are short-lived.
const PERIOD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The pause between two warnings that a certificate has expired or soon will.
const TELL: Duration = Duration::from_secs(3600);

/// The signer that renews the identity.
#[derive(Clone)]
pub enum Source {
    /// A signer on another machine, at the addresses that the identity names.
    Remote,
    /// A signer in this process.
    Local(Arc<Signer>),
}

/// Renews the identity when it is due and fetches the revocation list, forever. Failures are logged
/// and tried again; the present identity and list stay in force meanwhile. A certificate that has
/// expired, or soon will, is logged at once and every hour.
pub async fn keep(credentials: Arc<Credentials>, source: Source, clock: Clock) {
    let (mut renew_at, mut tell_at) = (Timestamp::EPOCH, Timestamp::EPOCH);
    let mut failing = false;
    loop {
        if let Err(problem) = credentials.reload() {
            tracing::warn!("cannot read the identity again: {problem}");
        }
        let (now, wall) = (clock.now(), clock.wall());
        if now >= tell_at {
            expiry::log_warnings(&credentials.credential(), wall);
            tell_at = now + TELL;
        }
        let facts = credentials.credential().facts;
        let period = facts.validity.not_after.since(facts.validity.not_before) / 10;
        let outcome = match rotate::due(facts.validity, wall) && now >= renew_at {
            true => {
                renew_at = now + rotate::retry_at(facts.validity, wall).since(wall);
                renew(&credentials, &source, wall).await
            }
            false => refresh(&credentials, &source, wall).await,
        };
        match &outcome {
            Err(problem) if !failing => {
                tracing::warn!(code = %problem.code(), "cannot reach the signer: {problem}");
            }
            Ok(()) if failing => tracing::info!("the signer is reached again"),
            _ => {}
        }
        failing = outcome.is_err();
        tokio::time::sleep(period.clamp(PERIOD.0, PERIOD.1)).await;
    }
}

/// Requests a certificate for a new key, and puts it in force. A signer in this process signs it at
/// `wall`, another one by its own clock.
pub async fn renew(credentials: &Arc<Credentials>, source: &Source, wall: Timestamp) -> Result<()> {
    let key = authority::new_key()?;
    let request = authority::request(&key)?;
    let present = credentials.credential();
    let signed = match source {
        Source::Local(signer) => signer.renew(&present.facts, &request, wall).await?,
        Source::Remote => ask(credentials, paths::CA_RENEW, &SigningRequest { request }).await?,
    };
    credentials.renew(&signed.certificate, &key.serialize_pem())?;
    credentials.revoke(&signed.crl)?;
    tracing::info!(serial = %credentials.credential().facts.serial, "renewed the certificate");
    Ok(())
}

/// Fetches the revocation list, and puts it in force. A signer in this process makes it at `wall`,
/// another one by its own clock.
pub async fn refresh(
    credentials: &Arc<Credentials>,
    source: &Source,
    wall: Timestamp,
) -> Result<()> {
    let crl = match source {
        Source::Local(signer) => signer.crl(wall).await?,
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
