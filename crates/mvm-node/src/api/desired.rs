//! Handlers of the desired state.

use super::handler::{Answer, Body, Shared};
use axum::Json;
use axum::extract::State;
use mvm_api::types::{ApplyDesired, DesiredPlan, DesiredStatus};
use mvm_model::desired::DesiredState;

pub async fn show(State(agent): Shared) -> Answer<DesiredState> {
    Ok(Json(agent.steering.desired.now()?))
}

pub async fn status(State(agent): Shared) -> Json<DesiredStatus> {
    Json(agent.steering.desired.status())
}

pub async fn apply(State(agent): Shared, Body(body): Body<ApplyDesired>) -> Answer<DesiredPlan> {
    let ApplyDesired { document, prune, dry_run } = body;
    document.validate()?;
    agent.steering.desired.admit(&document).await?;
    let steps = match dry_run {
        true => agent.steering.desired.steps(&document, prune)?,
        false => agent.steering.desired.apply(document, prune, false).await?,
    };
    Ok(Json(DesiredPlan { steps, dry_run }))
}
