//! The services that bring the node to its desired state: at start, in every pass, by document, and
//! by a fleet.

use super::base::{Base, Process};
use super::lifecycle::Lifecycle;
use super::parts::AgentSettings;
use super::pools::Pools;
use super::supplies::Supplies;
use super::work::Work;
use crate::desired::Desired;
use crate::fleet::Fleet;
use crate::fleet_status::FleetStatus;
use crate::pool_filler::PoolFiller;
use crate::pressure::HostPressure;
use crate::reconcile::Reconciler;
use crate::recovery::{Leftovers, Startup};
use crate::upkeep::Upkeep;
use std::sync::Arc;

/// The services that bring the node to its desired state.
pub(crate) struct Steering {
    pub startup: Startup,
    pub reconciler: Arc<Reconciler>,
    pub desired: Arc<Desired>,
    pub fleet: Fleet,
    pub fleet_status: FleetStatus,
}

impl Steering {
    /// Makes the services from these groups.
    pub fn new(
        settings: &AgentSettings,
        process: &Process,
        base: &Base,
        supplies: &Supplies,
        lifecycle: &Lifecycle,
        work: &Work,
        pools: &Pools,
    ) -> Steering {
        let desired = Arc::new(Desired::new(
            base.records.clone(),
            pools.tenants.clone(),
            pools.catalog.clone(),
            pools.builder.clone(),
            pools.removal.clone(),
            supplies.host.clone(),
            base.auditor.clone(),
        ));
        let fleet = Fleet::new(
            base.records.clone(),
            lifecycle.instances.clone(),
            work.leases.clone(),
            work.holders.clone(),
            desired.clone(),
        );
        let fleet_status = FleetStatus::new(
            base.records.clone(),
            desired.clone(),
            supplies.images.clone(),
            supplies.host.clone(),
            supplies.templates.clone(),
            pools.health.clone(),
        );
        let pressure = HostPressure(settings.pressure.clone());
        let reconciler = reconciler(process, pressure, base, supplies, lifecycle, work, pools);
        let startup = startup(base, supplies, lifecycle, work);
        Steering { startup, reconciler: Arc::new(reconciler), desired, fleet, fleet_status }
    }
}

fn startup(base: &Base, supplies: &Supplies, lifecycle: &Lifecycle, work: &Work) -> Startup {
    let leftovers = Leftovers::new(
        base.records.clone(),
        base.state_dir.clone(),
        supplies.templates.clone(),
        supplies.caches.clone(),
    );
    Startup::new(
        base.records.clone(),
        supplies.links.clone(),
        lifecycle.recovery.clone(),
        leftovers,
        work.dispatcher.clone(),
        work.leases.clone(),
    )
}

fn reconciler(
    process: &Process,
    pressure: HostPressure,
    base: &Base,
    supplies: &Supplies,
    lifecycle: &Lifecycle,
    work: &Work,
    pools: &Pools,
) -> Reconciler {
    let upkeep = Upkeep::new(
        lifecycle.recovery.clone(),
        work.leases.clone(),
        lifecycle.link_keeper.clone(),
        work.idle.clone(),
        lifecycle.lingering.clone(),
        supplies.accelerator.clone(),
        base.state_dir.clone(),
    );
    let filler = PoolFiller::new(
        base.records.clone(),
        lifecycle.instances.clone(),
        work.spares.clone(),
        pools.template_maker.clone(),
        pools.health.clone(),
        base.auditor.clone(),
        base.wake.clone(),
    );
    Reconciler {
        upkeep,
        filler: Arc::new(filler),
        template_maker: pools.template_maker.clone(),
        records: base.records.clone(),
        idle: work.idle.clone(),
        pressure,
        passes: process.passes.clone(),
        wake: base.wake.clone(),
    }
}
