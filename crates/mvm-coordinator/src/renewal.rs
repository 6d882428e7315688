//! Renews the claims whose client is connected, at their nodes, again and again.
//!
//! A node ends a claim that was not renewed for a while (`mvm_model::lease::HOLD`), whatever
//! became of the leader that was to end it. So a machine whose holder is gone is free after
//! seconds, even where the leader went with the client and no other one comes.

use crate::leadership::Lead;
use crate::state::ClusterState;
use mvm_api::fleet::RenewClaims;
use mvm_model::lease::RENEW;
use mvm_model::{LeaseId, Name};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Renews claims for as long as this leadership lasts.
pub(crate) async fn run(fleet: &Arc<ClusterState>, lead: &Arc<Lead>) {
    let mut turn = interval(RENEW);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        for (node, claims) in fleet.claims.held.by_node() {
            // A node that does not answer holds up no other.
            tokio::spawn(renew(fleet.clone(), lead.clone(), node, claims));
        }
    }
}

async fn renew(fleet: Arc<ClusterState>, lead: Arc<Lead>, node: Name, claims: BTreeSet<LeaseId>) {
    // The claims of a node out of reach are ended here when it is lost, and by the node itself.
    let Ok(port) = fleet.node_client(&node) else { return };
    let claims = claims.into_iter().collect();
    let renewed = RenewClaims { leader: lead.leader.clone(), claims };
    match timeout(RENEW, port.renew(&renewed)).await {
        Ok(Ok(gone)) if gone.is_empty() => {}
        Ok(Ok(gone)) => {
            let gone: Vec<String> = gone.iter().map(LeaseId::to_string).collect();
            tracing::info!(%node, ?gone, "the node holds these claims no more");
        }
        Ok(Err(refused)) => {
            let error = refused.into_error();
            tracing::warn!(%node, code = %error.code(), "cannot renew claims: {error}");
        }
        Err(_) => tracing::warn!(%node, "cannot renew claims: the node does not answer"),
    }
}
