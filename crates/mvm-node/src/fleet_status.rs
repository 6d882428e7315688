//! The node's status for its coordinators.

use crate::Result;
use crate::desired::Desired;
use crate::health::Health;
use crate::host::Host;
use crate::images::Images;
use crate::records::{RecordSet, Records};
use crate::templates::Templates;
use mvm_model::fleet::{NodeStatus, PoolStatus};
use mvm_model::plan::ready;
use mvm_model::{Digest, Pool, PoolRef, State};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Makes the node's status.
pub(crate) struct FleetStatus {
    records: Arc<Records>,
    desired: Arc<Desired>,
    images: Arc<Images>,
    host: Arc<Host>,
    templates: Arc<Templates>,
    health: Arc<Health>,
}

impl FleetStatus {
    /// Makes the service from these.
    pub(crate) fn new(
        records: Arc<Records>,
        desired: Arc<Desired>,
        images: Arc<Images>,
        host: Arc<Host>,
        templates: Arc<Templates>,
        health: Arc<Health>,
    ) -> FleetStatus {
        FleetStatus { records, desired, images, host, templates, health }
    }

    /// Returns the node's status.
    pub(crate) fn report(&self) -> Result<NodeStatus> {
        let desired = self.desired.status();
        let images = self.images.on_disk()?;
        let (pools, document) = self.records.read(|records| {
            let mut jobs: BTreeMap<&PoolRef, (u32, u32)> = BTreeMap::new();
            for job in records.jobs.values() {
                let (all, open) = jobs.entry(&job.pool).or_default();
                (*all, *open) = (*all + 1, *open + u32::from(!job.state.has_ended()));
            }
            let pools = records.pools.values();
            let status_of = |pool: &Pool| {
                let status = self.pool_status(records, pool, &images);
                let (jobs, open_jobs) = jobs.get(&pool.reference).copied().unwrap_or_default();
                (pool.reference.clone(), PoolStatus { jobs, open_jobs, ..status })
            };
            let digest =
                records.desired.as_ref().and_then(|d| Some(d.fleet.as_ref()?.digest.clone()));
            (pools.map(status_of).collect(), digest)
        });
        Ok(NodeStatus {
            node_id: self.host.node_id()?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: self.host.capacity(),
            labels: self.host.labels().clone(),
            cpu_model: self.host.cpu_model().to_owned(),
            simulated: self.host.driver().simulated,
            images: images.keys().map(Digest::to_string).collect(),
            pools,
            document,
            pending: u32::try_from(desired.pending.len()).unwrap_or(u32::MAX),
            failure: desired.last_failure,
            failure_code: desired.last_failure_code,
            newest_event: self.records.newest_event(),
        })
    }

    fn pool_status(
        &self,
        records: &RecordSet,
        pool: &Pool,
        images: &BTreeMap<Digest, String>,
    ) -> PoolStatus {
        let revision = pool.current_revision().map(|revision| revision.digest);
        let mut status = PoolStatus {
            ready: ready(pool, records.of_pool(&pool.reference)),
            template: self.templates.of_pool(pool).is_some(),
            content: (revision.and_then(|digest| images.get(&digest).cloned()))
                .filter(|content| !content.is_empty()),
            revision: revision.map(|digest| digest.to_string()),
            failure: self.health.of(&pool.reference).last_failure,
            ..PoolStatus::default()
        };
        for instance in records.of_pool(&pool.reference) {
            status.instances += 1;
            status.leased += u32::from(instance.lease.is_some());
            status.failed += u32::from(instance.lease.is_none() && instance.state == State::Failed);
        }
        status
    }
}
