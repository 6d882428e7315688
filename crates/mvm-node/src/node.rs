//! The node: its parts, and the one door through which its records change.

use crate::audit::Audit;
use crate::builds::Builds;
use crate::desired::Convergence;
use crate::disk::free_mib;
use crate::expose::Fronts;
use crate::fleet::{Fleet, Offer};
use crate::halted::Halted;
use crate::holders::LeaseHolders;
use crate::jobs::Jobs;
use crate::liveness::Guests;
use crate::locks::locked;
use crate::problem::OrProblem;
use crate::reconcile::Passes;
use crate::records::Records;
use crate::renewal::Renewals;
use crate::slot::Slot;
use crate::stages::Stages;
use crate::state_dir::StateDir;
use crate::transfer::Pace;
use crate::wake::Wake;
use crate::{Result, now};
use mvm_api::Problem;
use mvm_api::tls::Keeper;
use mvm_hypervisor::Hypervisor;
use mvm_image::ImageStore;
use mvm_model::plan::Failures;
use mvm_model::policy::Idle;
use mvm_model::{InstanceId, Millis, Name, PoolRef};
use mvm_network::Network;
use mvm_store::Store;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;
use tokio::sync::{Mutex, Notify};

/// What the reconciler remembers of a pool, in memory only.
#[derive(Clone, Debug, Default)]
pub struct PoolHealth {
    /// For the back-off.
    pub failures: Failures,
    /// What failed last.
    pub last_failure: Option<String>,
}

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
    pub network: Network,
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
    /// Serialises changes of links and firewall.
    pub(crate) wires: Mutex<()>,
    /// Serialises changes of pools' caches.
    pub(crate) cache_turn: Mutex<()>,
    /// Held by whoever makes a pool's template.
    moulds: Lock<HashMap<PoolRef, Arc<Mutex<()>>>>,
    /// What the document in force comes to.
    pub(crate) desired: Convergence,
    pub(crate) records: Arc<Records>,
    pub(crate) fleet: Fleet,
    pub(crate) passes: Passes,
    pub(crate) renewals: Renewals,
    pub(crate) audit: Arc<Audit>,
    /// Guests that are watched.
    pub(crate) guests: Guests,
    pub(crate) jobs: Jobs,
    pub(crate) builds: Builds,
    /// Machines that their hypervisor has paused by itself.
    pub(crate) halted: Halted,
    /// Holds back images that leave.
    pub(crate) pace: Pace,
    slots: Lock<HashMap<InstanceId, Arc<Slot>>>,
    health: Lock<BTreeMap<PoolRef, PoolHealth>>,
    pub(crate) idle: Lock<HashMap<InstanceId, Idle>>,
    /// Sleeping instances whose process may still be there.
    pub(crate) lingering: Lock<BTreeSet<InstanceId>>,
    /// Pools behind ports.
    pub(crate) fronts: Fronts,
    /// Whose last operation failed, and may have left record and reality apart.
    unsettled: Lock<BTreeSet<InstanceId>>,
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
        Ok(Arc::new(Node {
            records,
            passes: Passes::default(),
            renewals: Renewals::default(),
            audit: Arc::new(audit),
            guests: Guests::default(),
            jobs: Jobs::default(),
            builds: Builds::default(),
            halted: Halted::new(parts.no_space_timeout, room),
            pace: Pace::new(parts.image_rate),
            parts,
            started_at: now(),
            wake: Wake::default(),
            stop: Notify::new(),
            wires: Mutex::new(()),
            cache_turn: Mutex::new(()),
            moulds: Lock::default(),
            desired: Convergence::default(),
            fleet: Fleet::default(),
            slots: Lock::default(),
            health: Lock::default(),
            idle: Lock::default(),
            lingering: Lock::default(),
            fronts: Fronts::default(),
            unsettled: Lock::default(),
            leases: LeaseHolders::new(),
        }))
    }

    /// The slot of an instance.
    pub fn slot(&self, id: InstanceId) -> Arc<Slot> {
        locked(&self.slots).entry(id).or_default().clone()
    }

    /// Forgets the slot of an instance that is gone.
    pub fn forget(&self, id: InstanceId) {
        locked(&self.slots).remove(&id);
        locked(&self.lingering).remove(&id);
        self.halted.forget(id);
    }

    /// An operation on the instance has failed: before the next one, and by the reconcile loop, it
    /// is looked at whether record and reality are one.
    pub(crate) fn unsettle(&self, id: InstanceId) {
        locked(&self.unsettled).insert(id);
    }

    /// Those that are to be looked at.
    pub(crate) fn unsettled(&self) -> BTreeSet<InstanceId> {
        locked(&self.unsettled).clone()
    }

    /// It was looked at, and all is well.
    pub(crate) fn settled(&self, id: InstanceId) {
        locked(&self.unsettled).remove(&id);
    }

    /// Whether it is one of them.
    pub(crate) fn is_unsettled(&self, id: InstanceId) -> bool {
        locked(&self.unsettled).contains(&id)
    }

    /// What serialises the making of a pool's template.
    pub(crate) fn mould(&self, pool: &PoolRef) -> Arc<Mutex<()>> {
        locked(&self.moulds).entry(pool.clone()).or_default().clone()
    }

    /// What the reconciler remembers of a pool.
    pub fn health(&self, pool: &PoolRef) -> PoolHealth {
        locked(&self.health).get(pool).cloned().unwrap_or_default()
    }

    /// Bringing up an instance of the pool worked.
    pub fn succeeded(&self, pool: &PoolRef) {
        locked(&self.health).remove(pool);
    }

    /// Bringing up an instance of the pool failed.
    pub fn failed(&self, pool: &PoolRef, why: &Problem) {
        tracing::warn!(pool = %pool, code = why.code, "{why}");
        let mut health = locked(&self.health);
        let entry = health.entry(pool.clone()).or_default();
        entry.failures.count += 1;
        entry.failures.last = now();
        entry.last_failure = Some(why.to_string());
    }

    /// The revision with this digest.
    pub fn image(&self, digest: &str) -> Result<mvm_image::Revision> {
        self.parts.images.get(digest).or_problem()
    }
}
