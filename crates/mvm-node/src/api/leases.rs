//! Handlers of leases.

use super::handler::{Answer, Asked, Body, Caller, Done, Listing, Shared, detached, done};
use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use mvm_api::query::LeaseFilter;
use mvm_api::types::{ExtendLease, LeaseView};

pub async fn list(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, filter }: Asked<LeaseFilter>,
) -> Listing<LeaseView> {
    let mut leases = agent.work.leases.list();
    leases.retain(|view| {
        let tenant = &view.instance.pool.tenant;
        peer.sees(tenant) && filter.tenant.as_ref().is_none_or(|wanted| wanted == tenant)
    });
    Ok(page.of(leases))
}

pub async fn extend(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(id): Path<String>,
    Body(body): Body<ExtendLease>,
) -> Answer<LeaseView> {
    let id = agent.work.leases.lease_for(&peer, &id)?;
    Ok(Json(agent.work.leases.extend(id, body.lease_s).await?))
}

pub async fn release(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(id): Path<String>,
) -> Answer<Done> {
    let id = agent.work.leases.lease_for(&peer, &id)?;
    detached(async move { agent.work.leases.release(id).await }).await?;
    Ok(done())
}
