//! A node as the fleet sees it.

use super::rules::{Labels, NODE, Selector};
use crate::Millis;
use crate::any_code::AnyCode;
use crate::name::{Name, PoolRef};
use crate::pool::Counts;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a node offers to instances. A node of a later version may say more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    /// vCPUs of instances that are running or warm.
    pub vcpus: u64,
    /// Memory of instances that are running or warm, in MiB.
    pub mem_mib: u64,
    /// Disk that all instances may grow to, in GiB.
    pub disk_gib: u64,
}

/// What a node holds of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolStatus {
    /// Unleased instances by temperature.
    pub ready: Counts,
    /// Leased instances.
    pub leased: u32,
    /// Instances that failed.
    #[serde(default)]
    pub failed: u32,
    /// All instances.
    #[serde(default)]
    pub instances: u32,
    /// Jobs on record, ended ones too.
    #[serde(default)]
    pub jobs: u32,
    /// Those of them that have not ended.
    #[serde(default)]
    pub open_jobs: u32,
    /// Whether new instances are clones of a template.
    pub template: bool,
    /// Digest of the image that new instances boot from, where one is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What that image is, so that it can be told from a forged one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Why the pool is not converging, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    /// Its name.
    pub node_id: Name,
    /// Version of its agent.
    pub version: String,
    /// What it offers.
    pub capacity: Capacity,
    /// What it says of itself.
    #[serde(default)]
    pub labels: Labels,
    /// The host's CPU, as /proc/cpuinfo names it.
    #[serde(default)]
    pub cpu_model: String,
    /// Whether its machines are simulated.
    #[serde(default)]
    pub simulated: bool,
    /// Digests of the images on its disk.
    #[serde(default)]
    pub images: BTreeSet<String>,
    /// What it holds.
    #[serde(default)]
    pub pools: BTreeMap<PoolRef, PoolStatus>,
    /// The digest that came with the fleet's document in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Steps of its document that are still to be done.
    #[serde(default)]
    pub pending: u32,
    /// The step that failed last, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The code of that failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_code: Option<AnyCode>,
    /// The number of its last event.
    #[serde(default)]
    pub newest_event: u64,
}

/// What a node is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// It takes what comes.
    #[default]
    Open,
    /// It keeps and serves what it has, and gets nothing more.
    Cordoned,
    /// It goes to nothing as its leases end, and serves no new claim.
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
    pub lost_since: Option<Millis>,
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
