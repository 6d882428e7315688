//! What an agent is made of: the resources that it uses, and how it was told to behave.

use crate::host::Offer;
use crate::stages::Stages;
use crate::state_dir::StateDir;
use mvm_hypervisor::Hypervisor;
use mvm_identity::tls::Credentials;
use mvm_image::ImageStore;
use mvm_model::Name;
use mvm_network::Network;
use mvm_store::Store;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The resources of an agent.
pub(crate) struct AgentParts {
    /// The state directory.
    pub state_dir: StateDir,
    /// Durable records.
    pub store: Arc<dyn Store>,
    /// The driver of the machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Links and firewall.
    pub network: Arc<Network>,
    /// Images and kernels.
    pub images: ImageStore,
    /// The node's identity, where the API is served to other machines.
    pub credentials: Option<Arc<Credentials>>,
    /// Where the time goes.
    pub stages: Stages,
    pub settings: AgentSettings,
}

/// How an agent was told to behave.
#[derive(Clone, Debug)]
pub(crate) struct AgentSettings {
    /// The name of this node in desired-state documents, if it was given one.
    pub node_id: Option<Name>,
    /// The network namespace that the process is in, if one was named.
    pub netns: Option<String>,
    /// Why the driver uses the accelerator that it uses.
    pub accelerator_reason: String,
    /// What the node says of itself to a fleet.
    pub offer: Offer,
    /// Where the kernel says how much the host waits for memory (proc(5), PSI).
    pub pressure: PathBuf,
    /// How fast images may leave for other nodes, in MiB a second; unlimited where absent.
    pub image_rate: Option<NonZeroU32>,
    /// How long a job waits whose machine is paused for want of space on the host.
    pub no_space_timeout: Duration,
    /// How much of the disk no files of tenants may take, in MiB; a part of it where absent.
    pub disk_reserve_mib: Option<u64>,
}

#[cfg(test)]
impl AgentSettings {
    /// Those of tests' agents: the host's memory is what the file `pressure` says.
    pub fn of_tests(node_id: Option<Name>, pressure: PathBuf) -> AgentSettings {
        AgentSettings {
            node_id,
            netns: None,
            accelerator_reason: String::new(),
            offer: Offer::default(),
            pressure,
            image_rate: None,
            no_space_timeout: Duration::from_secs(600),
            disk_reserve_mib: None,
        }
    }
}
