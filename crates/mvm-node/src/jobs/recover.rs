//! Recovers jobs when an agent starts: a command that a guest keeps is resumed, other jobs are
//! queued again or lost.

use super::attach::AWAY;
use super::dispatcher::Dispatcher;
use super::job_channel::JobSignal;
use super::run::run;
use crate::Result;
use crate::blocking::{blocking, paths_in};
use crate::records::RecordSet;
use crate::state_dir::{remove_file, remove_tree};
use mvm_model::job::Found;
use mvm_model::lease::Purpose;
use mvm_model::{Instance, Job, JobId, JobState, State};
use std::path::Path;
use std::sync::Arc;

impl Dispatcher {
    /// Recovers, once machines are as their records say, the jobs that the last agent was running.
    /// Removes files that belong to no job.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<()> {
        self.part_values().await?;
        self.records
            .change(|records, changes| {
                for job in records.jobs.values() {
                    let mut job = job.clone();
                    if job.recover(found(records, &job), self.records.clock().now())? {
                        tracing::info!(job = %job.id, state = %job.state, "recovered");
                        changes.put_job(job);
                    }
                }
                Ok(())
            })
            .await?;
        self.clear_files().await?;
        let live = |job: &&Job| !job.state.has_ended();
        let jobs: Vec<Job> =
            self.records.read(|records| records.jobs.values().filter(live).cloned().collect());
        for job in jobs {
            if job.state == JobState::Running {
                self.resume_command(&job);
            }
            if job.attached {
                tokio::spawn(await_client(self.clone(), job.id));
            }
        }
        Ok(())
    }

    /// Moves values out of records of earlier versions, and scrubs the database of old copies of
    /// those records.
    async fn part_values(&self) -> Result<()> {
        let has = |job: &&Job| !job.values_apart && job.spec.env.values().any(|v| !v.is_empty());
        let old: Vec<Job> =
            self.records.read(|records| records.jobs.values().filter(has).cloned().collect());
        if old.is_empty() {
            return Ok(());
        }
        for job in old.iter().filter(|job| !job.state.has_ended()) {
            self.jobs.files.keep_values(job.id, job.spec.env.clone()).await?;
        }
        self.records
            .change(|_, changes| {
                for mut job in old {
                    job.part_values();
                    changes.put_job(job);
                }
                Ok(())
            })
            .await?;
        self.records.store().scrub().await?;
        Ok(())
    }

    /// Resumes a command that runs.
    fn resume_command(self: &Arc<Self>, job: &Job) {
        let Some(id) = job.runs_in() else { return };
        let Ok(instance) = self.records.read(|records| records.by_id(id).cloned()) else { return };
        tracing::info!(job = %job.id, instance = %instance.reference(), "taken up again");
        let channel = self.jobs.channel_of(job.id);
        let signals = channel.listen();
        if job.cancel_requested {
            channel.send(JobSignal::Cancel);
        }
        tokio::spawn(run(self.clone(), job.id, instance, signals, true));
    }

    /// Removes the files that belong to no job.
    async fn clear_files(&self) -> Result<()> {
        let all = self.jobs.files.all();
        for dir in blocking(move || Ok(paths_in(&all))).await? {
            let id = dir.file_name().and_then(|name| name.to_str()).and_then(|n| n.parse().ok());
            let Some(id) = id else { continue };
            match self.records.read(|records| records.jobs.get(&id).map(|job| job.state)) {
                None => {
                    remove_tree(dir).await?;
                    continue;
                }
                Some(state) if state.has_ended() => {
                    self.jobs.files.forget_values(id).await;
                    remove_file(&self.jobs.files.inputs(id))?;
                }
                Some(_) => {}
            }
            blocking(move || remove_partial_files(&dir)).await?;
        }
        Ok(())
    }
}

/// Returns the state of the machine that a job's command runs in.
fn found(records: &RecordSet, job: &Job) -> Found {
    let leased = |i: &Instance| i.lease.as_ref().is_some_and(|l| l.purpose == Purpose::Run);
    let runs = |i: &&Instance| i.state == State::Running && leased(i);
    let machine = job.runs_in().and_then(|id| records.instances.get(&id)).filter(runs);
    if machine.is_some() { Found::Runs } else { Found::Gone }
}

/// Waits for the client of the last agent to come back. If it does not, the job ends.
async fn await_client(dispatcher: Arc<Dispatcher>, id: JobId) {
    let mut clients = dispatcher.jobs.channel_of(id).clients.subscribe();
    if tokio::time::timeout(AWAY, clients.wait_for(|clients| *clients > 0)).await.is_err() {
        dispatcher.jobs.end_with_client(id, "the client that followed it did not come back").await;
    }
}

/// Removes files that were being received when the last agent was killed.
fn remove_partial_files(dir: &Path) -> Result<()> {
    let halves = paths_in(dir).into_iter();
    halves
        .filter(|path| path.extension().is_some_and(|e| e == "new"))
        .try_for_each(|p| remove_file(&p))
}
