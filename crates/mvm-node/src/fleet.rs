//! A node of a fleet: what it tells its coordinators, and what it does at the leader's word.

use crate::claims::leased;
use crate::clock::wall_of;
use crate::holders::is_claim;
use crate::lease_request::LeaseRequest;
use crate::locks::locked;
use crate::node::Node;
use crate::problem::OrProblem;
use crate::records::World;
use crate::{Result, now};
use mvm_api::Problem;
use mvm_api::fleet::{HeldClaim, Leader, NodeClaim, NodeDocument, RenewClaims};
use mvm_api::types::Claim;
use mvm_model::fleet::{Capacity, Labels, NodeStatus, PoolStatus};
use mvm_model::lease::Purpose;
use mvm_model::plan::ready;
use mvm_model::{Lease, Millis, Mover, Pool, PoolRef, State};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex as Lock};
use tokio::sync::Mutex;

/// How long what is on the disk counts as known.
const IMAGES_MS: Millis = 2000;

/// What a node says of itself, beside what it is found to hold.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// Its labels.
    pub labels: Labels,
    /// What it offers to instances; what the machine has where nothing is said.
    pub capacity: Option<Capacity>,
}

/// What is remembered of the fleet, in memory only.
pub(crate) struct Fleet {
    /// Held by whoever brings up a claim or ends it, by its id.
    claims: Lock<HashMap<String, Arc<Mutex<()>>>>,
    /// Content by digest, and when that was looked at.
    images: Lock<(Millis, BTreeMap<String, String>)>,
    hardware: Hardware,
}

impl Default for Fleet {
    fn default() -> Self {
        Fleet { claims: Lock::default(), images: Lock::default(), hardware: Hardware::found() }
    }
}

impl Fleet {
    /// Does something with a claim while nothing else is done with it.
    async fn alone_with<T>(&self, id: &str, work: impl Future<Output = T>) -> T {
        let gate = locked(&self.claims).entry(id.to_owned()).or_default().clone();
        let outcome = {
            let _alone = gate.lock().await;
            work.await
        };
        let mut gates = locked(&self.claims);
        // Ours and the map's: nobody waits.
        if Arc::strong_count(&gate) <= 2 {
            gates.remove(id);
        }
        outcome
    }
}

/// What the machine has.
struct Hardware {
    vcpus: u64,
    mem_mib: u64,
    cpu_model: String,
}

/// What this machine has for an agent whose state directory lies on the file system of `path`, which
/// must be there.
pub fn found_capacity(path: &Path) -> Capacity {
    Hardware::found().capacity(path)
}

impl Hardware {
    fn capacity(&self, path: &Path) -> Capacity {
        Capacity { vcpus: self.vcpus, mem_mib: self.mem_mib, disk_gib: disk_gib(path) }
    }

    fn found() -> Hardware {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (memory, cpu) = (read("/proc/meminfo"), read("/proc/cpuinfo"));
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
                .unwrap_or_default()
        };
        let kib = field(&memory, "MemTotal");
        let kib: u64 = kib.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let vcpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        Hardware { vcpus, mem_mib: kib / 1024, cpu_model: field(&cpu, "model name") }
    }
}

impl Node {
    /// What the node says of itself.
    pub(crate) async fn fleet_status(&self) -> Result<NodeStatus> {
        let desired = self.desired_status().await;
        let images = self.images_on_disk()?;
        let (pools, document) = self.records.read(|world| {
            let mut jobs: BTreeMap<&PoolRef, (u32, u32)> = BTreeMap::new();
            for job in world.jobs.values() {
                let (all, open) = jobs.entry(&job.pool).or_default();
                (*all, *open) = (*all + 1, *open + u32::from(!job.state.has_ended()));
            }
            let pools = world.pools.values();
            let told = |pool: &Pool| {
                let status = self.pool_status(world, pool, &images);
                let (jobs, open_jobs) = jobs.get(&pool.reference).copied().unwrap_or_default();
                (pool.reference.clone(), PoolStatus { jobs, open_jobs, ..status })
            };
            let digest =
                world.desired.as_ref().and_then(|d| Some(d.fleet.as_ref()?.digest.clone()));
            (pools.map(told).collect(), digest)
        });
        Ok(NodeStatus {
            node_id: self.node_id()?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: self.capacity(),
            labels: self.parts.offer.labels.clone(),
            cpu_model: self.fleet.hardware.cpu_model.clone(),
            simulated: self.parts.hypervisor.description().simulated,
            images: images.keys().cloned().collect(),
            pools,
            document,
            pending: u32::try_from(desired.pending.len()).unwrap_or(u32::MAX),
            failure: desired.last_failure,
            failure_code: desired.last_failure_code,
            newest_event: self.records.newest_event(),
        })
    }

