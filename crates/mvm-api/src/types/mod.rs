//! Requests and responses. Memory and disk sizes are in MiB, and times in milliseconds since the
//! Unix epoch. The name of a duration has its unit.

mod desired;
mod events;
mod identity;
mod images;
mod instances;
mod network;
mod pools;
mod tenants;

pub use desired::*;
pub use events::*;
pub use identity::*;
pub use images::*;
pub use instances::*;
pub use network::*;
pub use pools::*;
pub use tenants::*;

use mvm_model::Millis;
use mvm_model::fleet::Capacity;
use mvm_model::host::Shortfall;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An empty object: done, and nothing to say.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// `GET /v1/agent`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentInfo {
    /// Version of the agent's binary.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its state directory.
    pub root: String,
    /// Four hexadecimal digits in the names of this root's links and firewall tables.
    pub root_id: String,
    /// The driver: `qemu`.
    pub hypervisor: String,
    /// The hypervisor's version.
    pub hypervisor_version: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why that accelerator.
    pub accelerator_reason: String,
    /// Whether the machines are simulated.
    pub simulated: bool,
    /// The network namespace that everything is in, if one was named.
    pub netns: Option<String>,
    /// When it started.
    pub started_at: Millis,
    /// Instances that it knows.
    pub instances: usize,
    /// What its host offers to instances.
    #[serde(default)]
    pub capacity: Capacity,
    /// What its host lacks of what the pools want.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortfalls: Vec<Shortfall>,
    /// What its document of desired state comes to.
    pub desired: DesiredStatus,
}
