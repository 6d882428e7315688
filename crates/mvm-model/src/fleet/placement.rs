//! Which node is to hold what, as it is decided and written down.

use super::placement_board::UnfitReason;
use crate::admission::Quotas;
use crate::name::{Name, PoolRef};
use crate::pool::Counts;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What one node is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The counts of each pool; a pool with none is there to serve claims.
    pub pools: BTreeMap<PoolRef, Counts>,
    /// Pools that are elsewhere now and stay here, with nothing, for the jobs on record here; each
    /// with the image that it has here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept: BTreeMap<PoolRef, Option<String>>,
    /// The node's part of each tenant's quotas.
    pub quotas: BTreeMap<Name, Quotas>,
}

/// Which node is to hold what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// By node; one that is not named holds nothing.
    pub nodes: BTreeMap<Name, Share>,
    /// What is on no node.
    pub unplaced: Vec<Unplaced>,
}

/// The instances of a pool that could not be placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unplaced {
    /// The pool.
    pub pool: PoolRef,
    /// The number of instances by temperature.
    pub counts: Counts,
    /// The number of nodes that each reason rules out.
    pub why: BTreeMap<UnfitReason, u32>,
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { running, warm, sleeping } = self.counts;
        write!(
            f,
            "{}: no node for {running} running, {warm} warm, {sleeping} sleeping",
            self.pool
        )?;
        for (index, (why, nodes)) in self.why.iter().enumerate() {
            write!(f, "{} {nodes} {why}", if index == 0 { ":" } else { "," })?;
        }
        if self.why.is_empty() {
            f.write_str(": there is no node")?;
        }
        Ok(())
    }
}
