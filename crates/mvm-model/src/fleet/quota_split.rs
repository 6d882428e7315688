//! Computes one node's document: its part of the counts and of the quotas.
//!
//! The parts of a quota add up to the quota and never exceed it. Each node gets what its counts
//! need; the rest is for leases, and is distributed in whole instances of the tenant's largest
//! shape, in proportion to the spares that a node holds.

use super::placement::Placement;
use super::{FleetPool, FleetState, FleetTenant};
use crate::admission::Quotas;
use crate::desired::{DesiredPool, DesiredState, SCHEMA_VERSION};
use crate::mib::Mib;
use crate::name::Name;
use crate::pool::Counts;
use crate::resources::Resources;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Returns the document of one node: what the placement says that it shall hold or keep, and
/// nothing else.
pub fn node_document(document: &FleetState, placement: &Placement, node: &Name) -> DesiredState {
    let mut state =
        DesiredState { schema_version: SCHEMA_VERSION, node_id: node.clone(), tenants: Vec::new() };
    let Some(share) = placement.nodes.get(node) else { return state };
    for tenant in &document.tenants {
        let pool = |pool: &FleetPool| {
            let reference = tenant.reference(pool);
            if let Some(counts) = share.pools.get(&reference) {
                return Some(pool.on_node(*counts));
            }
            let revision = share.kept.get(&reference)?.clone();
            let kept = pool.on_node(Counts::default());
            // Nothing is built for a pool that is only kept.
            Some(DesiredPool { revision: revision.or(kept.revision), ..kept })
        };
        let pools: Vec<_> = tenant.pools.iter().filter_map(pool).collect();
        if let Some(quotas) = share.quotas.get(&tenant.tenant_id).filter(|_| !pools.is_empty()) {
            state.tenants.push(tenant.on_node(*quotas, pools));
        }
    }
    state
}

/// Gives every node its part of the quotas.
pub(super) fn split_quotas(document: &FleetState, placement: &mut Placement) {
    for tenant in &document.tenants {
        let parts = parts(tenant, placement);
        for (node, quotas) in parts {
            if let Some(share) = placement.nodes.get_mut(&node) {
                share.quotas.insert(tenant.tenant_id.clone(), quotas);
            }
        }
    }
}

/// One node's part while it is being computed.
#[derive(Clone, Copy, Default)]
struct Part {
    needs: Sum,
    spares: u64,
    /// The most instances that one pool has here.
    pool: u64,
}

/// The quotas that add up.
#[derive(Clone, Copy, Default)]
struct Sum {
    vcpus: u64,
    mem_mib: Mib,
    running: u64,
    warm: u64,
    disk_gib: u64,
}

impl Sum {
    fn fields(&mut self) -> [&mut u64; 5] {
        [
            &mut self.vcpus,
            &mut self.mem_mib.0,
            &mut self.running,
            &mut self.warm,
            &mut self.disk_gib,
        ]
    }

    /// Returns a node's part of the tenant's quotas, with at most `max_instances_per_pool`
    /// instances of one pool.
    fn quotas(self, tenant: &FleetTenant, max_instances_per_pool: u64) -> Quotas {
        Quotas {
            max_vcpus: self.vcpus,
            max_mem_mib: self.mem_mib,
            max_running: self.running,
            max_warm: self.warm,
            max_pools: tenant.quotas.max_pools,
            max_instances_per_pool,
            max_disk_gib: self.disk_gib,
            max_queued_jobs: tenant.quotas.max_queued_jobs,
        }
    }
}

