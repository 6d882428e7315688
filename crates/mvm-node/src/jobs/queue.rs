//! The records of jobs: made, queued, canceled, waited for, shown and forgotten.

use super::files::JobFiles;
use super::intake::Intake;
use super::job_channel::{JobChannel, JobSignal};
use super::placing::obstacle;
use crate::Result;
use crate::error::{InternalError, JobError, io};
use crate::locks::locked;
use crate::records::{RecordSet, Records, no_job};
use crate::shown::Shown;
use crate::state_dir::{StateDir, make_dir, remove_file, remove_tree};
use futures::{Stream, StreamExt};
use mvm_api::jobs::{JobFilter, JobView, SubmitJob};
use mvm_model::job::{self, JobState, Outcome};
use mvm_model::job_queue;
use mvm_model::{Fault, Job, JobId, Mib, PoolRef};
use mvm_server::Peer;
use std::collections::HashMap;
use std::sync::{Arc, Mutex as Lock};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

/// The maximum size of a job's inputs, in bytes.
const MAX_INPUTS: u64 = 16 << 30;

/// The jobs of the node.
pub(crate) struct Jobs {
    pub(super) records: Arc<Records>,
    pub(crate) files: JobFiles,
    /// The part of the disk that tenants' files may not take, in MiB; a fraction of the disk where
    /// absent.
    pub(super) reserve: Option<Mib>,
    channels: Lock<HashMap<JobId, Arc<JobChannel>>>,
    /// Whether the agent is stopping. Errors of jobs are no longer recorded then.
    stopping: watch::Sender<bool>,
    /// The bytes that are arriving for jobs.
    pub intake: Arc<Intake>,
}

impl Jobs {
    /// Makes the service for the jobs of these records, whose files are in this state directory.
    pub(crate) fn new(records: Arc<Records>, state_dir: StateDir, reserve: Option<Mib>) -> Jobs {
        let (files, channels, intake) = (JobFiles::new(state_dir), Lock::default(), Arc::default());
        Jobs { records, files, reserve, channels, stopping: watch::Sender::default(), intake }
    }

    /// Notes that the agent is stopping. Errors from now on come from the shutdown and not from
    /// jobs: the next agent resumes the jobs.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Returns a receiver that tells whether the agent is stopping.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Returns a job's channel.
    pub(crate) fn channel_of(&self, id: JobId) -> Arc<JobChannel> {
        locked(&self.channels).entry(id).or_default().clone()
    }

    pub(super) fn forget(&self, id: JobId) {
        if let Some(channel) = locked(&self.channels).remove(&id) {
            channel.bump();
        }
    }

    /// Changes a job's record and notifies its listeners. Returns the changed record.
    pub(super) async fn update(
        &self,
        id: JobId,
        change: impl FnOnce(&mut Job) -> std::result::Result<(), Fault>,
    ) -> Result<Job> {
        let job = self
            .records
            .change(|records, changes| {
                let mut job = records.job(id)?.clone();
                change(&mut job)?;
                changes.put_job(job.clone());
                Ok(job)
            })
            .await?;
        if job.state.has_ended() {
            self.files.forget_values(id).await;
        }
        self.channel_of(id).bump();
        Ok(job)
    }

    /// Records the result of a run. Never returns if the agent is stopping: the next agent finds
    /// the result.
    pub(super) async fn record(
        &self,
        id: JobId,
        change: impl FnOnce(&mut Job) -> std::result::Result<(), Fault>,
    ) -> Result<Job> {
        if self.is_stopping() {
            return std::future::pending().await;
        }
        self.update(id, change).await
    }

    /// Records a job of the pool, and queues it unless it must wait for its inputs.
    pub(crate) async fn create(
        &self,
        pool: &PoolRef,
        wanted: SubmitJob,
        holder: String,
    ) -> Result<JobView> {
        wanted.spec.validate()?;
        let id = JobId::from_number(u32::from_le_bytes(crate::random::random_bytes::<4>()?));
        crate::audit::note_job(id);
        make_dir(&self.files.dir(id), 0o700)?;
        let SubmitJob { spec, hold } = wanted;
        let clock = self.records.clock();
        let mut job = Job::new(id, pool.clone(), spec, holder, clock.now());
        let values = job.part_values();
        let kept = match job.values_apart {
            true => self.files.keep_values(id, values).await,
            false => Ok(()),
        };
        let recorded = self
            .records
            .change(|records, changes| {
                kept?;
                let record = records.pool(pool)?;
                if record.current_revision().is_none() {
                    return Err(crate::records::not_built(pool));
                }
                if records.jobs.contains_key(&id) {
                    return Err(InternalError::NoJobId.into());
                }
                let has = |name: &mvm_model::Name| {
                    record.caches.iter().any(|disk| disk.cache.name == *name)
                };
                if let Some(name) = job.spec.cache_commit.iter().find(|name| !has(name)) {
                    return Err(crate::caches::no_cache(pool, name));
                }
                let limit = records.tenant(&pool.tenant)?.quotas.max_queued_jobs;
                job::admit(pool, limit, records.jobs_of(pool))?;
                let mut job = job;
                if !hold {
                    job.queue(next_number(records), clock.now())?;
                }
                changes.put_job(job.clone());
                Ok(job)
            })
            .await;
        // A refused job's directory is removed now, and a killed agent's leftovers at the next
        // start.
        let job = match recorded {
            Ok(job) => job,
            Err(error) => {
                remove_tree(self.files.dir(id)).await?;
                return Err(error);
            }
        };
        Ok(JobView::from(&job).shown(clock))
    }

