//! The claims whose client is connected.

use mvm_model::{LeaseId, Name};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The claims whose client's connection is open, by their node.
#[derive(Clone, Default)]
pub(crate) struct HeldClaims(Arc<Mutex<BTreeMap<Name, BTreeSet<LeaseId>>>>);

/// The connection of a claim's client, until this is dropped.
pub(crate) struct Held {
    claims: HeldClaims,
    node: Name,
    id: LeaseId,
}

impl HeldClaims {
    fn map(&self) -> MutexGuard<'_, BTreeMap<Name, BTreeSet<LeaseId>>> {
        self.0.lock()
    }

    /// Returns which claims are held, by their node.
    pub fn by_node(&self) -> Vec<(Name, BTreeSet<LeaseId>)> {
        self.map().iter().map(|(node, ids)| (node.clone(), ids.clone())).collect()
    }

    /// Notes that the claim's client is connected, and that its machine is on this node.
    pub fn hold(&self, node: &Name, id: LeaseId) -> Held {
        self.map().entry(node.clone()).or_default().insert(id);
        Held { claims: self.clone(), node: node.clone(), id }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_held_until_its_guard_is_dropped() {
        let [id, gone, elsewhere] = [1, 2, 3].map(LeaseId::of_claim);
        let (claims, n1, n2): (_, Name, Name) =
            (HeldClaims::default(), "n1".parse().expect("a name"), "n2".parse().expect("a name"));
        let (first, second) = (claims.hold(&n1, id), claims.hold(&n1, gone));
        let other = claims.hold(&n2, elsewhere);
        drop(second);
        assert_eq!(claims.map()[&n1], BTreeSet::from([id]));
        drop((first, other));
        assert!(claims.map().is_empty(), "no node is told of nothing");
    }
}
