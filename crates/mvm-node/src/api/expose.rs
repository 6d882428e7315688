//! Pools behind ports.

use super::pools::{InPool, reference};
use super::{Answer, Body, Caller, Done, Shared, detached, done};
use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use mvm_api::expose::{ExposePool, ExposeView, UnexposePool};

pub async fn list(State(node): Shared, ConnectInfo(peer): Caller) -> Json<Vec<ExposeView>> {
    let mut views = node.exposes().await;
    views.retain(|view| peer.sees(&view.tenant_id));
    Json(views)
}

pub async fn expose(
    State(node): Shared,
    Path(at): InPool,
    Body(body): Body<ExposePool>,
) -> Answer<ExposeView> {
    let pool = reference(at)?;
    Ok(Json(detached(async move { node.expose(&pool, body).await }).await?))
}

pub async fn unexpose(
    State(node): Shared,
    Path(at): InPool,
    Body(body): Body<UnexposePool>,
) -> Answer<Done> {
    let pool = reference(at)?;
    detached(async move { node.unexpose(&pool, body.listen).await }).await?;
    Ok(done())
}
