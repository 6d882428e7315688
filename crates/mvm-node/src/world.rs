//! What the node knows, in memory and in its store: every change is durable before it is visible.

use crate::Result;
use crate::desired::InForce;
use crate::events::{self, EventLog};
use crate::problem::{OrProblem, not_found};
use mvm_api::Problem;
use mvm_api::fleet::Leader;
use mvm_model::event::{self, Event};
use mvm_model::expose::Expose;
use mvm_model::{
    Instance, InstanceId, InstanceRef, Job, JobId, Name, Pool, PoolRef, Tenant, Usage,
};
use mvm_store::{Expect, Store, Write};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

/// The record of the document in force.
const DESIRED: &str = "desired";
/// The record of the fleet's leader.
const LEADER: &str = "leader";

/// All records of the node.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// By name.
    pub tenants: BTreeMap<Name, Tenant>,
    /// By reference.
    pub pools: BTreeMap<PoolRef, Pool>,
    /// By id.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// By id.
    pub jobs: BTreeMap<JobId, Job>,
    /// The document of desired state in force.
    pub desired: Option<InForce>,
    /// The leader of the fleet that the node obeys.
    pub leader: Option<Leader>,
    /// The fronts, by where they listen.
    pub exposes: BTreeMap<SocketAddr, Expose>,
}

impl World {
    /// Reads everything from the store.
    pub async fn load(store: &dyn Store) -> Result<World> {
        let mut world = World::default();
        for tenant in read::<Tenant>(store, "tenants/").await? {
            world.tenants.insert(tenant.name.clone(), tenant);
        }
        for pool in read::<Pool>(store, "pools/").await? {
            world.pools.insert(pool.reference.clone(), pool);
        }
        for instance in read::<Instance>(store, "instances/").await? {
            world.instances.insert(instance.id, instance);
        }
        for job in read::<Job>(store, "jobs/").await? {
            world.jobs.insert(job.id, job);
        }
        world.desired = read::<InForce>(store, DESIRED).await?.pop();
        world.leader = read::<Leader>(store, LEADER).await?.pop();
        for expose in read::<Expose>(store, "exposes/").await? {
            world.exposes.insert(expose.listen, expose);
        }
        Ok(world)
    }

    /// The tenant, or a problem that says how to see which there are.
    pub fn tenant(&self, name: &Name) -> Result<&Tenant> {
        self.tenants.get(name).ok_or_else(|| {
            not_found(format!("tenant {name}"), "see the tenants with `mvm tenant list`")
        })
    }

    /// The pool, or a problem that says what is missing.
    pub fn pool(&self, reference: &PoolRef) -> Result<&Pool> {
        self.tenant(&reference.tenant)?;
        self.pools.get(reference).ok_or_else(|| {
            not_found(format!("pool {reference}"), "see the pools with `mvm pool list`")
        })
    }

    /// The instance, or a problem that says what is missing.
    pub fn instance(&self, reference: &InstanceRef) -> Result<&Instance> {
        self.pool(&reference.pool)?;
        self.instances.get(&reference.id).filter(|i| i.pool == reference.pool).ok_or_else(|| {
            not_found(format!("instance {reference}"), "see the instances with `mvm instance list`")
        })
    }

    /// The instance by its id alone.
    pub fn by_id(&self, id: InstanceId) -> Result<&Instance> {
        self.instances.get(&id).ok_or_else(|| {
            not_found(format!("instance {id} any more"), "it was destroyed in the meantime")
        })
    }

    /// The job, or a problem that says how to see which there are.
    pub fn job(&self, id: JobId) -> Result<&Job> {
        self.jobs.get(&id).ok_or_else(|| no_job(id))
    }

    /// The jobs of one pool.
    pub fn jobs_of<'a>(&'a self, pool: &'a PoolRef) -> impl Iterator<Item = &'a Job> {
        self.jobs.values().filter(move |job| job.pool == *pool)
    }

    /// The instances of one pool.
    pub fn of_pool<'a>(&'a self, pool: &'a PoolRef) -> impl Iterator<Item = &'a Instance> {
        self.instances.values().filter(move |instance| instance.pool == *pool)
    }

    /// The instances of one tenant.
    pub fn of_tenant<'a>(&'a self, tenant: &'a Name) -> impl Iterator<Item = &'a Instance> {
        self.instances.values().filter(move |instance| instance.pool.tenant == *tenant)
    }

    /// What the tenant uses.
    pub fn usage(&self, tenant: &Name) -> Usage {
        let pools = self.pools.keys().filter(|pool| pool.tenant == *tenant).count() as u64;
        let mut usage = Usage::count(pools, self.of_tenant(tenant));
        let own = self.pools.values().filter(|pool| pool.reference.tenant == *tenant);
        // The pools' own disks, beside their instances' copies.
        usage.disk_mib += own.map(|pool| mvm_model::cache::disk_mib(&pool.caches)).sum::<u64>();
        let jobs = self.jobs.values().filter(|job| job.pool.tenant == *tenant);
        usage.disk_mib += jobs.map(mvm_model::intake::kept).sum::<u64>().div_ceil(1 << 20);
        usage
    }

    /// The addresses that the tenant's instances have.
    pub fn addresses(&self, tenant: &Name) -> BTreeSet<Ipv4Addr> {
        self.of_tenant(tenant).map(|instance| instance.address).collect()
    }
}

/// There is no such job.
pub(crate) fn no_job(id: JobId) -> Problem {
    not_found(format!("job {id}"), "see the jobs with `mvm job list`")
}

