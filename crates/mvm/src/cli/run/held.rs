//! A claim that is held for as long as a command runs.

use crate::error::CliError;
use crate::session::draw_key;
use futures::FutureExt;
use mvm_api::client::{Patience, Stream};
use mvm_api::types::{Claim, ClaimRequest};
use mvm_api::{Client, paths};
use mvm_model::{Code, PoolRef};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};

/// How long a lost claim is requested again while its command runs. A fleet may be without a leader
/// for a while, and the next one keeps the claim for half a minute more.
const KEPT: Duration = Duration::from_secs(120);
/// How long the next leader is looked for in order to release the claim.
const GIVEN_BACK: Duration = Duration::from_secs(5);
/// The pause before the claim is requested again.
const AGAIN: Duration = Duration::from_millis(500);

/// A claim, and the connection that keeps it.
pub struct Held {
    pub claim: Claim,
    path: String,
    request: ClaimRequest,
    /// The idempotency key that identifies the claim when it is requested again.
    key: String,
    /// `None` where the connection is broken: another coordinator leads, or will soon.
    lines: Option<Lines<BufReader<Stream>>>,
}

impl Held {
    /// Claims a machine of the pool. Where no coordinator leads or none answers, the request is
    /// repeated with the same key for as long as the client's patience allows. The key makes it the
    /// same claim at the next leader.
    pub async fn claim(
        client: &Client,
        pool: &PoolRef,
        lease_s: Option<u64>,
    ) -> Result<Held, CliError> {
        let mut key = draw_key()?;
        let (path, request) =
            (paths::pool_part(pool, "claims"), ClaimRequest { lease_s, again: false });
        let mut waiting = client.waiting();
        let once = client.clone().patient(Patience::none());
        let (claim, lines) = loop {
            let problem = match ask(&once, &path, &request, &key).await {
                Ok(held) => break held,
                Err(problem) => problem,
            };
            // The node was lost together with the machine. That claim is over, so another is made.
            let code = match problem.code() {
                Some(Code::ClaimLost) => {
                    key = draw_key()?;
                    Some(Code::NoLeader)
                }
                code => code,
            };
            if !waiting.after(code, &problem, true).await {
                return Err(problem);
            }
        };
        Ok(Held { claim, path, request, key, lines: Some(lines) })
    }

    /// Keeps the claim, forever. Where the connection breaks because another coordinator leads, the
    /// claim is requested again from that one. If it no longer exists there, the machine's user
    /// notices by itself.
    pub async fn keep(&mut self, client: &Client) {
        let once = client.clone().patient(Patience::none());
        loop {
            if let Some(lines) = &mut self.lines {
                while let Ok(Some(_)) = lines.next_line().await {}
                self.lines = None;
            }
            if !self.ask_again(&once, KEPT).await {
                return std::future::pending().await;
            }
        }
    }

    /// Releases the claim. Where its connection is broken, the next leader is told so, which would
    /// otherwise keep the claim for half a minute.
    pub async fn release(mut self, client: &Client) {
        // Only the end of the connection can follow the claim's line.
        let open = self.lines.as_mut().is_some_and(|l| l.next_line().now_or_never().is_none());
        if !open {
            let once = client.clone().patient(Patience::none());
            let given_back = self.ask_again(&once, GIVEN_BACK);
            let _ = tokio::time::timeout(GIVEN_BACK, given_back).await;
        }
        // A shutdown in order releases the claim. Any other end could be a broken connection.
        if let Some(lines) = self.lines {
            let mut stream = lines.into_inner().into_inner();
            let _ = tokio::time::timeout(GIVEN_BACK, stream.shutdown()).await;
        }
    }

    /// Requests the same claim from the next leader, without claiming another machine. Returns
    /// whether the claim is held again.
    async fn ask_again(&mut self, client: &Client, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let request = ClaimRequest { again: true, ..self.request.clone() };
        loop {
            match ask(client, &self.path, &request, &self.key).await {
                Ok((claim, lines)) if claim.reference == self.claim.reference => {
                    self.lines = Some(lines);
                    return true;
                }
                // The node had ended the claim. Another machine would be of no use, and is released
                // at once.
                Ok(_) => return false,
                Err(problem) if problem.code() == Some(Code::ClaimEnded) => return false,
                Err(_) if Instant::now() < until => tokio::time::sleep(AGAIN).await,
                Err(_) => return false,
            }
        }
    }
}

async fn ask(
    client: &Client,
    path: &str,
    request: &ClaimRequest,
    key: &str,
) -> Result<(Claim, Lines<BufReader<Stream>>), CliError> {
    let broken = |why: String| CliError::new(Code::ConnectionBroken, why);
    let stream = client.streams().upgrade_keyed(path, request, key).await?;
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next_line().await.ok().flatten();
    let line =
        line.ok_or_else(|| broken("the coordinator went away while it served a claim".into()))?;
    let claim: Claim = serde_json::from_str::<serde_json::Value>(&line)
        .and_then(|value| serde_json::from_value(value["claim"].clone()))
        .map_err(|e| broken(format!("what came is not a claim: {e}")))?;
    Ok((claim, lines))
}