fn parts(tenant: &FleetTenant, placement: &Placement) -> BTreeMap<Name, Quotas> {
    let mut parts: BTreeMap<Name, Part> = BTreeMap::new();
    for (node, share) in &placement.nodes {
        let held = tenant.pools.iter().filter_map(|pool| {
            Some((pool.footprint(), *share.pools.get(&tenant.reference(pool))?))
        });
        if let Some(part) = part(held) {
            parts.insert(node.clone(), part);
        }
    }
    let quotas = tenant.quotas;
    let mut left = Sum {
        vcpus: quotas.max_vcpus,
        mem_mib: quotas.max_mem_mib,
        running: quotas.max_running,
        warm: quotas.max_warm,
        disk_gib: quotas.max_disk_gib,
    };
    for part in parts.values_mut() {
        for (left, need) in left.fields().into_iter().zip(part.needs.fields()) {
            *left = left.saturating_sub(*need);
        }
    }
    let weights: Vec<u64> = parts.values().map(|part| part.spares.max(1)).collect();
    // Whole leases are distributed first, so that no node gets a part that it cannot use.
    let largest = largest(tenant);
    let leases = [
        left.running,
        left.vcpus / largest.vcpus.max(1),
        left.mem_mib.0 / largest.mem_mib.0.max(1),
        left.disk_gib / largest.disk_gib.max(1),
    ];
    let leases = split(leases.into_iter().min().unwrap_or(0), &weights);
    for (part, leases) in parts.values_mut().zip(leases) {
        let lease = Sum { running: 1, ..largest };
        for ((need, one), left) in
            part.needs.fields().into_iter().zip({ lease }.fields()).zip(left.fields())
        {
            *need += *one * leases;
            *left -= *one * leases;
        }
    }
    for (index, left) in left.fields().into_iter().enumerate() {
        for (part, more) in parts.values_mut().zip(split(*left, &weights)) {
            *part.needs.fields()[index] += more;
        }
    }
    let instances = per_pool(tenant, placement);
    let whole = |(node, part): (Name, Part)| {
        let most = instances.get(&node).copied().unwrap_or(0).max(part.pool);
        (node, part.needs.quotas(tenant, most))
    };
    parts.into_iter().map(whole).collect()
}

/// Returns the quotas of a node that has nothing of a tenant but jobs: `leases` of them may still
/// run at a time.
pub(super) fn for_leases(tenant: &FleetTenant, leases: u64) -> Quotas {
    let mut sum = Sum { running: 1, ..largest(tenant) };
    sum.fields().into_iter().for_each(|field| *field *= leases);
    sum.quotas(tenant, leases)
}

/// Returns what the counts of one node need; `None` if the tenant has no pool there.
fn part(held: impl Iterator<Item = (Resources, Counts)>) -> Option<Part> {
    let (mut part, mut disk_mib, mut any) = (Part::default(), Mib(0), false);
    for (shape, counts) in held {
        let hot = u64::from(counts.running) + u64::from(counts.warm);
        part.needs.vcpus += hot * u64::from(shape.vcpus);
        part.needs.mem_mib += hot * shape.mem_mib;
        part.needs.running += u64::from(counts.running);
        part.needs.warm += u64::from(counts.warm);
        part.spares += counts.total();
        part.pool = part.pool.max(counts.total());
        disk_mib += counts.total() * shape.disk_mib();
        any = true;
    }
    part.needs.disk_gib = disk_mib.gib_rounded_up();
    any.then_some(part)
}

/// Returns the most that one lease takes.
fn largest(tenant: &FleetTenant) -> Sum {
    let mut largest = Sum::default();
    for shape in tenant.pools.iter().map(FleetPool::footprint) {
        largest.vcpus = largest.vcpus.max(shape.vcpus.into());
        largest.mem_mib = largest.mem_mib.max(shape.mem_mib);
        largest.disk_gib = largest.disk_gib.max(shape.disk_mib().gib_rounded_up());
    }
    largest
}

/// Returns each node's part of `max_instances_per_pool`: for each pool the parts add up to the
/// quota, and a node with several pools gets the largest of its parts.
fn per_pool(tenant: &FleetTenant, placement: &Placement) -> BTreeMap<Name, u64> {
    let mut most: BTreeMap<Name, u64> = BTreeMap::new();
    for pool in &tenant.pools {
        let reference = tenant.reference(pool);
        let held: Vec<(&Name, u64)> = (placement.nodes.iter())
            .filter_map(|(node, share)| Some((node, share.pools.get(&reference)?.total())))
            .collect();
        let total: u64 = held.iter().map(|(_, count)| count).sum();
        let weights: Vec<u64> = held.iter().map(|(_, count)| (*count).max(1)).collect();
        let more = split(tenant.quotas.max_instances_per_pool.saturating_sub(total), &weights);
        for ((node, count), more) in held.into_iter().zip(more) {
            let known = most.entry(node.clone()).or_default();
            *known = (*known).max(count + more);
        }
    }
    most
}

/// Splits a number by weights without a rest: the largest remainders get one more.
fn split(number: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let exact = |weight: &u64| u128::from(number) * u128::from(*weight);
    let mut parts: Vec<u64> = weights.iter().map(|w| (exact(w) / sum) as u64).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|index| (Reverse(exact(&weights[*index]) % sum), *index));
    let given: u64 = parts.iter().sum();
    for index in order.into_iter().take((number - given) as usize) {
        parts[index] += 1;
    }
    parts
}
