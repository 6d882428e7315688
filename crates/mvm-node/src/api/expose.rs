//! Handlers of pools behind ports.

use super::handler::{Answer, Asked, Body, Caller, Done, Listing, Shared, detached, done};
use super::pools::{InPool, reference};
use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use mvm_api::expose::{ExposePool, ExposeView, UnexposePool};

pub async fn list(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, .. }: Asked,
) -> Listing<ExposeView> {
    let mut views = agent.work.exposes.list();
    views.retain(|view| peer.sees(&view.tenant_id));
    Ok(page.of(views))
}

pub async fn expose(
    State(agent): Shared,
    Path(at): InPool,
    Body(body): Body<ExposePool>,
) -> Answer<ExposeView> {
    let pool = reference(at)?;
    Ok(Json(detached(async move { agent.work.exposes.expose(&pool, body).await }).await?))
}

pub async fn unexpose(
    State(agent): Shared,
    Path(at): InPool,
    Body(body): Body<UnexposePool>,
) -> Answer<Done> {
    let pool = reference(at)?;
    detached(async move { agent.work.exposes.unexpose(&pool, body.listen).await }).await?;
    Ok(done())
}
