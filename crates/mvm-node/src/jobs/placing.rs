//! Which job is next, and which instance it gets: decided by the records alone.

use crate::Result;
use crate::instances::new_instance;
use crate::records::World;
use mvm_api::Problem;
use mvm_model::admission::admit_state;
use mvm_model::cache;
use mvm_model::choose::choose;
use mvm_model::job::{self, JobState};
use mvm_model::{Code, Instance, Job, Name, State, Usage};
use std::collections::BTreeSet;

/// Whether the job waits for an instance.
pub(super) fn is_queued(job: &Job) -> bool {
    job.state == JobState::Queued
}

/// The first of each pool's queue, in the order of all of them together.
pub(super) fn heads(world: &World) -> Vec<&Job> {
    let mut queued: Vec<&Job> = world.jobs.values().filter(|job| is_queued(job)).collect();
    queued.sort_by_key(|job| job::order(job));
    let mut seen = BTreeSet::new();
    queued.retain(|job| seen.insert(&job.pool));
    queued
}

/// Whether it will be otherwise once something else has ended.
pub(super) fn passes(problem: &Problem) -> bool {
    problem.code.is_one_of(&[Code::QuotaExceeded, Code::SubnetFull])
}

/// What keeps the first of a queue from getting an instance now.
pub(super) fn obstacle(world: &World, job: &Job) -> Option<Problem> {
    // An instance that is only thought of needs no random id.
    let drawn: Vec<u32> = (0..=world.instances.len() as u32).collect();
    place(world, job, &drawn).err()
}

/// The instance that a job gets: the readiest there is, or a new one, if it may run.
pub(super) fn place(world: &World, job: &Job, drawn: &[u32]) -> Result<Instance> {
    let pool = world.pool(&job.pool)?;
    let tenant = world.tenant(&job.pool.tenant)?;
    let revision = pool.current_revision().map_or("", |revision| &revision.digest);
    let fit = world.of_pool(&job.pool).filter(|i| cache::same(&i.caches, &pool.caches));
    let spare = choose(pool.recycle, revision, fit).cloned();
    let instance = match spare {
        Some(instance) => instance,
        None => new_instance(world, &job.pool, drawn)?,
    };
    let usage = usage_ahead(world, &tenant.name);
    admit_state(&tenant.name, &tenant.quotas, &usage, &instance, State::Running)?;
    Ok(instance)
}

/// What the tenant uses when all machines that jobs have been given run.
fn usage_ahead(world: &World, tenant: &Name) -> Usage {
    let starting = world.jobs.values().filter(|job| job.state == JobState::Starting);
    let machines = starting.filter(|job| job.pool.tenant == *tenant).filter_map(|job| {
        let attempt = job.attempts.last()?;
        world.instances.get(&attempt.instance.id)
    });
    machines.fold(world.usage(tenant), |usage, machine| usage.after(machine, State::Running))
}
