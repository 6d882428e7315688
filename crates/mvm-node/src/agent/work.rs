//! The services that use instances: leases, jobs, and pools behind ports. Also those for idle
//! instances.

use super::base::Base;
use super::lifecycle::Lifecycle;
use super::parts::AgentSettings;
use super::supplies::Supplies;
use crate::expose::Exposes;
use crate::holders::LeaseHolders;
use crate::idle::IdleTimes;
use crate::jobs::{Dispatcher, Jobs};
use crate::leases::Leases;
use crate::spares::Spares;
use std::sync::Arc;

/// The services that use instances.
pub(crate) struct Work {
    /// The holders of leases, which are not in the records.
    pub holders: Arc<LeaseHolders>,
    pub leases: Arc<Leases>,
    pub spares: Arc<Spares>,
    pub idle: Arc<IdleTimes>,
    pub jobs: Arc<Jobs>,
    pub dispatcher: Arc<Dispatcher>,
    pub exposes: Arc<Exposes>,
}

impl Work {
    /// Makes the services from these groups.
    pub fn new(
        settings: &AgentSettings,
        base: &Base,
        supplies: &Supplies,
        lifecycle: &Lifecycle,
    ) -> Work {
        let Base { records, slots, auditor, wake, .. } = base;
        let instances = &lifecycle.instances;
        let holders = LeaseHolders::new(records.clock().clone());
        let leases = Arc::new(Leases::new(
            records.clone(),
            instances.clone(),
            supplies.caches.clone(),
            slots.clone(),
            holders.clone(),
            auditor.clone(),
            wake.clone(),
        ));
        let spares =
            Spares::new(records.clone(), slots.clone(), instances.clone(), auditor.clone());
        let spares = Arc::new(spares);
        let idle = IdleTimes::new(records.clone(), slots.clone(), supplies.links.clone());
        let reserve = settings.disk_reserve;
        let jobs = Arc::new(Jobs::new(records.clone(), base.state_dir.clone(), reserve));
        let dispatcher = Arc::new(Dispatcher::new(
            jobs.clone(),
            records.clone(),
            instances.clone(),
            leases.clone(),
            supplies.caches.clone(),
            auditor.clone(),
            wake.clone(),
        ));
        let exposes = Arc::new(Exposes::new(
            records.clone(),
            instances.clone(),
            leases.clone(),
            spares.clone(),
            auditor.clone(),
        ));
        Work { holders, leases, spares, idle: Arc::new(idle), jobs, dispatcher, exposes }
    }
}
