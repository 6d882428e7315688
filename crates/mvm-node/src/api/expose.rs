//! Pools behind ports.

use super::pools::{InPool, reference};
use super::{Answer, Body, Done, Shared, detached, done};
use axum::Json;
use axum::extract::{Path, State};
use mvm_api::expose::{ExposePool, ExposeView, UnexposePool};

pub async fn list(State(node): Shared) -> Json<Vec<ExposeView>> {
    Json(node.exposes().await)
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
