//! Tenants.

use super::{Answer, Asked, Body, Caller, Done, Listing, Shared, detached, done};
use crate::problem::not_found;
use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use mvm_api::types::{CreateTenant, QuotaPatch, TenantView};
use mvm_model::Name;

pub async fn list(
    State(node): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, .. }: Asked,
) -> Listing<TenantView> {
    let views = node.records.read(|world| {
        let seen = world.tenants.values().filter(|tenant| peer.sees(&tenant.name));
        page.of(seen.map(|tenant| node.pool_views.tenant(world, tenant)))
    });
    Ok(views)
}

pub async fn show(State(node): Shared, Path(name): Path<String>) -> Answer<TenantView> {
    let name: Name = name.parse()?;
    let view =
        node.records.read(|world| world.tenant(&name).map(|t| node.pool_views.tenant(world, t)))?;
    Ok(Json(view))
}

pub async fn create(State(node): Shared, Body(body): Body<CreateTenant>) -> Answer<TenantView> {
    let name = body.name.clone();
    let maker = node.clone();
    detached(async move { maker.tenants.create(body).await }).await?;
    let view = node.records.read(|w| w.tenants.get(&name).map(|t| node.pool_views.tenant(w, t)));
    Ok(Json(view.ok_or_else(|| not_found(format!("tenant {name} any more"), ""))?))
}

pub async fn update(
    State(node): Shared,
    Path(name): Path<String>,
    Body(patch): Body<QuotaPatch>,
) -> Answer<TenantView> {
    let parsed: Name = name.parse()?;
    node.tenants.update(&parsed, patch).await?;
    show(State(node), Path(name)).await
}

pub async fn destroy(State(node): Shared, Path(name): Path<String>) -> Answer<Done> {
    let name: Name = name.parse()?;
    detached(async move { node.tenants.destroy(&name).await }).await?;
    Ok(done())
}
