//! Destroys pools with their fronts, jobs, instances and caches.

use crate::Result;
use crate::caches::Caches;
use crate::error::PoolError;
use crate::expose::Exposes;
use crate::instances::Instances;
use crate::jobs::Jobs;
use crate::records::Records;
use crate::wake::Wake;
use mvm_model::{Actor, Code, Counts, PoolRef, State};
use std::sync::Arc;

/// Destroys pools.
pub(crate) struct PoolRemoval {
    records: Arc<Records>,
    exposes: Arc<Exposes>,
    jobs: Arc<Jobs>,
    instances: Arc<Instances>,
    caches: Arc<Caches>,
    wake: Wake,
}

impl PoolRemoval {
    /// Makes the service that destroys pools of these records.
    pub(crate) fn new(
        records: Arc<Records>,
        exposes: Arc<Exposes>,
        jobs: Arc<Jobs>,
        instances: Arc<Instances>,
        caches: Arc<Caches>,
        wake: Wake,
    ) -> PoolRemoval {
        PoolRemoval { records, exposes, jobs, instances, caches, wake }
    }

    /// Destroys a pool with all its instances.
    pub async fn destroy_pool(&self, reference: &PoolRef) -> Result<()> {
        // Boxed, as large and rare futures are: otherwise the futures of all callers would contain
        // it.
        Box::pin(self.exposes.unexpose(reference, None)).await?;
        // First no new instances are made, then the existing ones are destroyed, and then the
        // record.
        self.records
            .change(|records, changes| {
                let mut pool = records.pool(reference)?.clone();
                pool.desired = None;
                changes.put_pool(pool);
                Ok(())
            })
            .await?;
        self.jobs.cancel_of(reference).await?;
        loop {
            let ids: Vec<_> =
                self.records.read(|records| records.of_pool(reference).map(|i| i.id).collect());
            if ids.is_empty() {
                break;
            }
            for id in ids {
                self.instances.transition_to(id, State::Destroyed, &Actor::Force).await.or_else(
                    |error| match error.code() == Code::NotFound {
                        true => Ok(State::Destroyed),
                        false => Err(error),
                    },
                )?;
            }
        }
        let jobs = self
            .records
            .change(|records, changes| {
                if records.of_pool(reference).next().is_some() {
                    return Err(PoolError::GotInstance(reference.clone()).into());
                }
                let live = |job: &&mvm_model::Job| !job.state.has_ended();
                if let Some(job) = records.jobs_of(reference).find(live) {
                    return Err(PoolError::GotJob { pool: reference.clone(), job: job.id }.into());
                }
                if let Some(front) = records.exposes.values().find(|e| e.pool == *reference) {
                    let (pool, listen) = (reference.clone(), front.listen);
                    return Err(PoolError::GotFront { pool, listen }.into());
                }
                let jobs: Vec<_> = records.jobs_of(reference).map(|job| job.id).collect();
                jobs.iter().for_each(|id| changes.remove_job(*id));
                changes.remove_pool(reference.clone());
                Ok(jobs)
            })
            .await?;
        self.jobs.clear_away(&jobs).await?;
        self.caches.sweep().await
    }

    /// Stops keeping instances ready in the pool. Returns whether all its leases and jobs have
    /// ended.
    pub(crate) async fn drain(&self, pool: &PoolRef) -> Result<bool> {
        let leased = self
            .records
            .change(|records, changes| {
                let mut record = records.pool(pool)?.clone();
                if record.desired.is_some_and(|counts| counts != Counts::default()) {
                    record.desired = Some(Counts::default());
                    changes.put_pool(record);
                }
                let busy = records.jobs_of(pool).any(|job| !job.state.has_ended());
                Ok(busy || records.of_pool(pool).any(|instance| instance.lease.is_some()))
            })
            .await?;
        self.wake.notify();
        Ok(!leased)
    }
}
