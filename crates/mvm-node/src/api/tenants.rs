//! Handlers of tenants.

use super::handler::{Answer, Asked, Body, Caller, Done, Listing, Shared, detached, done};
use crate::error::Missing;
use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use mvm_api::types::{CreateTenant, QuotaPatch, TenantView};
use mvm_model::Name;

pub async fn list(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, .. }: Asked,
) -> Listing<TenantView> {
    let views = agent.base.records.read(|records| {
        let seen = records.tenants.values().filter(|tenant| peer.sees(&tenant.name));
        page.of(seen.map(|tenant| agent.views.pools.tenant(records, tenant)))
    });
    Ok(views)
}

pub async fn show(State(agent): Shared, Path(name): Path<String>) -> Answer<TenantView> {
    let name: Name = name.parse()?;
    let view = agent
        .base
        .records
        .read(|records| records.tenant(&name).map(|t| agent.views.pools.tenant(records, t)))?;
    Ok(Json(view))
}

pub async fn create(State(agent): Shared, Body(body): Body<CreateTenant>) -> Answer<TenantView> {
    let name = body.name.clone();
    let maker = agent.clone();
    detached(async move { maker.pools.tenants.create(body).await }).await?;
    let view =
        agent.base.records.read(|w| w.tenants.get(&name).map(|t| agent.views.pools.tenant(w, t)));
    Ok(Json(view.ok_or(Missing::NewTenant(name))?))
}

pub async fn update(
    State(agent): Shared,
    Path(name): Path<String>,
    Body(patch): Body<QuotaPatch>,
) -> Answer<TenantView> {
    let parsed: Name = name.parse()?;
    agent.pools.tenants.update(&parsed, patch).await?;
    show(State(agent), Path(name)).await
}

pub async fn destroy(State(agent): Shared, Path(name): Path<String>) -> Answer<Done> {
    let name: Name = name.parse()?;
    detached(async move { agent.pools.tenants.destroy(&name).await }).await?;
    Ok(done())
}
