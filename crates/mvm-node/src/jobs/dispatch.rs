//! Which job gets an instance next.

use super::run::run;
use crate::instances::{draw_ids, new_instance};
use crate::lease_request::LeaseRequest;
use crate::node::Node;
use crate::records::World;
use crate::{Result, now};
use mvm_api::Problem;
use mvm_model::admission::admit_state;
use mvm_model::cache;
use mvm_model::choose::choose;
use mvm_model::job::{self, JobState, Outcome};
use mvm_model::lease::Purpose;
use mvm_model::{Instance, Job, Name, State, Usage};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How often ended jobs are looked over.
const PERIOD: Duration = Duration::from_secs(60);
/// When it is tried again after a fault of this machine's, such as a full disk.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the task is ended: gives instances to jobs whenever anything has changed.
pub(crate) async fn dispatch(node: Arc<Node>) {
    let mut tidy = tokio::time::interval(PERIOD);
    let mut changed = node.records.subscribe();
    loop {
        let failed = loop {
            match assign(&node).await {
                Ok(true) => {}
                Ok(false) => break false,
                Err(problem) => {
                    tracing::error!("cannot give a job an instance: {problem}");
                    break true;
                }
            }
        };
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
            _ = tidy.tick() => {
                if let Err(problem) = node.tidy_jobs().await {
                    tracing::warn!("cannot tidy the jobs up: {problem}");
                }
            }
        }
    }
}

/// Gives one job an instance, or finds that it never gets one; whether there was such a job.
async fn assign(node: &Arc<Node>) -> Result<bool> {
    if !node.records.read(|world| world.jobs.values().any(is_queued)) {
        return Ok(false);
    }
    let drawn = draw_ids()?;
    let assigned = node
        .records
        .change(|world, changes| {
            for job in heads(world) {
                let mut job = job.clone();
                match place(world, &job, &drawn) {
                    Ok(mut instance) => {
                        job.assign(instance.reference(), instance.state, now())?;
                        instance.lease = Some(wish(&job).lease()?);
                        instance.leases_served += 1;
                        changes.put_instance(instance.clone());
                        changes.put_job(job.clone());
                        return Ok(Some((job.id, Some(instance))));
                    }
                    Err(problem) if passes(&problem) => {}
                    Err(problem) => {
                        let outcome = Outcome::because(JobState::Failed, problem.to_string());
                        job.end(outcome, now())?;
                        changes.put_job(job.clone());
                        return Ok(Some((job.id, None)));
                    }
                }
            }
            Ok(None)
        })
        .await?;
    let Some((id, instance)) = assigned else { return Ok(false) };
    let desk = node.jobs.desk(id);
    if instance.is_none() {
        node.forget_values(id).await;
    }
    if let Some(instance) = instance {
        // Before anybody can see that it starts.
        let words = desk.listen();
        node.wake.notify();
        tokio::spawn(run(node.clone(), id, instance, words, false));
    }
    desk.bump();
    Ok(true)
}

fn is_queued(job: &Job) -> bool {
    job.state == JobState::Queued
}

/// The first of each pool's queue, in the order of all of them together.
fn heads(world: &World) -> Vec<&Job> {
    let mut queued: Vec<&Job> = world.jobs.values().filter(|job| is_queued(job)).collect();
    queued.sort_by_key(|job| job::order(job));
    let mut seen = BTreeSet::new();
    queued.retain(|job| seen.insert(&job.pool));
    queued
}

/// Whether it will be otherwise once something else has ended.
pub(super) fn passes(problem: &Problem) -> bool {
    matches!(&*problem.code, "quota_exceeded" | "subnet_full")
}

/// What keeps the first of a queue from getting an instance now.
pub(super) fn obstacle(world: &World, job: &Job) -> Option<Problem> {
    // An instance that is only thought of needs no random id.
    let drawn: Vec<u32> = (0..=world.instances.len() as u32).collect();
    place(world, job, &drawn).err()
}

/// The instance that a job gets: the readiest there is, or a new one, if it may run.
fn place(world: &World, job: &Job, drawn: &[u32]) -> Result<Instance> {
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

/// The lease that a job takes: it lasts as long as the job.
fn wish(job: &Job) -> LeaseRequest {
    LeaseRequest {
        holder: format!("{} {}", job.holder, job.id),
        purpose: Purpose::Run,
        lease_s: job.spec.lease_s,
    }
}
