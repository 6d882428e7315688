//! The pools: creates and changes them.

use crate::caches::Caches;
use crate::error::PoolError;
use crate::health::Health;
use crate::host::Host;
use crate::images::Images;
use crate::links::Links;
use crate::records::{RecordSet, Records, not_built};
use crate::wake::Wake;
use crate::{Error, Result};
use ipnet::Ipv4Net;
use mvm_api::types::{CreatePool, ScalePool, UpdatePool};
use mvm_model::admission::{admit_counts, admit_machine, admit_pool};
use mvm_model::cache::disk_mib;
use mvm_model::desired::{settled, source};
use mvm_model::pool::RevisionEntry;
use mvm_model::{Counts, CpuModel, Name, Pool, PoolRef};
use std::sync::Arc;

/// The pools of the node.
pub(crate) struct Catalog {
    records: Arc<Records>,
    links: Arc<Links>,
    images: Arc<Images>,
    caches: Arc<Caches>,
    health: Arc<Health>,
    host: Arc<Host>,
    wake: Wake,
}

impl Catalog {
    /// Makes the service for the pools of these records.
    pub(crate) fn new(
        records: Arc<Records>,
        links: Arc<Links>,
        images: Arc<Images>,
        caches: Arc<Caches>,
        health: Arc<Health>,
        host: Arc<Host>,
        wake: Wake,
    ) -> Catalog {
        Catalog { records, links, images, caches, health, host, wake }
    }

    /// Creates a pool. An equal pool that exists is left as it is.
    pub async fn create(&self, tenant: &Name, wanted: CreatePool) -> Result<()> {
        wanted.resources.validate()?;
        self.host.admit_shape(&wanted.resources)?;
        wanted.runtime_policy.validate()?;
        wanted.egress.validate()?;
        source(&wanted.flake_ref, &wanted.profile, "$")?;
        settled(&wanted.flake_ref, "$.flake_ref")?;
        let caches = mvm_model::cache::change(&[], wanted.caches)?;
        let reference = PoolRef { tenant: tenant.clone(), pool: wanted.name };
        crate::audit::note_target(&reference);
        self.admit_cpu_model(&reference, &wanted.cpu_model).await?;
        let kernel = match &wanted.kernel {
            Some(name) => Some(self.images.store().kernel(name)?.digest),
            None => None,
        };
        self.records
            .change(|records, changes| {
                let owner = records.tenant(tenant)?;
                wanted.egress.admit(subnets_but(records, tenant))?;
                let pool = Pool {
                    reference: reference.clone(),
                    flake_ref: wanted.flake_ref,
                    profile: wanted.profile,
                    override_inputs: wanted.override_inputs,
                    stale: false,
                    kernel,
                    resources: wanted.resources,
                    caches,
                    desired: None,
                    recycle: wanted.recycle,
                    cpu_model: wanted.cpu_model,
                    prewarm: wanted.prewarm.filter(|command| !command.is_empty()),
                    runtime_policy: wanted.runtime_policy,
                    egress: wanted.egress,
                    revisions: Vec::new(),
                    current: None,
                    created_at: self.records.clock().wall(),
                };
                if let Some(known) = records.pools.get(&reference) {
                    let same = known.flake_ref == pool.flake_ref
                        && known.profile == pool.profile
                        && known.resources == pool.resources
                        && mvm_model::cache::same(&known.caches, &pool.caches)
                        && known.recycle == pool.recycle
                        && known.cpu_model == pool.cpu_model
                        && known.prewarm == pool.prewarm
                        && known.runtime_policy == pool.runtime_policy
                        && known.egress == pool.egress
                        && (pool.override_inputs.is_empty()
                            || known.override_inputs == pool.override_inputs)
                        && known.kernel == pool.kernel;
                    return match same {
                        true => Ok(()),
                        false => Err(PoolError::PoolExists(reference).into()),
                    };
                }
                admit_pool(tenant, &owner.quotas, &records.usage(tenant))?;
                if !has_part_of_quotas(records, tenant) {
                    let caches = disk_mib(&pool.caches);
                    admit_machine(tenant, &owner.quotas, &pool.resources, caches)?;
                }
                changes.put_pool(pool);
                Ok(())
            })
            .await
    }

