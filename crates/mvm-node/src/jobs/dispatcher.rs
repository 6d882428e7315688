//! The services that jobs are run with.

use super::queue::Jobs;
use crate::audit::Auditor;
use crate::caches::Caches;
use crate::instances::Instances;
use crate::leases::Leases;
use crate::records::Records;
use crate::wake::Wake;
use std::sync::Arc;

/// Gives instances to jobs, and runs the jobs there.
pub(crate) struct Dispatcher {
    pub(super) jobs: Arc<Jobs>,
    pub(super) records: Arc<Records>,
    pub(super) instances: Arc<Instances>,
    pub(super) leases: Arc<Leases>,
    pub(super) caches: Arc<Caches>,
    pub(super) auditor: Arc<Auditor>,
    pub(super) wake: Wake,
}

impl Dispatcher {
    /// Makes the service that runs these jobs in these instances.
    pub(crate) fn new(
        jobs: Arc<Jobs>,
        records: Arc<Records>,
        instances: Arc<Instances>,
        leases: Arc<Leases>,
        caches: Arc<Caches>,
        auditor: Arc<Auditor>,
        wake: Wake,
    ) -> Dispatcher {
        Dispatcher { jobs, records, instances, leases, caches, auditor, wake }
    }
}
