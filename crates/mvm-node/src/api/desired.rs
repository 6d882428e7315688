//! The desired state.

use super::{Answer, Body, Shared};
use axum::Json;
use axum::extract::State;
use mvm_api::types::{ApplyDesired, DesiredPlan, DesiredStatus};
use mvm_model::desired::DesiredState;

pub async fn show(State(node): Shared) -> Answer<DesiredState> {
    Ok(Json(node.desired.now().await?))
}

pub async fn status(State(node): Shared) -> Json<DesiredStatus> {
    Json(node.desired.status().await)
}

pub async fn apply(State(node): Shared, Body(body): Body<ApplyDesired>) -> Answer<DesiredPlan> {
    let ApplyDesired { document, prune, dry_run } = body;
    document.validate()?;
    node.host.admit_shapes(&document)?;
    document.admit_machines()?;
    let steps = match dry_run {
        true => node.desired.steps(&document, prune).await?,
        false => node.desired.apply(document, prune, false).await?,
    };
    Ok(Json(DesiredPlan { steps, dry_run }))
}
