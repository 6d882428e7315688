//! The document of desired state that is in force, as its record.

use mvm_model::desired::{DesiredState, Step};
use mvm_model::{Name, PoolRef};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The document in force, as its record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InForce {
    /// The document; its paths are absolute.
    pub document: DesiredState,
    /// Whether what it does not name is removed.
    pub prune: bool,
    /// Whether it stays in force when all is done.
    pub hold: bool,
    /// Where it is a fleet's: what of the fleet is on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<Owned>,
}

/// What a node has got from its fleet: only that is removed when the fleet does not name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// Tells the fleet's documents apart.
    pub digest: String,
    /// Tenants that its documents have named, as far as they are there.
    pub tenants: BTreeSet<Name>,
    /// Pools that its documents have named, as far as they are there.
    pub pools: BTreeSet<PoolRef>,
}

impl Owned {
    /// Whether the fleet may have the node do this: what a document does not name is removed only where the
    /// fleet has put it there.
    pub(crate) fn takes(&self, step: &Step) -> bool {
        match step {
            Step::DestroyPool { pool } => self.pools.contains(pool),
            Step::DestroyTenant { tenant } => self.tenants.contains(tenant),
            _ => true,
        }
    }
}