    fn pool_status(
        &self,
        world: &crate::records::World,
        pool: &Pool,
        images: &BTreeMap<String, String>,
    ) -> PoolStatus {
        let revision = pool.current_revision().map(|revision| revision.digest.clone());
        let mut status = PoolStatus {
            ready: ready(pool, world.of_pool(&pool.reference)),
            template: self.templates.of_pool(pool).is_some(),
            content: (revision.as_ref().and_then(|digest| images.get(digest).cloned()))
                .filter(|content| !content.is_empty()),
            revision,
            failure: self.health.of(&pool.reference).last_failure,
            ..PoolStatus::default()
        };
        for instance in world.of_pool(&pool.reference) {
            status.instances += 1;
            status.leased += u32::from(instance.lease.is_some());
            status.failed += u32::from(instance.lease.is_none() && instance.state == State::Failed);
        }
        status
    }

    /// What the host offers to instances.
    pub(crate) fn capacity(&self) -> Capacity {
        let found = || self.fleet.hardware.capacity(self.parts.root.path());
        self.parts.offer.capacity.unwrap_or_else(found)
    }

    /// There are others than a moment ago: the next status says so.
    pub(crate) fn look_for_images(&self) {
        locked(&self.fleet.images).0 = 0;
    }

    /// The images that are here: what each is, by its digest.
    fn images_on_disk(&self) -> Result<BTreeMap<String, String>> {
        let mut known = locked(&self.fleet.images);
        let now = now();
        if now >= known.0 + IMAGES_MS {
            let images = self.parts.images.list().or_problem()?;
            *known = (
                now,
                images.into_iter().map(|image| (image.digest.clone(), image.content())).collect(),
            );
        }
        Ok(known.1.clone())
    }

    /// Obeys this leader from now on; refuses one that is not the newest.
    pub(crate) async fn obey(&self, leader: &Leader) -> Result<()> {
        let check = |known: Option<&Leader>| match known {
            Some(known) if known.fleet_id != leader.fleet_id => {
                let (ours, theirs) = (&known.fleet_id, &leader.fleet_id);
                let detail = format!("this node belongs to fleet {ours}, not to {theirs}");
                Err(Problem::new(409, "other_fleet", detail)
                    .hint("give it a state directory of its own"))
            }
            Some(known) if known.epoch > leader.epoch => {
                let detail = format!("leader {} is succeeded by {}", leader.epoch, known.epoch);
                Err(Problem::new(409, "stale_leader", detail))
            }
            Some(known) => Ok(known.epoch == leader.epoch),
            None => Ok(false),
        };
        if self.records.read(|world| check(world.leader.as_ref()))? {
            return Ok(());
        }
        self.records
            .change(|world, changes| {
                if !check(world.leader.as_ref())? {
                    changes.put_leader(leader.clone());
                }
                Ok(())
            })
            .await
    }

    /// Belongs to no fleet any more, until another one's leader comes. What the node holds stays.
    pub(crate) async fn leave_fleet(&self) -> Result<()> {
        self.records
            .change(|world, changes| {
                if world.leader.is_some() {
                    changes.remove_leader();
                }
                if world.desired.as_ref().is_some_and(|desired| desired.fleet.is_some()) {
                    changes.remove_desired();
                }
                Ok(())
            })
            .await
    }

    /// Puts the fleet's document in force.
    pub(crate) async fn take_document(&self, body: NodeDocument) -> Result<()> {
        body.document.validate()?;
        self.obey(&body.leader).await?;
        self.apply_of_fleet(body.document, &body.digest).await
    }

    /// An instance for a claim of the fleet, always the same one for the same id.
    pub(crate) async fn fleet_claim(self: &Arc<Self>, id: &str, body: NodeClaim) -> Result<Claim> {
        check_id(id)?;
        self.obey(&body.leader).await?;
        self.fleet.alone_with(id, self.fleet_claim_alone(id, &body)).await
    }

