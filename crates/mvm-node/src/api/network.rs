//! The node's network.

use super::{Answer, Shared};
use axum::Json;
use axum::extract::State;
use mvm_api::types::NetworkReport;

pub async fn verify(State(node): Shared) -> Answer<NetworkReport> {
    Ok(Json(node.links.verify().await?))
}
