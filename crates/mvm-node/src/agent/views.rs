//! The services that show the node: pools, instances and metrics.

use super::base::{Base, Process};
use super::lifecycle::Lifecycle;
use super::pools::Pools;
use super::supplies::Supplies;
use super::work::Work;
use crate::accelerator::AcceleratorChoice;
use crate::audit::Audit;
use crate::expose::Exposes;
use crate::instance_views::InstanceViews;
use crate::instances::{Guests, Halted, Lingering, LinkKeeper};
use crate::metrics::{Metrics, source};
use crate::passes::Passes;
use crate::pool_views::PoolViews;
use crate::stages::Stages;
use crate::templates::Templates;

/// The services that show the node.
pub(crate) struct Views {
    pub pools: PoolViews,
    pub instances: InstanceViews,
    pub metrics: Metrics,
}

impl Views {
    /// Makes the services from these groups.
    pub fn new(
        process: &Process,
        base: &Base,
        supplies: &Supplies,
        lifecycle: &Lifecycle,
        work: &Work,
        pools: &Pools,
    ) -> Views {
        let instances = InstanceViews {
            records: base.records.clone(),
            slots: base.slots.clone(),
            links: supplies.links.clone(),
            halted: lifecycle.halted.clone(),
            idle: work.idle.clone(),
            holders: work.holders.clone(),
            state_dir: base.state_dir.clone(),
            simulated: supplies.host.driver().simulated,
        };
        let pools = PoolViews::new(
            base.records.clone(),
            supplies.links.clone(),
            supplies.images.clone(),
            pools.builder.clone(),
            supplies.templates.clone(),
            pools.health.clone(),
            supplies.host.clone(),
        );
        let metrics = metrics(process, base, supplies, lifecycle, work);
        Views { pools, instances, metrics }
    }
}

/// Collects the metrics of these services, in the order in which they are shown.
fn metrics(
    process: &Process,
    base: &Base,
    supplies: &Supplies,
    lifecycle: &Lifecycle,
    work: &Work,
) -> Metrics {
    let sources = vec![
        source(&base.records, |records, registry| records.events().register(registry)),
        source(&base.audit, Audit::register),
        source(&work.exposes, Exposes::register),
        source(&process.stages, Stages::register),
        source(&process.passes, Passes::register),
        source(&lifecycle.halted, Halted::register),
        source(&lifecycle.guests, Guests::register),
        source(&supplies.templates, Templates::register),
        source(&lifecycle.lingering, Lingering::register),
        source(&supplies.accelerator, AcceleratorChoice::register),
        source(&supplies.links, |links, registry| links.repairs.register(registry)),
        source(&lifecycle.link_keeper, LinkKeeper::register),
    ];
    Metrics {
        records: base.records.clone(),
        sources,
        halted: lifecycle.halted.clone(),
        host: supplies.host.clone(),
        identity: base.state_dir.identity(),
        started_at: process.started_at,
    }
}