    /// Receives a job's inputs: a tar archive whose entries are below the guest's root.
    pub(crate) async fn take_inputs<E: std::fmt::Display>(
        &self,
        id: JobId,
        mut body: impl Stream<Item = std::result::Result<axum::body::Bytes, E>> + Unpin,
    ) -> Result<()> {
        self.records.read(|records| preparing(records, id))?;
        let mut arrival = self.arrival(id).await?;
        // The name is unique, because a client whose connection broke sends all inputs again while
        // the agent may still have the first upload open.
        let early = format!("inputs.{}.new", crate::random::hex_digits(4)?);
        let (path, early) = (self.files.inputs(id), self.files.dir(id).join(early));
        let failed = |e| io(format!("write {}", early.display()), e);
        let take = async {
            let mut file = tokio::fs::File::create(&early).await.map_err(failed)?;
            let mut taken = 0;
            while let Some(piece) = body.next().await {
                let piece =
                    piece.map_err(|cause| JobError::InputsBrokeOff { cause: cause.to_string() })?;
                taken += piece.len() as u64;
                if taken > MAX_INPUTS {
                    return Err(JobError::InputsTooLarge { gib: MAX_INPUTS >> 30 }.into());
                }
                arrival.room_for(piece.len() as u64)?;
                file.write_all(&piece).await.map_err(failed)?;
                arrival.count(piece.len() as u64);
            }
            file.flush().await.map_err(failed)?;
            // The inputs of a job that was queued in the meantime must not be replaced.
            self.records.read(|records| preparing(records, id))
        };
        if let Err(error) = take.await {
            remove_file(&early)?;
            return Err(error);
        }
        tokio::fs::rename(&early, &path).await.map_err(failed)
    }

    /// Queues a job that has its inputs.
    pub(crate) async fn queue(&self, id: JobId, attached: bool) -> Result<Job> {
        let inputs = self.files.inputs(id);
        // After a power cut an attached job has lost its client and ends; any other job survives.
        if !attached && let Ok(file) = tokio::fs::File::open(&inputs).await {
            file.sync_all().await.map_err(|e| io(format!("write {}", inputs.display()), e))?;
        }
        let job = self
            .records
            .change(|records, changes| {
                let mut job = records.job(id)?.clone();
                job.queue(next_number(records), self.records.clock().now())?;
                job.attached = attached;
                changes.put_job(job.clone());
                Ok(job)
            })
            .await?;
        self.channel_of(id).bump();
        Ok(job)
    }

    /// Cancels a job: a waiting job ends at once, and a running job gets a signal and a moment to
    /// end.
    pub(crate) async fn cancel(&self, id: JobId, why: &str) -> Result<Job> {
        let job = self
            .update(id, |job| match job.state {
                JobState::Preparing | JobState::Queued => {
                    job.end(Outcome::because(JobState::Canceled, why), self.records.clock().now())
                }
                state if state.has_ended() => Ok(()),
                _ => {
                    job.cancel_requested = true;
                    Ok(())
                }
            })
            .await?;
        self.channel_of(id).send(JobSignal::Cancel);
        if job.state.has_ended() {
            remove_file(&self.files.inputs(id))?;
        }
        Ok(job)
    }

    /// Waits until a job has ended, and returns it.
    pub(crate) async fn ended(&self, id: JobId) -> Result<Job> {
        self.records.read(|records| records.job(id).map(drop))?;
        let mut changed = self.channel_of(id).changed.subscribe();
        loop {
            changed.borrow_and_update();
            let job = self.records.read(|records| records.job(id).cloned())?;
            if job.state.has_ended() {
                return Ok(job);
            }
            if changed.changed().await.is_err() {
                return Err(InternalError::ChannelCleared.into());
            }
        }
    }

