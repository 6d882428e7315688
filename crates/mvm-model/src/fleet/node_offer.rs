//! Computes what a node offers to claims.

use super::claims::{NodeOffer, PoolOffer};
use super::node::{Capacity, Duty, FleetNode};
use super::placement::Share;
use super::{FleetPool, FleetState, FleetTenant, PoolStatus};
use crate::mib::Mib;
use crate::name::{Name, PoolRef};
use crate::resources::Resources;
use std::collections::BTreeMap;

/// Returns the shapes of a document's pools.
pub fn shapes(document: &FleetState) -> Shapes {
    let shape = |(tenant, pool): (&FleetTenant, &FleetPool)| {
        (tenant.reference(pool), pool.instance_resources)
    };
    document.pools().map(shape).collect()
}

/// The shapes of all pools.
pub type Shapes = BTreeMap<PoolRef, Resources>;

/// Returns what the node offers to claims of the pools that it shall hold. `share` is the part that
/// was sent to it.
pub fn node_offer(shapes: &Shapes, node: &FleetNode, share: &Share) -> NodeOffer {
    let open = node.duty != Duty::Draining && node.lost_since.is_none();
    let capacity = node.status.capacity;
    let mut offer = NodeOffer { open, capacity, free: capacity, ..NodeOffer::default() };
    // Running instances of each tenant, leased or not.
    let mut running: BTreeMap<&Name, u64> = BTreeMap::new();
    for (reference, status) in &node.status.pools {
        let hot = hot(status);
        offer.leased += u64::from(status.leased);
        *running.entry(&reference.tenant).or_default() +=
            u64::from(status.ready.running) + u64::from(status.leased);
        if let Some(shape) = shapes.get(reference) {
            take(&mut offer.free, hot * u64::from(shape.vcpus), hot * shape.mem_mib);
        }
    }
    for reference in share.pools.keys() {
        let status = node.status.pools.get(reference);
        let (Some(shape), Some(status)) = (shapes.get(reference), status) else { continue };
        let most = share.quotas.get(&reference.tenant).map_or(0, |quotas| quotas.max_running);
        let in_use = running.get(&reference.tenant).copied().unwrap_or(0);
        // A running spare already counts as running before it is leased.
        let spares = u64::from(status.ready.running);
        let leases = most.saturating_sub(in_use) + spares.min(most);
        let pool_offer = PoolOffer {
            ready: status.ready,
            shape: *shape,
            template: status.template,
            built: status.revision.is_some(),
            leases: u32::try_from(leases).unwrap_or(u32::MAX),
        };
        offer.pools.insert(reference.clone(), pool_offer);
    }
    offer
}

/// Returns the number of instances that have a process.
fn hot(status: &PoolStatus) -> u64 {
    u64::from(status.ready.running) + u64::from(status.ready.warm) + u64::from(status.leased)
}

fn take(free: &mut Capacity, vcpus: u64, mem_mib: Mib) {
    free.vcpus = free.vcpus.saturating_sub(vcpus);
    free.mem_mib = free.mem_mib.saturating_sub(mem_mib);
}