    /// Changes a pool. Leased instances keep their resources; idle ones are replaced.
    pub async fn update(&self, reference: &PoolRef, patch: UpdatePool) -> Result<()> {
        if let Some(flake) = &patch.flake_ref {
            settled(flake, "$.flake_ref")?;
        }
        if let Some(model) = &patch.cpu_model {
            self.admit_cpu_model(reference, model).await?;
        }
        let walls = patch.egress.is_some();
        self.records
            .change(|records, changes| {
                let before = records.pool(reference)?;
                let pool = before.apply(patch)?;
                if walls {
                    pool.egress.admit(subnets_but(records, &reference.tenant))?;
                }
                let shape = pool.resources;
                let grown = shape != before.resources;
                if grown {
                    self.host.admit_shape(&shape)?;
                }
                let tenant = records.tenant(&reference.tenant)?;
                if (grown || pool.caches != before.caches)
                    && !has_part_of_quotas(records, &tenant.name)
                {
                    admit_machine(&tenant.name, &tenant.quotas, &shape, disk_mib(&pool.caches))?;
                }
                if let Some(counts) = &pool.desired {
                    admit_counts(
                        &tenant.name,
                        &tenant.quotas,
                        &pool.resources,
                        &pool.caches,
                        counts,
                    )?;
                }
                changes.put_pool(pool);
                Ok(())
            })
            .await?;
        if walls {
            // The rules apply to running machines at once.
            self.links.refresh_rules().await?;
        }
        self.caches.sweep().await
    }

    /// Refuses a CPU model that no machine can have here, unless the pool has it already.
    async fn admit_cpu_model(&self, pool: &PoolRef, model: &CpuModel) -> Result<()> {
        match self.records.read(|records| has_model(records, pool, model)) {
            true => Ok(()),
            false => self.host.admit_cpu_model(model).await,
        }
    }

    /// Sets the instances that the pool keeps ready.
    pub async fn scale(&self, reference: &PoolRef, scale: ScalePool) -> Result<()> {
        self.records
            .change(|records, changes| {
                let mut pool = records.pool(reference)?.clone();
                if pool.current_revision().is_none() {
                    return Err(not_built(reference));
                }
                let before = pool.desired.unwrap_or_default();
                let counts = Counts {
                    running: scale.running.unwrap_or(before.running),
                    warm: scale.warm.unwrap_or(before.warm),
                    sleeping: scale.sleeping.unwrap_or(before.sleeping),
                };
                let tenant = records.tenant(&reference.tenant)?;
                admit_counts(&tenant.name, &tenant.quotas, &pool.resources, &pool.caches, &counts)?;
                pool.desired = Some(counts);
                changes.put_pool(pool);
                Ok(())
            })
            .await?;
        self.health.succeeded(reference);
        self.wake.notify();
        Ok(())
    }

    /// Makes an earlier revision current.
    pub async fn rollback(&self, pool: &PoolRef, to: Option<u32>) -> Result<RevisionEntry> {
        let entry = self
            .records
            .change(|records, changes| {
                let mut record = records.pool(pool)?.clone();
                let entry = record.rollback(to)?;
                self.images.store().get(&entry.digest.to_string()).map_err(|error| {
                    Error::from(error)
                        .with_hint("its image was collected: build it anew with `pool build`")
                })?;
                changes.put_pool(record);
                Ok(entry)
            })
            .await?;
        self.wake.notify();
        Ok(entry)
    }
}

/// Returns whether the pool's machines have this CPU model already.
pub(crate) fn has_model(records: &RecordSet, pool: &PoolRef, model: &CpuModel) -> bool {
    records.pools.get(pool).is_some_and(|known| known.cpu_model == *model)
}

/// Returns whether the tenant belongs to a fleet. Its quotas are this node's part then, which may
/// be less than one machine needs.
fn has_part_of_quotas(records: &RecordSet, tenant: &Name) -> bool {
    let fleet = records.desired.as_ref().and_then(|in_force| in_force.fleet.as_ref());
    fleet.is_some_and(|fleet| fleet.tenants.contains(tenant))
}

/// Returns the subnets of all tenants but this one.
fn subnets_but<'a>(
    records: &'a RecordSet,
    tenant: &'a Name,
) -> impl Iterator<Item = Ipv4Net> + Clone + 'a {
    let others = records.tenants.values().filter(move |other| other.name != *tenant);
    others.map(|other| other.network.ipv4_subnet)
}