    /// Passes a signal on to the command. A job that does not run yet is canceled.
    pub(crate) async fn signal(&self, id: JobId, signal: i32) -> Result<()> {
        let runs =
            self.records.read(|records| records.job(id).map(|job| job.state == JobState::Running));
        if runs? {
            self.channel_of(id).send(JobSignal::Signal(signal));
            return Ok(());
        }
        self.cancel(id, "interrupted").await.map(drop)
    }

    /// Returns the id of the job that a caller names. Jobs of other tenants are not found.
    pub(crate) fn visible_to(&self, peer: &Peer, id: &str) -> Result<JobId> {
        let id: JobId = id.parse()?;
        let seen =
            self.records.read(|records| records.job(id).map(|job| peer.sees(&job.pool.tenant)))?;
        if seen { Ok(id) } else { Err(no_job(id)) }
    }

    /// Returns a job in the API's form.
    pub(crate) fn view(&self, id: JobId) -> Result<JobView> {
        let view = |records: &RecordSet| records.job(id).map(|job| view_of(records, job));
        Ok(self.records.read(view)?.shown(self.records.clock()))
    }

    /// Returns the jobs that match a filter, oldest first. Their times are those of the timeline,
    /// because a list's cursor is made of them.
    pub(crate) fn views(&self, filter: &JobFilter) -> Vec<JobView> {
        let takes = |job: &&Job| {
            filter.tenant.as_ref().is_none_or(|tenant| job.pool.tenant == *tenant)
                && filter.pool.as_ref().is_none_or(|pool| job.pool == *pool)
                && filter.state.is_none_or(|state| job.state == state)
        };
        self.records.read(|records| {
            let mut jobs: Vec<&Job> = records.jobs.values().filter(takes).collect();
            jobs.sort_by_key(|job| (job.created_at, job.number));
            let mut views: Vec<JobView> = jobs.into_iter().map(JobView::from).collect();
            let mut places = HashMap::new();
            for pool in records.pools.keys() {
                let queue = job_queue::queue(records.jobs_of(pool));
                places.extend(queue.iter().enumerate().map(|(index, job)| (job.id, index + 1)));
            }
            views.iter_mut().for_each(|view| view.position = places.get(&view.job_id).copied());
            views
        })
    }

    /// Forgets jobs that ended long ago, and cancels those whose inputs never came.
    pub(crate) async fn tidy(&self) -> Result<()> {
        let now = self.records.clock().now();
        let (old, stuck) = self.records.read(|records| {
            let pools = records.pools.keys();
            let old = pools.flat_map(|pool| job::forgotten(records.jobs_of(pool), now));
            (old.collect::<Vec<_>>(), job::abandoned(records.jobs.values(), now))
        });
        for id in stuck {
            self.cancel(id, "its inputs never came").await?;
        }
        self.forget_all(&old).await
    }

    /// Removes the records first: files without a record are removed at the next start.
    async fn forget_all(&self, ids: &[JobId]) -> Result<()> {
        self.records
            .change(|_, changes| {
                ids.iter().for_each(|id| changes.remove_job(*id));
                Ok(())
            })
            .await?;
        self.clear_away(ids).await
    }

    /// Removes the files of jobs whose records are gone.
    pub(crate) async fn clear_away(&self, ids: &[JobId]) -> Result<()> {
        for id in ids {
            self.forget(*id);
            remove_tree(self.files.dir(*id)).await?;
        }
        Ok(())
    }

    /// Cancels the jobs of a pool that is about to be destroyed, and waits for their end.
    pub(crate) async fn cancel_of(&self, pool: &PoolRef) -> Result<()> {
        let live = |records: &RecordSet| -> Vec<JobId> {
            let jobs = records.jobs_of(pool).filter(|job| !job.state.has_ended());
            jobs.map(|job| job.id).collect()
        };
        let ids = self.records.read(live);
        for id in &ids {
            self.cancel(*id, "its pool was destroyed").await?;
        }
        for id in ids {
            self.ended(id).await?;
        }
        Ok(())
    }
}

fn preparing(records: &RecordSet, id: JobId) -> Result<()> {
    match records.job(id)?.state {
        JobState::Preparing => Ok(()),
        state => Err(JobError::InputsTooLate { id, state }.into()),
    }
}

/// Returns a number higher than that of any job of the node.
fn next_number(records: &RecordSet) -> u64 {
    records.jobs.values().map(|job| job.number).max().unwrap_or(0) + 1
}

fn view_of(records: &RecordSet, job: &Job) -> JobView {
    let mut view = JobView::from(job);
    if job.state == JobState::Queued {
        let queue = job_queue::queue(records.jobs_of(&job.pool));
        view.position = queue.iter().position(|other| other.id == job.id).map(|index| index + 1);
    }
    if view.position == Some(1) {
        view.waits_for = obstacle(records, job).map(|error| error.detail());
    }
    view
}
