//! The node: its parts, and the one door through which its records change.

use crate::audit::{Audit, Auditor};
use crate::builds::Builds;
use crate::caches::Caches;
use crate::desired::Convergence;
use crate::expose::Fronts;
use crate::fleet::{Fleet, Offer};
use crate::health::Health;
use crate::holders::LeaseHolders;
use crate::instances::{
    Disks, Guests, Halted, Instances, Lingering, LinkKeeper, MachineWatch, Machines, Recovery,
    Slots, Transitions, free_mib,
};
use crate::jobs::Jobs;
use crate::links::Links;
use crate::pressure::HostPressure;
use crate::reconcile::Passes;
use crate::records::Records;
use crate::stages::Stages;
use crate::state_dir::StateDir;
use crate::template_maker::TemplateMaker;
use crate::templates::Templates;
use crate::transfer::Pace;
use crate::wake::Wake;
use crate::{Result, now};
use mvm_api::tls::Keeper;
use mvm_hypervisor::Hypervisor;
use mvm_image::ImageStore;
use mvm_model::policy::Idle;
use mvm_model::{InstanceId, Millis, Name};
use mvm_network::Network;
use mvm_store::Store;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;
use tokio::sync::Notify;

/// The agent's parts.
pub struct Parts {
    /// The state directory.
    pub root: StateDir,
    /// The name of this node in desired-state documents, if it was given one.
    pub node_id: Option<Name>,
    /// The network namespace that the process is in, if one was named.
    pub netns: Option<String>,
    /// Durable records.
    pub store: Arc<dyn Store>,
    /// The driver.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Why it uses the accelerator that it uses.
    pub accelerator_reason: String,
    /// Our identity, where the API is served to other machines.
    pub keeper: Option<Arc<Keeper>>,
    /// Where the time goes.
    pub stages: Stages,
    /// Where the kernel says how much the host waits for memory (proc(5), PSI).
    pub pressure: PathBuf,
    /// Links and firewall.
    pub network: Arc<Network>,
    /// Images and kernels.
    pub images: ImageStore,
    /// What it says of itself to a fleet.
    pub offer: Offer,
    /// How fast images may leave for other nodes, in MiB a second; unlimited where absent.
    pub image_rate: Option<NonZeroU32>,
    /// How long a job waits whose machine is paused for want of space on the host.
    pub no_space_timeout: Duration,
    /// How much of the disk no files of tenants may take, in MiB; a part of it where absent.
    pub disk_reserve_mib: Option<u64>,
}

/// The agent of one node.
pub struct Node {
    /// Its parts.
    pub parts: Parts,
    /// When it started.
    pub started_at: Millis,
    /// Wakes the reconcile loop.
    pub(crate) wake: Wake,
    /// Ends the agent.
    pub stop: Notify,
    /// What the document in force comes to.
    pub(crate) desired: Convergence,
    pub(crate) records: Arc<Records>,
    pub(crate) auditor: Arc<Auditor>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) health: Arc<Health>,
    pub(crate) pressure: HostPressure,
    pub(crate) halted: Arc<Halted>,
    pub(crate) links: Arc<Links>,
    pub(crate) link_keeper: Arc<LinkKeeper>,
    pub(crate) caches: Arc<Caches>,
    pub(crate) templates: Arc<Templates>,
    pub(crate) template_maker: Arc<TemplateMaker>,
    pub(crate) transitions: Arc<Transitions>,
    pub(crate) lingering: Arc<Lingering>,
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) instances: Arc<Instances>,
    pub(crate) guests: Arc<Guests>,
    pub(crate) fleet: Fleet,
    pub(crate) passes: Passes,
    pub(crate) audit: Arc<Audit>,
    pub(crate) jobs: Jobs,
    pub(crate) builds: Builds,
    /// Holds back images that leave.
    pub(crate) pace: Pace,
    pub(crate) idle: Lock<HashMap<InstanceId, Idle>>,
    /// Pools behind ports.
    pub(crate) fronts: Fronts,
    /// What is known of leases beside their records.
    pub(crate) leases: Arc<LeaseHolders>,
}

