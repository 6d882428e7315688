//! Which job gets an instance next.

use crate::admission::Usage;
use crate::id::InstanceId;
use crate::instance::Instance;
use crate::job::{Job, JobState};
use crate::name::Name;
use crate::state::State;
use mvm_code::Code;
use std::collections::BTreeSet;
use std::time::Duration;

/// How much longer than another job one must have waited to come level with it if its
/// priority is lower by 1.
pub const PRIORITY_STEP: Duration = Duration::from_secs(60);

/// Returns the key by which a queue is ordered, smallest first.
///
/// Each step of priority counts as much as a minute of waiting, so a job waits for a bounded time behind those that
/// keep coming with higher priorities. All jobs age alike, so the order of two does not depend on when one looks.
/// Of two equal jobs the older one is first.
pub fn order(job: &Job) -> impl Ord + use<> {
    let queued_at = i128::from(job.queued_at.unwrap_or(job.created_at).as_millis());
    let ahead = i128::from(job.spec.priority) * PRIORITY_STEP.as_millis() as i128;
    (queued_at - ahead, job.number)
}

/// Returns the queued ones of `jobs` in the order in which they get instances.
pub fn queue<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Vec<&'a Job> {
    let queued = jobs.into_iter().filter(|job| job.state == JobState::Queued);
    let mut queued: Vec<&Job> = queued.collect();
    queued.sort_by_key(|job| order(job));
    queued
}

/// Returns the first job of each pool's queue, in the order of all of them together.
///
/// Only the first of a queue is looked at: if it has to wait, those behind it in its pool wait too.
pub fn heads<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Vec<&'a Job> {
    let mut heads = queue(jobs);
    let mut seen = BTreeSet::new();
    heads.retain(|job| seen.insert(&job.pool));
    heads
}

/// Returns whether a job that is refused an instance for this reason waits on, because the reason passes when
/// something else has ended.
pub fn waits_for(code: Code) -> bool {
    matches!(code, Code::QuotaExceeded | Code::SubnetFull)
}

/// Returns what the tenant uses when all machines run that starting jobs have been given.
pub fn usage_ahead<'a>(
    usage: Usage,
    tenant: &Name,
    jobs: impl IntoIterator<Item = &'a Job>,
    instance: impl Fn(InstanceId) -> Option<&'a Instance>,
) -> Usage {
    let starting = jobs.into_iter().filter(|job| job.state == JobState::Starting);
    let machines = starting
        .filter(|job| job.pool.tenant == *tenant)
        .filter_map(|job| instance(job.attempts.last()?.instance.id));
    machines.fold(usage, |usage, machine| usage.after(machine, State::Running))
}
