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

use mvm_model::Timestamp;
use mvm_model::accelerator::{Standing, Wanted};
use mvm_model::fleet::Capacity;
use mvm_model::host::Shortfall;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An empty object: the request was carried out, and there is nothing to return.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// Response of `GET /v1/agent`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentInfo {
    /// Version of the agent's binary.
    pub version: String,
    /// The agent's process id.
    pub pid: u32,
    /// The agent's state directory.
    pub root: String,
    /// Four hexadecimal digits in the names of this state directory's links and firewall tables.
    pub root_id: String,
    /// The hypervisor's driver: `qemu`.
    pub hypervisor: String,
    /// The hypervisor's version.
    pub hypervisor_version: String,
    /// The accelerator of new machines: `kvm` or `tcg`.
    pub accelerator: String,
    /// Why this accelerator is used.
    pub accelerator_reason: String,
    /// How firm the choice of the accelerator is.
    #[serde(default = "settled")]
    pub accelerator_standing: Standing,
    /// The operator's word on the accelerator.
    #[serde(default)]
    pub accelerator_wanted: Wanted,
    /// Whether the machines are simulated.
    pub simulated: bool,
    /// The network namespace that the agent works in; absent where none was named.
    pub netns: Option<String>,
    /// When the agent started; ms since the Unix epoch.
    pub started_at: Timestamp,
    /// Number of instances on record.
    pub instances: usize,
    /// The resources that the host offers to instances.
    #[serde(default)]
    pub capacity: Capacity,
    /// What the host lacks for the pools' settings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortfalls: Vec<Shortfall>,
    /// The progress towards the node's document of desired state.
    pub desired: DesiredStatus,
}

fn settled() -> Standing {
    Standing::Settled
}

/// Response of `POST /v1/agent/probe`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProbeResult {
    /// What the trial found: `kvm` where a kernel came through its start under KVM, otherwise
    /// `tcg`; `none` where machines are simulated.
    pub verdict: String,
    /// Why the trial found that.
    pub reason: String,
    /// How long the trial took in ms.
    pub took_ms: u64,
    /// The accelerator of new machines before the trial.
    pub before: String,
    /// The accelerator of new machines after the trial.
    pub accelerator: String,
    /// Why that accelerator is used.
    pub accelerator_reason: String,
}
