//! Tenants and pools, over all nodes.

use super::handler::{Answer, Asked, Listing, Shared};
use crate::view::View;
use crate::{Error, Thing};
use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use mvm_api::types::{PoolView, TenantView};
use mvm_model::fleet::{FleetPool, FleetTenant, PoolStatus};
use mvm_model::pool::RevisionEntry;
use mvm_model::{Cache, CacheDisk, Counts, Name, PoolRef, Timestamp, Usage};
use mvm_server::Caller;

pub async fn tenants(
    State(fleet): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, .. }: Asked,
) -> Listing<TenantView> {
    let view = fleet.view();
    let records = view.document.iter().flat_map(|record| {
        let tenants = record.document.tenants.iter().filter(|t| peer.sees(&t.tenant_id));
        tenants.map(|tenant| tenant_view(&view, tenant, record.applied_at))
    });
    Ok(page.of(records))
}

pub async fn tenant(State(fleet): Shared, Path(name): Path<String>) -> Answer<TenantView> {
    let name: Name = name.parse()?;
    let view = fleet.view();
    let record = view.document.as_ref();
    let found = record.and_then(|r| Some((r.document.tenant(&name)?, r.applied_at)));
    let (tenant, at) = found.ok_or_else(|| no_tenant(&name))?;
    Ok(Json(tenant_view(&view, tenant, at)))
}

fn no_tenant(name: &Name) -> Error {
    Error::Missing(Thing::Tenant(name.clone()))
}

pub async fn list(
    State(fleet): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, .. }: Asked,
) -> Listing<PoolView> {
    Ok(page.of(pools(&fleet.view(), |tenant| peer.sees(tenant))))
}

pub async fn list_of_tenant(
    State(fleet): Shared,
    Path(name): Path<String>,
    Asked { page, .. }: Asked,
) -> Listing<PoolView> {
    let name: Name = name.parse()?;
    let view = fleet.view();
    let known = view.document.as_ref().and_then(|record| record.document.tenant(&name));
    known.ok_or_else(|| no_tenant(&name))?;
    Ok(page.of(pools(&view, |tenant| *tenant == name)))
}

pub async fn show(
    State(fleet): Shared,
    Path((tenant, pool)): Path<(String, String)>,
) -> Answer<PoolView> {
    let reference = PoolRef { tenant: tenant.parse()?, pool: pool.parse()? };
    fleet.check_pool(&reference)?;
    let found = pools(&fleet.view(), |tenant| *tenant == reference.tenant);
    let found = found.into_iter().find(|pool| pool.pool_id == reference.pool);
    // The document may have changed since the pool was looked up.
    Ok(Json(found.ok_or(Error::Missing(Thing::Pool(reference)))?))
}

fn pools(view: &View, takes: impl Fn(&Name) -> bool) -> Vec<PoolView> {
    let Some(record) = &view.document else { return Vec::new() };
    let pools = record.document.pools().filter(|(tenant, _)| takes(&tenant.tenant_id));
    pools.map(|(tenant, pool)| pool_view(view, tenant, pool, record.applied_at)).collect()
}

/// Returns what every node in reach says of the pool.
fn held<'a>(view: &'a View, pool: &'a PoolRef) -> impl Iterator<Item = (&'a Name, &'a PoolStatus)> {
    let reached = view.nodes.iter().filter(|(_, known)| known.reached);
    reached.filter_map(move |(name, known)| Some((name, known.status.as_ref()?.pools.get(pool)?)))
}

fn pool_view(view: &View, tenant: &FleetTenant, pool: &FleetPool, at: Timestamp) -> PoolView {
    let reference = tenant.reference(pool);
    let held: Vec<(&Name, &PoolStatus)> = held(view, &reference).collect();
    let sum = |of: fn(&PoolStatus) -> u32| {
        held.iter().map(|(_, status)| of(status)).fold(0, u32::saturating_add)
    };
    let ready = held.iter().map(|(_, status)| status.ready);
    let failure = |(name, status): &(&Name, &PoolStatus)| {
        status.failure.as_ref().map(|why| format!("node {name}: {why}"))
    };
    let digest = (held.iter().filter(|(name, _)| view.holds(name, &reference)))
        .find_map(|(_, status)| status.revision.as_ref()?.parse().ok());
    PoolView {
        tenant_id: tenant.tenant_id.clone(),
        pool_id: pool.pool_id.clone(),
        flake_ref: pool.flake_ref.clone(),
        profile: pool.profile.clone(),
        override_inputs: pool.override_inputs.clone(),
        instance_resources: pool.instance_resources,
        // Each node has its own content.
        caches: pool.caches.iter().cloned().map(no_content).collect(),
        desired_counts: Some(pool.desired_counts),
        building_since: None,
        ready_counts: ready.fold(Counts::default(), Counts::plus),
        leased: sum(|status| status.leased),
        failed: sum(|status| status.failed),
        instances: sum(|status| status.instances),
        recycle: pool.recycle,
        cpu_model: pool.cpu_model.clone(),
        prewarm: pool.prewarm.clone(),
        runtime_policy: pool.runtime_policy,
        egress: pool.egress.clone(),
        template_ready: held.iter().any(|(_, status)| status.template),
        // Each node has its own accelerator and template, and tells of them.
        accelerator: None,
        template_renewal: None,
        // Each node counts its own builds: only the digest is the fleet's.
        revision: digest.map(|digest| RevisionEntry { number: 1, digest, built_at: at }),
        stale: false,
        last_failure: held.iter().find_map(failure),
        shortfalls: Vec::new(),
        created_at: at,
    }
}

fn no_content(cache: Cache) -> CacheDisk {
    CacheDisk { cache, generation: 0, committed_at: None }
}

fn tenant_view(view: &View, tenant: &FleetTenant, at: Timestamp) -> TenantView {
    let mut usage = Usage { pools: tenant.pools.len() as u64, ..Usage::default() };
    for pool in &tenant.pools {
        let (reference, shape) = (tenant.reference(pool), pool.footprint());
        for (_, status) in held(view, &reference) {
            let running = u64::from(status.ready.running) + u64::from(status.leased);
            let hot = running + u64::from(status.ready.warm);
            usage.running += running;
            usage.warm += u64::from(status.ready.warm);
            usage.vcpus += hot * u64::from(shape.vcpus);
            usage.mem_mib += hot * shape.mem_mib;
            usage.instances += u64::from(status.instances);
            usage.disk_mib += u64::from(status.instances) * shape.disk_mib();
        }
    }
    TenantView {
        tenant_id: tenant.tenant_id.clone(),
        network: tenant.network.clone(),
        gateway: tenant.network.gateway(),
        // Each node has one of its own.
        bridge: String::new(),
        quotas: tenant.quotas,
        usage,
        created_at: at,
    }
}
