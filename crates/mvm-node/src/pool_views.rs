//! Tenants and pools in the API's form.

use crate::Result;
use crate::health::Health;
use crate::host::{Host, Shortfalls};
use crate::images::Images;
use crate::links::Links;
use crate::pool_builder::PoolBuilder;
use crate::records::{RecordSet, Records};
use crate::templates::Templates;
use mvm_api::types::{PoolView, RevisionView, TenantView};
use mvm_model::plan::ready;
use mvm_model::{Instance, Pool, PoolRef, State, Tenant};
use std::sync::Arc;

/// Shows tenants and pools.
pub(crate) struct PoolViews {
    records: Arc<Records>,
    links: Arc<Links>,
    images: Arc<Images>,
    builder: Arc<PoolBuilder>,
    templates: Arc<Templates>,
    health: Arc<Health>,
    host: Arc<Host>,
}

impl PoolViews {
    /// Makes the service that shows the tenants and pools of these records.
    pub(crate) fn new(
        records: Arc<Records>,
        links: Arc<Links>,
        images: Arc<Images>,
        builder: Arc<PoolBuilder>,
        templates: Arc<Templates>,
        health: Arc<Health>,
        host: Arc<Host>,
    ) -> PoolViews {
        PoolViews { records, links, images, builder, templates, health, host }
    }

    /// Returns a tenant with its usage.
    pub(crate) fn tenant(&self, records: &RecordSet, tenant: &Tenant) -> TenantView {
        TenantView {
            tenant_id: tenant.name.clone(),
            network: tenant.network.clone(),
            gateway: tenant.network.gateway(),
            bridge: self.links.bridge_name(tenant),
            quotas: tenant.quotas,
            usage: records.usage(&tenant.name),
            created_at: tenant.created_at,
        }
    }

    /// Returns a pool with the numbers of its instances.
    pub(crate) fn pool(
        &self,
        records: &RecordSet,
        pool: &Pool,
        shortfalls: &Shortfalls,
    ) -> PoolView {
        let of_pool = || records.of_pool(&pool.reference);
        let leased = of_pool().filter(|i| i.lease.is_some()).count() as u32;
        let is_failed = |i: &&Instance| i.lease.is_none() && i.state == State::Failed;
        let failed = of_pool().filter(is_failed).count() as u32;
        PoolView {
            tenant_id: pool.reference.tenant.clone(),
            pool_id: pool.reference.pool.clone(),
            flake_ref: pool.flake_ref.clone(),
            profile: pool.profile.clone(),
            override_inputs: pool.override_inputs.clone(),
            instance_resources: pool.resources,
            caches: pool.caches.clone(),
            desired_counts: pool.desired,
            building_since: self.builder.builds.since(&pool.reference),
            ready_counts: ready(pool, of_pool()),
            leased,
            failed,
            instances: of_pool().count() as u32,
            recycle: pool.recycle,
            cpu_model: pool.cpu_model.clone(),
            prewarm: pool.prewarm.clone(),
            runtime_policy: pool.runtime_policy,
            egress: pool.egress.clone(),
            template_ready: self.templates.of_pool(pool).is_some(),
            accelerator: self.host.accelerator(),
            template_renewal: self.templates.renewal_of(pool),
            revision: pool.current_revision().cloned(),
            stale: pool.stale,
            last_failure: self.health.of(&pool.reference).last_failure,
            shortfalls: shortfalls.of(pool),
            created_at: pool.created_at,
        }
    }

    /// Returns all builds of a pool.
    pub(crate) fn revisions(&self, pool: &PoolRef) -> Result<Vec<RevisionView>> {
        let images = self.images.store();
        self.records.read(|records| {
            let record = records.pool(pool)?;
            let view = |entry: &mvm_model::pool::RevisionEntry| RevisionView {
                current: record.current == Some(entry.number),
                present: images.get(&entry.digest.to_string()).is_ok(),
                instances: records.of_pool(pool).filter(|i| i.revision == entry.digest).count()
                    as u32,
                entry: entry.clone(),
            };
            Ok(record.revisions.iter().map(view).collect())
        })
    }
}
