//! Claims: an upgraded connection that lives as long as the lease.

use super::handler::Shared;
use crate::claim_dispatch;
use crate::claim_queue::ClaimOrder;
use crate::leadership::Lead;
use crate::{ClusterState, Error, Result};
use axum::body::Body as HttpBody;
use axum::extract::{ConnectInfo, FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use mvm_api::client::UPGRADE;
use mvm_api::routes::IDEMPOTENCY_KEY;
use mvm_api::types::{Claim, ClaimRequest};
use mvm_model::{LeaseId, Name, PoolRef};
use mvm_server::Caller;
use mvm_server::extract::Body;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

/// Claims an instance for a job on any node. As on a node, the first line that is sent is the
/// claim, and the lease ends when the client closes the connection.
pub async fn claim(
    State(fleet): Shared,
    ConnectInfo(peer): Caller,
    Path((tenant, pool)): Path<(String, String)>,
    mut request: Request,
) -> Result<Response> {
    let pool = PoolRef { tenant: tenant.parse()?, pool: pool.parse()? };
    fleet.check_pool(&pool)?;
    let named = request.headers().get(header::UPGRADE).is_some_and(|name| name == UPGRADE);
    if !named {
        return Err(Error::UpgradeRequired(UPGRADE));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let holder = peer.holder();
    let id = claim_id(request.headers(), &holder)?;
    let Body(body) = Body::<ClaimRequest>::from_request(request, &()).await?;
    let order = ClaimOrder { id, pool, holder, lease_s: body.lease_s, again: body.again };
    let lead = fleet.lead().ok_or(Error::Succeeded)?;
    let (report, outcome) = oneshot::channel();
    // A task of its own serves the claim, so that the machine is given back if the client goes away
    // at any moment.
    tokio::spawn(serve(fleet, lead, order, upgrade, report));
    outcome.await.map_err(|_| Error::NoOutcome)??;
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, UPGRADE)
        .body(HttpBody::empty())
        .map_err(Error::Answer)
}

/// How a claim's connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client has ended it: it gives the machine back.
    Ordered,
    /// It broke, or the client has asked for the claim again: it may still use the machine.
    Parted,
}

/// Serves the claim and holds it until its connection ends.
async fn serve(
    fleet: Arc<ClusterState>,
    lead: Arc<Lead>,
    order: ClaimOrder,
    upgrade: hyper::upgrade::OnUpgrade,
    mut report: oneshot::Sender<Result<()>>,
) {
    let turn = match fleet.claims.turns.take(order.id).await {
        Ok(turn) => turn,
        Err(error) => return drop(report.send(Err(error))),
    };
    let gone = async {
        tokio::select! {
            () = report.closed() => {}
            () = turn.displaced() => {}
        }
    };
    let (claim, node) = match claim_dispatch::serve(&fleet, &lead, &order, gone).await {
        Ok(served) => served,
        Err(error) => return drop(report.send(Err(error))),
    };
    let held = fleet.claims.held.hold(&node, order.id);
    let end = match report.send(Ok(())) {
        Ok(()) => tokio::select! {
            end = hold(upgrade, &claim, &node) => end,
            () = turn.displaced() => End::Parted,
            // The claim is the next leader's; its client, whose connection ends here, goes there.
            () = lead.lost() => return,
        },
        Err(_) if turn.is_displaced() => End::Parted,
        Err(_) => End::Ordered,
    };
    drop(held);
    match end {
        End::Parted => claim_dispatch::part(fleet, lead, &order, node),
        End::Ordered => claim_dispatch::release(fleet, lead, order.id, node).await,
    }
}

/// Returns the claim's id: derived from the holder and its idempotency key if there is one, else
/// random.
fn claim_id(headers: &HeaderMap, holder: &str) -> Result<LeaseId> {
    let mut first = [0; 8];
    if let Some(key) = headers.get(IDEMPOTENCY_KEY) {
        let mut digest = Sha256::new();
        digest.update(holder.as_bytes());
        digest.update([0]);
        digest.update(key.as_bytes());
        first.copy_from_slice(&digest.finalize()[..8]);
    } else {
        getrandom::fill(&mut first).map_err(Error::Random)?;
    }
    Ok(LeaseId::of_claim(u64::from_be_bytes(first)))
}

/// Sends the client its claim, and waits until the connection ends.
async fn hold(upgrade: hyper::upgrade::OnUpgrade, claim: &Claim, node: &Name) -> End {
    let Ok(upgraded) = upgrade.await else { return End::Parted };
    let mut client = TokioIo::new(upgraded);
    let line = serde_json::json!({ "claim": claim, "node_id": node });
    let sent = client.write_all(format!("{line}\n").as_bytes()).await;
    if sent.is_err() || client.flush().await.is_err() {
        return End::Parted;
    }
    // Nothing is expected: the read ends when the client does. Over TLS an orderly end can be told
    // from a connection that broke; a coordinator on the way passes on which of them it was.
    match client.read(&mut [0u8; 64]).await {
        Ok(_) => End::Ordered,
        Err(_) => End::Parted,
    }
}
