//! The records of the node as of one moment.

use super::in_force::InForce;
use crate::error::{Missing, NodeError, PoolError};
use crate::{Error, Result};
use mvm_api::fleet::Leader;
use mvm_model::expose::Expose;
use mvm_model::{
    Instance, InstanceId, InstanceRef, Job, JobId, Mib, Name, Pool, PoolRef, Tenant, Usage,
};
use mvm_store::Store;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

/// The key of the record of the document in force.
pub(super) const DESIRED: &str = "desired";
/// The key of the record of the fleet's leader.
pub(super) const LEADER: &str = "leader";

/// All records of the node.
#[derive(Clone, Debug, Default)]
pub struct RecordSet {
    /// The tenants, by name.
    pub tenants: BTreeMap<Name, Tenant>,
    /// The pools, by reference.
    pub pools: BTreeMap<PoolRef, Pool>,
    /// The instances, by id.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// The jobs, by id.
    pub jobs: BTreeMap<JobId, Job>,
    /// The desired-state document in force; absent where there is none.
    pub desired: Option<InForce>,
    /// The leader of the fleet that the node belongs to; absent where there is none.
    pub leader: Option<Leader>,
    /// The fronts, by the address on which they listen.
    pub exposes: BTreeMap<SocketAddr, Expose>,
}

impl RecordSet {
    /// Reads all records from the store.
    pub async fn load(store: &dyn Store) -> Result<RecordSet> {
        let mut records = RecordSet::default();
        for tenant in read::<Tenant>(store, "tenants/").await? {
            records.tenants.insert(tenant.name.clone(), tenant);
        }
        for pool in read::<Pool>(store, "pools/").await? {
            records.pools.insert(pool.reference.clone(), pool);
        }
        for instance in read::<Instance>(store, "instances/").await? {
            records.instances.insert(instance.id, instance);
        }
        for job in read::<Job>(store, "jobs/").await? {
            records.jobs.insert(job.id, job);
        }
        records.desired = read::<InForce>(store, DESIRED).await?.pop();
        records.leader = read::<Leader>(store, LEADER).await?.pop();
        for expose in read::<Expose>(store, "exposes/").await? {
            records.exposes.insert(expose.listen, expose);
        }
        Ok(records)
    }

    /// Returns the tenant, or an error with a hint.
    pub fn tenant(&self, name: &Name) -> Result<&Tenant> {
        self.tenants.get(name).ok_or_else(|| Missing::Tenant(name.clone()).into())
    }

    /// Returns the pool, or an error that says what is missing.
    pub fn pool(&self, reference: &PoolRef) -> Result<&Pool> {
        self.tenant(&reference.tenant)?;
        self.pools.get(reference).ok_or_else(|| Missing::Pool(reference.clone()).into())
    }

    /// Returns the instance, or an error that says what is missing.
    pub fn instance(&self, reference: &InstanceRef) -> Result<&Instance> {
        self.pool(&reference.pool)?;
        let known = self.instances.get(&reference.id).filter(|i| i.pool == reference.pool);
        known.ok_or_else(|| Missing::Instance(reference.clone()).into())
    }

    /// Returns the instance with this id.
    pub fn by_id(&self, id: InstanceId) -> Result<&Instance> {
        self.instances.get(&id).ok_or_else(|| Missing::InstanceId(id).into())
    }

    /// Returns the job, or an error with a hint.
    pub fn job(&self, id: JobId) -> Result<&Job> {
        self.jobs.get(&id).ok_or_else(|| no_job(id))
    }

    /// Returns the jobs of one pool.
    pub fn jobs_of<'a>(&'a self, pool: &'a PoolRef) -> impl Iterator<Item = &'a Job> {
        self.jobs.values().filter(move |job| job.pool == *pool)
    }

    /// Returns the instances of one pool.
    pub fn of_pool<'a>(&'a self, pool: &'a PoolRef) -> impl Iterator<Item = &'a Instance> {
        self.instances.values().filter(move |instance| instance.pool == *pool)
    }

    /// Returns the instances of one tenant.
    pub fn of_tenant<'a>(&'a self, tenant: &'a Name) -> impl Iterator<Item = &'a Instance> {
        self.instances.values().filter(move |instance| instance.pool.tenant == *tenant)
    }

    /// Returns the tenant's usage of its quotas.
    pub fn usage(&self, tenant: &Name) -> Usage {
        let pools = self.pools.keys().filter(|pool| pool.tenant == *tenant).count() as u64;
        let mut usage = Usage::count(pools, self.of_tenant(tenant));
        let own = self.pools.values().filter(|pool| pool.reference.tenant == *tenant);
        // The pools' own cache disks count besides the copies of their instances.
        usage.disk_mib += own.map(|pool| mvm_model::cache::disk_mib(&pool.caches)).sum::<Mib>();
        let jobs = self.jobs.values().filter(|job| job.pool.tenant == *tenant);
        let kept = jobs.map(mvm_model::intake::kept).sum();
        usage.disk_mib += Mib::from_bytes_rounded_up(kept);
        usage
    }

    /// Returns the addresses of the tenant's instances.
    pub fn addresses(&self, tenant: &Name) -> BTreeSet<Ipv4Addr> {
        self.of_tenant(tenant).map(|instance| instance.address).collect()
    }
}

/// Returns the error that the job does not exist.
pub(crate) fn no_job(id: JobId) -> Error {
    Missing::Job(id).into()
}

/// Returns the error that the pool has no image to run.
pub(crate) fn not_built(pool: &PoolRef) -> Error {
    PoolError::NotBuilt(pool.clone()).into()
}

async fn read<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<T>> {
    let records = store.list(prefix).await?;
    records
        .into_iter()
        .map(|record| {
            serde_json::from_slice(&record.value)
                .map_err(|source| NodeError::RecordDamaged { key: record.key, source }.into())
        })
        .collect()
}
