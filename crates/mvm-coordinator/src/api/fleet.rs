//! The fleet's document, and how far the fleet has come with it.

use super::handler::{Answer, Shared};
use axum::Json;
use axum::extract::State;
use mvm_api::fleet::{ApplyFleet, CoordinatorInfo, FleetPlan, FleetStatus};
use mvm_api::query::StatusOptions;
use mvm_model::fleet::FleetState;
use mvm_server::extract::{Body, Query};

pub async fn coordinator(State(fleet): Shared) -> Json<CoordinatorInfo> {
    Json(CoordinatorInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        fleet_id: fleet.options.fleet_id.clone(),
        address: fleet.options.address.clone(),
        leads: fleet.leads(),
        leader: fleet.leadership.leader().map(|leader| leader.address),
        store: fleet.options.store.to_owned(),
        started_at: fleet.clock().wall_of(fleet.lifecycle.started_at),
    })
}

pub async fn show(State(fleet): Shared) -> Answer<FleetState> {
    Ok(Json(fleet.document()?))
}

pub async fn apply(State(fleet): Shared, Body(body): Body<ApplyFleet>) -> Answer<FleetPlan> {
    Ok(Json(fleet.apply(body.document, body.dry_run).await?))
}

/// Returns the fleet's status, the leader's if the request asks for that: see
/// [`super::proxy::to_leader`].
pub async fn status(State(fleet): Shared, Query(_): Query<StatusOptions>) -> Answer<FleetStatus> {
    Ok(Json(fleet.status()))
}
