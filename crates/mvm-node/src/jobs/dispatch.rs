//! Gives instances to queued jobs.

use super::dispatcher::Dispatcher;
use super::placing::{is_queued, passes, place};
use super::run::run;
use crate::Result;
use crate::instances::draw_ids;
use crate::lease_request::LeaseRequest;
use mvm_model::Job;
use mvm_model::job::{JobState, Outcome};
use mvm_model::job_queue::heads;
use mvm_model::lease::Purpose;
use std::sync::Arc;
use std::time::Duration;

/// The period at which ended jobs are tidied up.
const PERIOD: Duration = Duration::from_secs(60);
/// The pause before another try after an error of this host, such as a full disk.
const RETRY: Duration = Duration::from_secs(1);

/// Gives instances to jobs whenever the records have changed, until the task is aborted.
pub(crate) async fn dispatch(dispatcher: Arc<Dispatcher>) {
    let mut tidy = tokio::time::interval(PERIOD);
    let mut changed = dispatcher.records.subscribe();
    loop {
        let failed = loop {
            match assign(&dispatcher).await {
                Ok(true) => {}
                Ok(false) => break false,
                Err(error) => {
                    tracing::error!("cannot give a job an instance: {error}");
                    break true;
                }
            }
        };
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
            _ = tidy.tick() => {
                if let Err(error) = dispatcher.jobs.tidy().await {
                    tracing::warn!("cannot tidy the jobs up: {error}");
                }
            }
        }
    }
}

/// Gives one job an instance, or ends a job that can never get one. Returns whether there was such
/// a job.
async fn assign(dispatcher: &Arc<Dispatcher>) -> Result<bool> {
    if !dispatcher.records.read(|records| records.jobs.values().any(is_queued)) {
        return Ok(false);
    }
    let drawn = draw_ids()?;
    let assigned = dispatcher
        .records
        .change(|records, changes| {
            let now = dispatcher.records.clock().now();
            for job in heads(records.jobs.values()) {
                let mut job = job.clone();
                match place(records, &job, &drawn, now) {
                    Ok(mut instance) => {
                        job.assign(instance.reference(), instance.state, now)?;
                        instance.lease = Some(request(&job).lease(now)?);
                        instance.leases_served += 1;
                        changes.put_instance(instance.clone());
                        changes.put_job(job.clone());
                        return Ok(Some((job.id, Some(instance))));
                    }
                    Err(error) if passes(&error) => {}
                    Err(error) => {
                        let outcome = Outcome::because(JobState::Failed, error.to_string());
                        job.end(outcome, now)?;
                        changes.put_job(job.clone());
                        return Ok(Some((job.id, None)));
                    }
                }
            }
            Ok(None)
        })
        .await?;
    let Some((id, instance)) = assigned else { return Ok(false) };
    let channel = dispatcher.jobs.channel_of(id);
    if instance.is_none() {
        dispatcher.jobs.files.forget_values(id).await;
    }
    if let Some(instance) = instance {
        // Listens before the job is visible as starting, so that no signal is lost.
        let signals = channel.listen();
        dispatcher.wake.notify();
        tokio::spawn(run(dispatcher.clone(), id, instance, signals, false));
    }
    channel.bump();
    Ok(true)
}

/// Returns the lease that a job takes, which lasts as long as the job.
fn request(job: &Job) -> LeaseRequest {
    LeaseRequest {
        holder: format!("{} {}", job.holder, job.id),
        purpose: Purpose::Run,
        lease_s: job.spec.lease_s,
    }
}