async fn read<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<T>> {
    let records = store.list(prefix).await.or_problem()?;
    records
        .into_iter()
        .map(|record| {
            serde_json::from_slice(&record.value).map_err(|cause| {
                Problem::new(
                    500,
                    "record_damaged",
                    format!("the record {} cannot be read: {cause}", record.key),
                )
            })
        })
        .collect()
}

/// One change of the records in memory, once it is durable.
type Change = Box<dyn FnOnce(&mut World) + Send>;

/// Changes that belong together: all of them become durable, or none.
#[derive(Default)]
pub struct Changes {
    writes: Vec<Write>,
    /// As they will be; absent: gone.
    instances: Vec<(InstanceId, Option<Instance>)>,
    /// What is told beside the changes of instances.
    told: Vec<Event>,
    /// All others.
    apply: Vec<Change>,
}

impl Changes {
    /// Makes or replaces a tenant.
    pub fn put_tenant(&mut self, tenant: Tenant) {
        self.put(format!("tenants/{}", tenant.name), &tenant);
        self.apply.push(Box::new(move |world| {
            world.tenants.insert(tenant.name.clone(), tenant);
        }));
    }

    /// Removes a tenant.
    pub fn remove_tenant(&mut self, name: Name) {
        self.delete(format!("tenants/{name}"));
        self.apply.push(Box::new(move |world| {
            world.tenants.remove(&name);
        }));
    }

    /// Makes or replaces a pool.
    pub fn put_pool(&mut self, pool: Pool) {
        self.put(format!("pools/{}", pool.reference), &pool);
        self.apply.push(Box::new(move |world| {
            world.pools.insert(pool.reference.clone(), pool);
        }));
    }

    /// Removes a pool.
    pub fn remove_pool(&mut self, reference: PoolRef) {
        self.delete(format!("pools/{reference}"));
        self.apply.push(Box::new(move |world| {
            world.pools.remove(&reference);
        }));
    }

    /// Makes or replaces an instance.
    pub fn put_instance(&mut self, instance: Instance) {
        self.put(format!("instances/{}", instance.id), &instance);
        self.instances.push((instance.id, Some(instance)));
    }

    /// Removes an instance.
    pub fn remove_instance(&mut self, id: InstanceId) {
        self.delete(format!("instances/{id}"));
        self.instances.push((id, None));
    }

    /// Writes an event that no record changes with; it gets its number here.
    pub fn tell(&mut self, event: Event) {
        self.told.push(event);
    }

    /// Makes or replaces a job.
    pub fn put_job(&mut self, job: Job) {
        self.put(format!("jobs/{}", job.id), &job);
        self.apply.push(Box::new(move |world| {
            world.jobs.insert(job.id, job);
        }));
    }

    /// Forgets a job.
    pub fn remove_job(&mut self, id: JobId) {
        self.delete(format!("jobs/{id}"));
        self.apply.push(Box::new(move |world| {
            world.jobs.remove(&id);
        }));
    }

    /// Whether nothing is to change.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.told.is_empty()
    }

    /// Puts a document of desired state in force.
    pub fn put_desired(&mut self, desired: InForce) {
        self.put(DESIRED.to_owned(), &desired);
        self.apply.push(Box::new(move |world| world.desired = Some(desired)));
    }

    /// Obeys this leader of a fleet from now on.
    pub fn put_leader(&mut self, leader: Leader) {
        self.put(LEADER.to_owned(), &leader);
        self.apply.push(Box::new(move |world| world.leader = Some(leader)));
    }

    /// Obeys no leader any more.
    pub fn remove_leader(&mut self) {
        self.delete(LEADER.to_owned());
        self.apply.push(Box::new(move |world| world.leader = None));
    }

    /// No document is in force any more.
    pub fn remove_desired(&mut self) {
        self.delete(DESIRED.to_owned());
        self.apply.push(Box::new(move |world| world.desired = None));
    }

    /// Makes or replaces a front.
    pub fn put_expose(&mut self, expose: Expose) {
        self.put(format!("exposes/{}", expose.listen), &expose);
        self.apply.push(Box::new(move |world| {
            world.exposes.insert(expose.listen, expose);
        }));
    }

    /// Removes a front.
    pub fn remove_expose(&mut self, listen: SocketAddr) {
        self.delete(format!("exposes/{listen}"));
        self.apply.push(Box::new(move |world| {
            world.exposes.remove(&listen);
        }));
    }

    /// Makes the changes durable together with the events that tell of them, then visible; whether
    /// there were any.
    pub async fn commit(
        mut self,
        store: &dyn Store,
        world: &mut World,
        log: &EventLog,
    ) -> Result<bool> {
        if self.is_empty() {
            return Ok(false);
        }
        let mut events = events::of_changes(world, &self.instances, log.next_id(), crate::now());
        for event in std::mem::take(&mut self.told) {
            let id = log.next_id() + events.len() as u64;
            events.push(Event { id, ..event });
        }
        for event in &events {
            self.put(events::key(event.id), event);
            if let Some(old) = event.id.checked_sub(event::KEPT) {
                self.delete(events::key(old));
            }
        }
        store.commit(self.writes).await.or_problem()?;
        for change in self.apply {
            change(world);
        }
        for (id, instance) in self.instances {
            match instance {
                Some(instance) => world.instances.insert(id, instance),
                None => world.instances.remove(&id),
            };
        }
        log.publish(events);
        Ok(true)
    }

    fn put(&mut self, key: String, value: &impl Serialize) {
        // Records are plain structs of strings and numbers: their serialisation cannot fail.
        let value = serde_json::to_vec(value).unwrap_or_default();
        self.writes.push(Write::Put { key, value, expect: Expect::Any });
    }

    fn delete(&mut self, key: String) {
        self.writes.push(Write::Delete { key, expect: Expect::Any });
    }
}
