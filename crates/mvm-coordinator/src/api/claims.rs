//! Claims: an upgraded connection that lives as long as the lease.

use super::Shared;
use crate::desk::{self, Wish};
use axum::body::Body as HttpBody;
use axum::extract::{ConnectInfo, FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use mvm_api::body::Body;
use mvm_api::client::UPGRADE;
use mvm_api::routes::IDEMPOTENCY_KEY;
use mvm_api::types::{Claim, ClaimRequest};
use mvm_api::{Caller, Problem};
use mvm_model::{Name, PoolRef};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Claims an instance for a job, on whatever node. As on a node, the first line sent is the claim,
/// and the lease ends when the client closes the connection.
pub async fn claim(
    State(fleet): Shared,
    ConnectInfo(peer): Caller,
    Path((tenant, pool)): Path<(String, String)>,
    mut request: Request,
) -> Result<Response, Problem> {
    let pool = PoolRef { tenant: tenant.parse()?, pool: pool.parse()? };
    fleet.check_pool(&pool)?;
    let named = request.headers().get(header::UPGRADE).is_some_and(|name| name == UPGRADE);
    if !named {
        let detail = format!("this route needs Upgrade: {UPGRADE}");
        return Err(Problem::new(426, "upgrade_required", detail));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let holder = peer.holder();
    let id = claim_id(request.headers(), &holder)?;
    let Body(body) = Body::<ClaimRequest>::from_request(request, &()).await?;
    let wish = Wish { id, pool, holder, lease_s: body.lease_s, again: body.again };
    let lead = fleet.lead().ok_or_else(desk::succeeded)?;
    let (tell, told) = tokio::sync::oneshot::channel();
    // A task of its own: a client that goes away at any moment gives back what it got.
    tokio::spawn(async move {
        let mut tell: tokio::sync::oneshot::Sender<Result<(), Problem>> = tell;
        let served = desk::serve(&fleet, &lead, &wish, tell.closed()).await;
        let (claim, node) = match served {
            Ok(served) => served,
            Err(problem) => return drop(tell.send(Err(problem))),
        };
        if tell.send(Ok(())).is_ok() {
            tokio::select! {
                () = hold(upgrade, &claim, &node) => {}
                // The claim is the next leader's; its client, whose connection ends here, goes there.
                () = lead.lost() => return,
            }
        }
        desk::release(fleet, lead, wish.id, node).await;
    });
    told.await.map_err(|_| Problem::internal("the claim ended without a result"))??;
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, UPGRADE)
        .body(HttpBody::empty())
        .map_err(|error| Problem::internal(error.to_string()))
}

/// `l-` and 16 digits: the same ones for the same holder's same key, else drawn.
fn claim_id(headers: &HeaderMap, holder: &str) -> Result<String, Problem> {
    let digits = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    if let Some(key) = headers.get(IDEMPOTENCY_KEY) {
        let mut digest = Sha256::new();
        digest.update(holder.as_bytes());
        digest.update([0]);
        digest.update(key.as_bytes());
        return Ok(format!("l-{}", digits(&digest.finalize()[..8])));
    }
    let mut drawn = [0; 8];
    getrandom::fill(&mut drawn).map_err(|e| Problem::internal(e.to_string()))?;
    Ok(format!("l-{}", digits(&drawn)))
}

/// Says what was claimed and waits until the client goes.
async fn hold(upgrade: hyper::upgrade::OnUpgrade, claim: &Claim, node: &Name) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut client = TokioIo::new(upgraded);
    let line = serde_json::json!({ "claim": claim, "node_id": node });
    let sent = client.write_all(format!("{line}\n").as_bytes()).await;
    if sent.is_ok() && client.flush().await.is_ok() {
        // Nothing is expected: the read ends when the client does.
        let _ = client.read(&mut [0u8; 64]).await;
    }
}