    async fn fleet_claim_alone(self: &Arc<Self>, id: &str, body: &NodeClaim) -> Result<Claim> {
        let began = std::time::Instant::now();
        let known = self.records.read(|world| leased(world, id).ok().cloned());
        let (instance, from) = match known {
            Some(known) => {
                let by = Mover::Lease(id.to_owned());
                let from = self.instances.bring(known.id, State::Running, &by).await?;
                (self.records.read(|world| world.by_id(known.id).cloned())?, from)
            }
            None => {
                let (holder, lease_s) = (body.holder.clone(), body.lease_s);
                let wish = LeaseRequest { holder, purpose: Purpose::Run, lease_s };
                self.claim_as(&body.pool, &wish, Some(id)).await?
            }
        };
        let gone = || Problem::new(409, "lease_ended", format!("the lease {id} has ended"));
        let reference = instance.reference();
        let lease = instance.lease.filter(|lease| lease.id == id).ok_or_else(gone)?;
        let took_ms = began.elapsed().as_secs_f64() * 1000.0;
        let way_up = instance.way_up.filter(|_| from != State::Running);
        Ok(Claim { reference, from, way_up, took_ms, lease: self.leases.shown(&lease) })
    }

    /// The leader says that the holders of these claims are there. Gives those that have no lease here.
    pub(crate) async fn fleet_renew(&self, claims: &RenewClaims) -> Result<Vec<String>> {
        self.obey(&claims.leader).await?;
        let gone = |world: &World| {
            let gone = claims.claims.iter().filter(|id| leased(world, id).is_err());
            gone.cloned().collect::<Vec<_>>()
        };
        let gone = self.records.read(gone);
        claims.claims.iter().filter(|id| !gone.contains(id)).for_each(|id| self.leases.renew(id));
        Ok(gone)
    }

    /// Another leader answers for the fleet's claims from now on, and has the time that it takes their
    /// clients to come to it.
    pub(crate) async fn fleet_led(&self, leader: &Leader) -> Result<Vec<HeldClaim>> {
        self.obey(leader).await?;
        let held = self.fleet_claims().await;
        held.iter().for_each(|claim| self.leases.renew(&claim.id));
        Ok(held)
    }

    /// Ends a claim of the fleet; one that is not there has ended. One that is being brought up is
    /// ended when it is up: a leader that hears that it has ended may give it to another node.
    pub(crate) async fn fleet_release(self: &Arc<Self>, id: &str, leader: &Leader) -> Result<()> {
        self.obey(leader).await?;
        self.fleet.alone_with(id, self.fleet_release_alone(id)).await
    }

    async fn fleet_release_alone(self: &Arc<Self>, id: &str) -> Result<()> {
        if let Ok(instance) = self.records.read(|world| leased(world, id).map(|i| i.id)) {
            self.end_lease(instance).await;
        }
        match self.records.read(|world| leased(world, id).is_ok()) {
            false => Ok(()),
            // The coordinator asks again.
            true => Err(Problem::new(409, "in_use", format!("the lease {id} could not be ended"))
                .hint("the agent's log says why; it is tried again")),
        }
    }

    /// The claims of the fleet that have a lease here.
    pub(crate) async fn fleet_claims(&self) -> Vec<HeldClaim> {
        let held = |lease: &Lease, instance| HeldClaim {
            id: lease.id.clone(),
            instance,
            expires_at: wall_of(self.leases.ends_at(lease)),
        };
        self.records.read(|world| {
            let leased = world.instances.values().filter_map(|i| Some((i.lease.as_ref()?, i)));
            let ours = leased.filter(|(lease, _)| is_claim(&lease.id));
            ours.map(|(lease, instance)| held(lease, instance.reference())).collect()
        })
    }
}

fn check_id(id: &str) -> Result<()> {
    if is_claim(id) {
        return Ok(());
    }
    let shown: String = id.chars().take(80).collect();
    Err(Problem::new(400, "invalid_value", format!("{shown:?} is no id of a fleet's claim"))
        .hint("it is l- and 16 hexadecimal digits"))
}

/// The size of the file system that a path is on, in GiB.
fn disk_gib(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| (stat.f_blocks * stat.f_frsize) >> 30)
}