impl Node {
    /// Reads the records; touches no machine.
    pub async fn open(parts: Parts) -> Result<Arc<Node>> {
        let records = Arc::new(Records::open(parts.store.clone()).await?);
        let audit = Audit::open(parts.root.audit())?;
        records.read(|world| {
            audit.put_aside_all_but(|log| world.tenants.keys().any(|name| name.as_str() == log))
        })?;
        let path = parts.root.path().to_owned();
        let room = Arc::new(move || free_mib(&path).ok());
        let wake = Wake::default();
        let audit = Arc::new(audit);
        let auditor = Arc::new(Auditor::new(audit.clone(), records.clone()));
        let slots = Arc::new(Slots::default());
        let health = Arc::new(Health::default());
        let pressure = HostPressure(parts.pressure.clone());
        let halted = Arc::new(Halted::new(parts.no_space_timeout, room));
        let short_id = parts.root.short_id();
        let links = Arc::new(Links::new(parts.network.clone(), records.clone(), short_id));
        let (root, images) = (parts.root.clone(), parts.images.clone());
        let hypervisor = parts.hypervisor.clone();
        let simulated = hypervisor.description().simulated;
        let caches = Caches::new(records.clone(), images.clone(), root.clone(), slots.clone());
        let caches = Arc::new(caches);
        let templates =
            Templates::new(root.clone(), hypervisor.clone(), records.clone(), wake.clone());
        let templates = Arc::new(templates);
        let transitions = Arc::new(Transitions::new(records.clone(), slots.clone()));
        let watch = Arc::new(MachineWatch::new(
            records.clone(),
            slots.clone(),
            transitions.clone(),
            halted.clone(),
            root.clone(),
            wake.clone(),
        ));
        let machines = Arc::new(Machines::new(
            root.clone(),
            hypervisor,
            links.clone(),
            Disks::new(root, images, caches.clone(), simulated),
            templates.clone(),
            watch,
        ));
        let recovery = Arc::new(Recovery::new(
            records.clone(),
            slots.clone(),
            transitions.clone(),
            machines.clone(),
            auditor.clone(),
            wake.clone(),
        ));
        let lingering = Lingering::new(records.clone(), slots.clone(), pressure.clone());
        let lingering = Arc::new(lingering);
        let instances = Arc::new(Instances::new(
            records.clone(),
            slots.clone(),
            transitions.clone(),
            machines,
            templates.clone(),
            lingering.clone(),
            recovery.clone(),
        ));
        let template_maker = Arc::new(TemplateMaker::new(
            records.clone(),
            instances.clone(),
            templates.clone(),
            health.clone(),
            auditor.clone(),
            wake.clone(),
        ));
        let guests = Guests::new(records.clone(), slots.clone(), transitions.clone(), wake.clone());
        let link_keeper = LinkKeeper::new(
            links.clone(),
            records.clone(),
            slots.clone(),
            transitions.clone(),
            wake.clone(),
        );
        Ok(Arc::new(Node {
            records,
            auditor,
            slots,
            health,
            pressure,
            halted,
            links,
            link_keeper: Arc::new(link_keeper),
            caches,
            templates,
            template_maker,
            transitions,
            lingering,
            recovery,
            instances,
            guests: Arc::new(guests),
            passes: Passes::default(),
            audit,
            jobs: Jobs::default(),
            builds: Builds::default(),
            pace: Pace::new(parts.image_rate),
            parts,
            started_at: now(),
            wake,
            stop: Notify::new(),
            desired: Convergence::default(),
            fleet: Fleet::default(),
            idle: Lock::default(),
            fronts: Fronts::default(),
            leases: LeaseHolders::new(),
        }))
    }
}
