//! Claims whose client is there: their nodes are told so again and again.
//!
//! A node ends a claim of which it has not heard for a while (`mvm_model::lease::HOLD_MS`), whatever
//! became of whoever was to end it. So a machine whose holder is gone costs seconds, also where the
//! leader went with the client and no other one comes.

use crate::fleet::{Fleet, Lead};
use mvm_api::fleet::RenewClaims;
use mvm_model::Name;
use mvm_model::lease::RENEW_MS;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How often nodes are told.
const RENEW: Duration = Duration::from_millis(RENEW_MS);

/// The claims whose client's connection is open, by their node.
#[derive(Clone, Default)]
pub(crate) struct HeldClaims(Arc<Mutex<BTreeMap<Name, BTreeSet<String>>>>);

/// A claim's client is there until this is dropped.
pub(crate) struct Held {
    claims: HeldClaims,
    node: Name,
    id: String,
}

impl HeldClaims {
    fn map(&self) -> MutexGuard<'_, BTreeMap<Name, BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The claim's client is there, and its machine is on this node.
    pub fn hold(&self, node: &Name, id: &str) -> Held {
        self.map().entry(node.clone()).or_default().insert(id.to_owned());
        Held { claims: self.clone(), node: node.clone(), id: id.to_owned() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut map = self.claims.map();
        if let Some(claims) = map.get_mut(&self.node) {
            claims.remove(&self.id);
            if claims.is_empty() {
                map.remove(&self.node);
            }
        }
    }
}

/// Tells the nodes for as long as this leadership lasts.
pub(crate) async fn run(fleet: &Arc<Fleet>, lead: &Arc<Lead>) {
    let mut turn = interval(RENEW);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        let held: Vec<(Name, BTreeSet<String>)> =
            fleet.desk.held.map().iter().map(|(node, ids)| (node.clone(), ids.clone())).collect();
        for (node, claims) in held {
            // A node that does not answer holds up no other.
            tokio::spawn(tell(fleet.clone(), lead.clone(), node, claims));
        }
    }
}

async fn tell(fleet: Arc<Fleet>, lead: Arc<Lead>, node: Name, claims: BTreeSet<String>) {
    // Out of reach: its claims are ended here when it is lost, and there by itself.
    let Ok(port) = fleet.port(&node) else { return };
    let claims = claims.into_iter().collect();
    let renewed = RenewClaims { leader: lead.leader.clone(), claims };
    match timeout(RENEW, port.renew(&renewed)).await {
        Ok(Ok(gone)) if gone.is_empty() => {}
        Ok(Ok(gone)) => tracing::info!(%node, ?gone, "the node holds these claims no more"),
        Ok(Err(refused)) => {
            let problem = refused.problem();
            tracing::warn!(%node, code = problem.code, "cannot renew claims: {problem}");
        }
        Err(_) => tracing::warn!(%node, "cannot renew claims: the node does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_held_until_its_guard_is_dropped() {
        let (claims, n1, n2): (_, Name, Name) =
            (HeldClaims::default(), "n1".parse().expect("a name"), "n2".parse().expect("a name"));
        let (first, second) = (claims.hold(&n1, "l-1"), claims.hold(&n1, "l-2"));
        let other = claims.hold(&n2, "l-3");
        drop(second);
        assert_eq!(claims.map()[&n1], BTreeSet::from(["l-1".to_owned()]));
        drop((first, other));
        assert!(claims.map().is_empty(), "no node is told of nothing");
    }
}
