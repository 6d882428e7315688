//! A node as the fleet sees it.

use super::rules::{Labels, NODE, Selector};
use crate::any_code::AnyCode;
use crate::mib::Mib;
use crate::name::{Name, PoolRef};
use crate::pool::Counts;
use crate::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The resources that a node offers to instances. A node of a later version may report more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    /// Number of vCPUs for running and warm instances.
    pub vcpus: u64,
    /// Memory for running and warm instances, in MiB.
    pub mem_mib: Mib,
    /// Disk space that all instances together may grow to, in GiB.
    pub disk_gib: u64,
}

/// A node's state of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolStatus {
    /// Number of unleased instances by temperature.
    pub ready: Counts,
    /// Number of leased instances.
    pub leased: u32,
    /// Number of failed instances.
    #[serde(default)]
    pub failed: u32,
    /// Number of all instances.
    #[serde(default)]
    pub instances: u32,
    /// Number of jobs on record, including those that have ended.
    #[serde(default)]
    pub jobs: u32,
    /// Number of jobs that have not ended.
    #[serde(default)]
    pub open_jobs: u32,
    /// Whether new instances are clones of a template.
    pub template: bool,
    /// Digest of the image that new instances boot from; absent until one is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Digest of that image's bytes, by which a forged image is detected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Why the pool does not converge; absent where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// A node's report on itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    /// The node's name.
    pub node_id: Name,
    /// Version of the node's agent.
    pub version: String,
    /// The resources that the node offers.
    pub capacity: Capacity,
    /// The node's labels.
    #[serde(default)]
    pub labels: Labels,
    /// The host's CPU, as /proc/cpuinfo names it.
    #[serde(default)]
    pub cpu_model: String,
    /// Whether the node's machines are simulated.
    #[serde(default)]
    pub simulated: bool,
    /// Digests of the images on its disk.
    #[serde(default)]
    pub images: BTreeSet<String>,
    /// The pools that the node holds.
    #[serde(default)]
    pub pools: BTreeMap<PoolRef, PoolStatus>,
    /// The digest of the fleet's document in force on the node; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Number of steps of the document that remain.
    #[serde(default)]
    pub pending: u32,
    /// The last step that failed, and why; absent where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The code of that failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_code: Option<AnyCode>,
    /// The number of the node's last event.
    #[serde(default)]
    pub newest_event: u64,
}

/// The duty of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// The node takes new instances and claims.
    #[default]
    Open,
    /// The node keeps and serves the instances that it has, and gets no more.
    Cordoned,
    /// The node gives up its instances as their leases end, and serves no new claim.
    Draining,
}

/// A node with all that placement looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetNode {
    /// Its last status; shared, since it is read far more often than it changes.
    pub status: Arc<NodeStatus>,
    /// Whether it may get instances, and keeps those that it has.
    pub duty: Duty,
    /// Since when it is out of reach, if it is.
    pub lost_since: Option<Timestamp>,
    /// Whether it sent its status after it had done all of its last document.
    pub settled: bool,
}

impl FleetNode {
    /// Returns the value of a label; `None` if the node lacks it.
    pub fn label(&self, key: &str) -> Option<&str> {
        match key {
            NODE => Some(self.status.node_id.as_str()),
            key => self.status.labels.get(key).map(String::as_str),
        }
    }

    /// Returns whether the node's labels match.
    pub fn fits(&self, selector: &Selector) -> bool {
        selector.iter().all(|(key, values)| {
            self.label(key).is_some_and(|own| values.is_empty() || values.iter().any(|v| v == own))
        })
    }
}
