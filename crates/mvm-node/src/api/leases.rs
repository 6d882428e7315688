//! Leases.

use super::{Answer, Body, Caller, Done, Shared, detached, done};
use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use mvm_api::types::{ExtendLease, LeaseView};

pub async fn list(State(node): Shared, ConnectInfo(peer): Caller) -> Json<Vec<LeaseView>> {
    let mut leases = node.leases().await;
    leases.retain(|view| peer.sees(&view.instance.pool.tenant));
    Json(leases)
}

pub async fn extend(
    State(node): Shared,
    ConnectInfo(peer): Caller,
    Path(id): Path<String>,
    Body(body): Body<ExtendLease>,
) -> Answer<LeaseView> {
    node.lease_for(&peer, &id).await?;
    Ok(Json(node.extend_lease(&id, body.lease_s).await?))
}

pub async fn release(
    State(node): Shared,
    ConnectInfo(peer): Caller,
    Path(id): Path<String>,
) -> Answer<Done> {
    node.lease_for(&peer, &id).await?;
    detached(async move { node.release_lease(&id).await }).await?;
    Ok(done())
}
