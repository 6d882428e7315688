//! Which job is next, and which instance it gets: decided by the records alone.

use crate::Result;
use crate::instances::new_instance;
use crate::records::RecordSet;
use mvm_api::Problem;
use mvm_model::admission::admit_state;
use mvm_model::cache;
use mvm_model::choose::choose;
use mvm_model::job::JobState;
use mvm_model::job_queue;
use mvm_model::{Instance, Job, State};

/// Whether the job waits for an instance.
pub(super) fn is_queued(job: &Job) -> bool {
    job.state == JobState::Queued
}

/// Whether it will be otherwise once something else has ended.
pub(super) fn passes(problem: &Problem) -> bool {
    problem.code.known().is_some_and(job_queue::waits_for)
}

/// What keeps the first of a queue from getting an instance now.
pub(super) fn obstacle(world: &RecordSet, job: &Job) -> Option<Problem> {
    // An instance that is only thought of needs no random id.
    let drawn: Vec<u32> = (0..=world.instances.len() as u32).collect();
    place(world, job, &drawn).err()
}

/// The instance that a job gets: the readiest there is, or a new one, if it may run.
pub(super) fn place(world: &RecordSet, job: &Job, drawn: &[u32]) -> Result<Instance> {
    let pool = world.pool(&job.pool)?;
    let tenant = world.tenant(&job.pool.tenant)?;
    let revision = pool.current_revision().map_or("", |revision| &revision.digest);
    let fit = world.of_pool(&job.pool).filter(|i| cache::same(&i.caches, &pool.caches));
    let spare = choose(pool.recycle, revision, fit).cloned();
    let instance = match spare {
        Some(instance) => instance,
        None => new_instance(world, &job.pool, drawn)?,
    };
    let (usage, jobs) = (world.usage(&tenant.name), world.jobs.values());
    let usage = job_queue::usage_ahead(usage, &tenant.name, jobs, |id| world.instances.get(&id));
    admit_state(&tenant.name, &tenant.quotas, &usage, &instance, State::Running)?;
    Ok(instance)
}
