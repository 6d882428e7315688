//! Pools that a node no longer holds but keeps for its jobs: a job, its log and its artifacts are
//! on the node that it was given to, and stay there for as long as jobs are kept.

use super::node::FleetNode;
use super::placement::{Placement, Share};
use super::quota_split::for_leases;
use super::{FleetState, FleetTenant};
use crate::admission::Quotas;
use crate::name::{Name, PoolRef};
use std::collections::BTreeMap;

/// Makes every node keep the pools that it had before and no longer holds, without instances, until
/// it reports that it has no job of them.
pub(super) fn keep_records(
    document: &FleetState,
    nodes: &BTreeMap<Name, FleetNode>,
    previous: &Placement,
    placement: &mut Placement,
) {
    for (name, before) in &previous.nodes {
        let Some(node) = nodes.get(name) else { continue };
        let share = placement.nodes.get(name);
        let held = |pool: &PoolRef| share.is_some_and(|share| share.pools.contains_key(pool));
        let kept: BTreeMap<PoolRef, Option<String>> = (before.pools.keys())
            .chain(before.kept.keys())
            .filter(|pool| !held(pool) && document.pool(pool).is_some())
            .filter(|pool| !is_over(node, before, pool))
            .map(|pool| (pool.clone(), revision(node, before, pool)))
            .collect();
        if kept.is_empty() {
            continue;
        }
        let share = placement.nodes.entry(name.clone()).or_default();
        for tenant in &document.tenants {
            let mut pools = kept.keys().filter(|pool| pool.tenant == tenant.tenant_id).peekable();
            if pools.peek().is_some() && !share.quotas.contains_key(&tenant.tenant_id) {
                let works = pools.any(|pool| works(node, pool));
                let quotas = quotas(tenant, node, before, works);
                share.quotas.insert(tenant.tenant_id.clone(), quotas);
            }
        }
        share.kept = kept;
    }
}

/// Returns, for each pool that a node keeps, the two facts that matter here: whether it has a job,
/// and whether anything of it runs or waits.
pub fn kept_news(node: &FleetNode, share: &Share) -> Vec<(bool, bool)> {
    share.kept.keys().map(|pool| (has_jobs(node, pool), works(node, pool))).collect()
}

/// Returns whether the node was sent a document that keeps the pool and has since reported no
/// reason to keep it, or was not sent the pool yet.
fn is_over(node: &FleetNode, before: &Share, pool: &PoolRef) -> bool {
    let told = before.kept.contains_key(pool) || !node.status.pools.contains_key(pool);
    node.settled && told && !has_jobs(node, pool)
}

fn has_jobs(node: &FleetNode, pool: &PoolRef) -> bool {
    node.status.pools.get(pool).is_some_and(|status| status.jobs > 0)
}

/// Returns the image that the node has of the pool.
fn revision(node: &FleetNode, before: &Share, pool: &PoolRef) -> Option<String> {
    let told = node.status.pools.get(pool).and_then(|status| status.revision.clone());
    told.or_else(|| before.kept.get(pool).cloned().flatten())
}

/// Returns whether something of the pool runs on the node, or waits to run.
fn works(node: &FleetNode, pool: &PoolRef) -> bool {
    let status = node.status.pools.get(pool);
    status.is_some_and(|status| status.instances > 0 || status.open_jobs > 0)
}

/// Returns the quotas of a tenant whose pools are only kept: whatever runs may finish under the
/// quotas with which it began; after that nothing more may run. Jobs that are given to the node by
/// hand later run one at a time.
fn quotas(tenant: &FleetTenant, node: &FleetNode, before: &Share, works: bool) -> Quotas {
    let id = &tenant.tenant_id;
    let told = node.settled && before.kept.keys().any(|pool| pool.tenant == *id);
    match before.quotas.get(id) {
        Some(quotas) if quotas.max_running > 0 && (works || !told) => *quotas,
        _ => for_leases(tenant, u64::from(works)),
    }
}
