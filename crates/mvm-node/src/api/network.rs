//! Handler of the node's network.

use super::handler::{Answer, Shared};
use axum::Json;
use axum::extract::State;
use mvm_api::types::NetworkReport;

pub async fn verify(State(agent): Shared) -> Answer<NetworkReport> {
    Ok(Json(agent.supplies.links.verify().await?))
}
