//! Chooses the next job and its instance, from the records alone.

use crate::instances::new_instance;
use crate::records::RecordSet;
use crate::{Error, Result};
use mvm_model::admission::admit_state;
use mvm_model::cache;
use mvm_model::choose::choose;
use mvm_model::job::JobState;
use mvm_model::job_queue;
use mvm_model::{Instance, Job, State, Timestamp};

/// Returns whether the job waits for an instance.
pub(super) fn is_queued(job: &Job) -> bool {
    job.state == JobState::Queued
}

/// Returns whether the error passes once something else has ended, so that the job should wait.
pub(super) fn passes(error: &Error) -> bool {
    error.code().known().is_some_and(job_queue::waits_for)
}

/// Returns why the first job of a queue cannot get an instance now.
pub(super) fn obstacle(records: &RecordSet, job: &Job) -> Option<Error> {
    // The instance is never recorded, so its id need not be random, and its times are of no matter.
    let drawn: Vec<u32> = (0..=records.instances.len() as u32).collect();
    place(records, job, &drawn, Timestamp::EPOCH).err()
}

/// Returns the instance that a job gets at this time, if it may run: the one that is ready soonest,
/// or a new one.
pub(super) fn place(
    records: &RecordSet,
    job: &Job,
    drawn: &[u32],
    now: Timestamp,
) -> Result<Instance> {
    let pool = records.pool(&job.pool)?;
    let tenant = records.tenant(&job.pool.tenant)?;
    let revision = pool.current_revision().map(|revision| revision.digest);
    let fit = records.of_pool(&job.pool).filter(|i| cache::same(&i.caches, &pool.caches));
    let spare = choose(pool.recycle, revision, fit).cloned();
    let instance = match spare {
        Some(instance) => instance,
        None => new_instance(records, &job.pool, drawn, now)?,
    };
    let (usage, jobs) = (records.usage(&tenant.name), records.jobs.values());
    let usage = job_queue::usage_ahead(usage, &tenant.name, jobs, |id| records.instances.get(&id));
    admit_state(&tenant.name, &tenant.quotas, &usage, &instance, State::Running)?;
    Ok(instance)
}
