//! The parts of an agent: the resources that it uses, and its settings.

use crate::accelerator::AcceleratorChoice;
use crate::host::Offer;
use crate::stages::Stages;
use crate::state_dir::StateDir;
use mvm_hypervisor::Hypervisor;
use mvm_identity::tls::Credentials;
use mvm_image::ImageStore;
use mvm_model::Mib;
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
    /// The durable records.
    pub store: Arc<dyn Store>,
    /// The hypervisor's driver.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The links and the firewall.
    pub network: Arc<Network>,
    /// The images and kernels.
    pub images: ImageStore,
    /// The node's identity, where the API is served to other machines.
    pub credentials: Option<Arc<Credentials>>,
    /// The durations of operations' stages.
    pub stages: Stages,
    pub settings: AgentSettings,
}

/// The settings of an agent.
#[derive(Clone, Debug)]
pub(crate) struct AgentSettings {
    /// The name of this node in desired-state documents, if it was given one.
    pub node_id: Option<Name>,
    /// The network namespace that the process is in, if one was named.
    pub netns: Option<String>,
    /// The choice of the accelerator for new machines.
    pub accelerator: Arc<AcceleratorChoice>,
    /// What the node offers to a fleet.
    pub offer: Offer,
    /// The file where the kernel reports how much the host waits for memory (proc(5), PSI).
    pub pressure: PathBuf,
    /// The rate at which images leave for other nodes, in MiB per second; unlimited where absent.
    pub image_rate: Option<NonZeroU32>,
    /// How long a job waits whose machine is paused because the host's disk is full.
    pub no_space_timeout: Duration,
    /// The part of the disk that tenants' files may not take, in MiB; a fraction of the disk where
    /// absent.
    pub disk_reserve: Option<Mib>,
}

#[cfg(test)]
impl AgentSettings {
    /// Returns the settings of a test's agent. The file `pressure` stands for the host's memory
    /// pressure.
    pub fn of_tests(node_id: Option<Name>, pressure: PathBuf) -> AgentSettings {
        AgentSettings {
            node_id,
            netns: None,
            accelerator: AcceleratorChoice::simulated(""),
            offer: Offer::default(),
            pressure,
            image_rate: None,
            no_space_timeout: Duration::from_secs(600),
            disk_reserve: None,
        }
    }
}
