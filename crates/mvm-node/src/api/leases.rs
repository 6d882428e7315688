//! Leases.

use super::{Answer, Body, Done, Shared, detached, done};
use axum::Json;
use axum::extract::{Path, State};
use mvm_api::types::{ExtendLease, LeaseView};

pub async fn list(State(node): Shared) -> Json<Vec<LeaseView>> {
    Json(node.leases().await)
}

pub async fn extend(
    State(node): Shared,
    Path(id): Path<String>,
    Body(body): Body<ExtendLease>,
) -> Answer<LeaseView> {
    Ok(Json(node.extend_lease(&id, body.lease_s).await?))
}

pub async fn release(State(node): Shared, Path(id): Path<String>) -> Answer<Done> {
    detached(async move { node.release_lease(&id).await }).await?;
    Ok(done())
}
