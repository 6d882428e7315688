//! The record of the desired-state document in force.

use mvm_model::desired::{DesiredState, Step};
use mvm_model::{Name, PoolRef};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The desired-state document in force, as it is recorded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InForce {
    /// The document; its paths are absolute.
    pub document: DesiredState,
    /// Whether pools and tenants that the document does not name are removed.
    pub prune: bool,
    /// Whether the document stays in force once it is carried out.
    pub hold: bool,
    /// The fleet's tenants and pools on this node; present only for a fleet's document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<Owned>,
}

/// The tenants and pools that a node has from its fleet. Only these are removed when the fleet's
/// document no longer names them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// The digest that identifies the fleet's document.
    pub digest: String,
    /// The tenants that the fleet's documents have named, as far as they exist.
    pub tenants: BTreeSet<Name>,
    /// The pools that the fleet's documents have named, as far as they exist.
    pub pools: BTreeSet<PoolRef>,
}

impl Owned {
    /// Returns whether the fleet may have the node carry out this step. A pool or tenant that the
    /// document does not name is removed only if it came from the fleet.
    pub(crate) fn takes(&self, step: &Step) -> bool {
        match step {
            Step::DestroyPool { pool } => self.pools.contains(pool),
            Step::DestroyTenant { tenant } => self.tenants.contains(tenant),
            _ => true,
        }
    }
}
