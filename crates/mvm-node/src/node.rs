//! The node: its parts, and the one door through which its records change.

use crate::audit::{Audit, Auditor};
use crate::caches::Caches;
use crate::catalog::Catalog;
use crate::desired::Desired;
use crate::expose::Exposes;
use crate::fleet::Fleet;
use crate::fleet_status::FleetStatus;
use crate::health::Health;
use crate::holders::LeaseHolders;
use crate::host::{Host, Offer};
use crate::idle::IdleTimes;
use crate::images::Images;
use crate::instance_views::InstanceViews;
use crate::instances::{
    Disks, Guests, Halted, Instances, Lingering, LinkKeeper, MachineWatch, Machines, Recovery,
    Slots, Transitions, free_mib,
};
use crate::jobs::{Dispatcher, Jobs};
use crate::leases::Leases;
use crate::links::Links;
use crate::passes::Passes;
use crate::pool_builder::PoolBuilder;
use crate::pool_removal::PoolRemoval;
use crate::pool_views::PoolViews;
use crate::pressure::HostPressure;
use crate::records::Records;
use crate::spares::Spares;
use crate::stages::Stages;
use crate::state_dir::StateDir;
use crate::template_maker::TemplateMaker;
use crate::templates::Templates;
use crate::tenants::Tenants;
use crate::transfer::{Pace, Transfer};
use crate::wake::Wake;
use crate::{Result, now};
use mvm_hypervisor::Hypervisor;
use mvm_identity::tls::Keeper;
use mvm_image::ImageStore;
use mvm_model::{Millis, Name};
use mvm_network::Network;
use mvm_store::Store;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
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
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) builder: Arc<PoolBuilder>,
    pub(crate) removal: Arc<PoolRemoval>,
    pub(crate) desired: Arc<Desired>,
    pub(crate) host: Arc<Host>,
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
    pub(crate) fleet_status: FleetStatus,
    pub(crate) passes: Passes,
    pub(crate) audit: Arc<Audit>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) transfer: Arc<Transfer>,
    pub(crate) idle: Arc<IdleTimes>,
    pub(crate) pool_views: PoolViews,
    pub(crate) instance_views: InstanceViews,
    pub(crate) exposes: Arc<Exposes>,
    /// What is known of leases beside their records.
    pub(crate) holders: Arc<LeaseHolders>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) spares: Arc<Spares>,
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
        let holders = LeaseHolders::new();
        let leases = Arc::new(Leases::new(
            records.clone(),
            instances.clone(),
            caches.clone(),
            slots.clone(),
            holders.clone(),
            auditor.clone(),
            wake.clone(),
        ));
        let spares =
            Spares::new(records.clone(), slots.clone(), instances.clone(), auditor.clone());
        let spares = Arc::new(spares);
        let jobs = Jobs::new(records.clone(), parts.root.clone(), parts.disk_reserve_mib);
        let jobs = Arc::new(jobs);
        let dispatcher = Dispatcher::new(
            jobs.clone(),
            records.clone(),
            instances.clone(),
            leases.clone(),
            caches.clone(),
            auditor.clone(),
            wake.clone(),
        );
        let exposes = Arc::new(Exposes::new(
            records.clone(),
            instances.clone(),
            leases.clone(),
            spares.clone(),
            auditor.clone(),
            wake.clone(),
        ));
        let idle = Arc::new(IdleTimes::new(records.clone(), slots.clone(), links.clone()));
        let pace = Pace::new(parts.image_rate);
        let transfer = Transfer::new(parts.images.clone(), parts.keeper.clone(), pace);
        let transfer = Arc::new(transfer);
        let driver = parts.hypervisor.description();
        let host = Arc::new(Host::new(
            parts.node_id.clone(),
            parts.offer.clone(),
            driver,
            parts.accelerator_reason.clone(),
            parts.root.path(),
        ));
        let images = Arc::new(Images::new(parts.images.clone()));
        let tenants =
            Tenants::new(records.clone(), links.clone(), parts.root.clone(), wake.clone());
        let tenants = Arc::new(tenants);
        let catalog = Arc::new(Catalog::new(
            records.clone(),
            links.clone(),
            images.clone(),
            caches.clone(),
            health.clone(),
            host.clone(),
            wake.clone(),
        ));
        let builder = Arc::new(PoolBuilder::new(
            records.clone(),
            images.clone(),
            transfer.clone(),
            template_maker.clone(),
            health.clone(),
            wake.clone(),
        ));
        let removal = Arc::new(PoolRemoval::new(
            records.clone(),
            exposes.clone(),
            jobs.clone(),
            instances.clone(),
            caches.clone(),
            wake.clone(),
        ));
        let desired = Arc::new(Desired::new(
            records.clone(),
            tenants.clone(),
            catalog.clone(),
            builder.clone(),
            removal.clone(),
            host.clone(),
            auditor.clone(),
        ));
        let fleet = Fleet::new(
            records.clone(),
            instances.clone(),
            leases.clone(),
            holders.clone(),
            desired.clone(),
        );
        let pool_views = PoolViews::new(
            records.clone(),
            links.clone(),
            images.clone(),
            builder.clone(),
            templates.clone(),
            health.clone(),
        );
        let instance_views = InstanceViews {
            records: records.clone(),
            slots: slots.clone(),
            links: links.clone(),
            halted: halted.clone(),
            idle: idle.clone(),
            holders: holders.clone(),
            state_dir: parts.root.clone(),
            simulated,
        };
        let fleet_status = FleetStatus::new(
            records.clone(),
            desired.clone(),
            images,
            host.clone(),
            templates.clone(),
            health.clone(),
        );
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
            jobs,
            dispatcher: Arc::new(dispatcher),
            transfer,
            parts,
            started_at: now(),
            wake,
            stop: Notify::new(),
            tenants,
            catalog,
            builder,
            removal,
            desired,
            host,
            fleet,
            fleet_status,
            idle,
            pool_views,
            instance_views,
            exposes,
            holders,
            leases,
            spares,
        }))
    }
}
