//! Jobs: recorded, queued, given an instance, run, and kept for a while.
//!
//! A job's record says how far it may have come: `running` is durable before its command begins, so
//! that no agent begins it a second time by mistake. What lies in memory only (who listens, whom
//! to tell of a signal) is one [`Desk`] a job.

mod attach;
mod command;
mod dispatch;
mod harvest;
mod intake;
mod limit;
mod log;
mod recover;
mod run;
#[cfg(test)]
mod tests;
mod values;

pub(crate) use attach::Attached;
pub(crate) use dispatch::dispatch;
pub(crate) use log::Follow;

use crate::clock::Shown;
use crate::locks::locked;
use crate::node::Node;
use crate::problem::io;
use crate::records::{World, no_job};
use crate::state_dir::{make_dir, remove_dir, remove_file};
use crate::{Result, now};
use futures::{Stream, StreamExt};
use mvm_api::jobs::{JobFilter, JobView, SubmitJob};
use mvm_api::{Peer, Problem};
use mvm_guest::frame::Frame;
use mvm_model::job::{self, JobState, Outcome};
use mvm_model::{Fault, Job, JobId, PoolRef};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as Lock};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Mutex, mpsc, watch};

/// The most that the inputs of a job may have, in bytes.
const MAX_INPUTS: u64 = 16 << 30;

/// What a running job is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Pass this signal on to the command.
    Signal(i32),
    /// End.
    Cancel,
}

/// What is known of the jobs in memory only.
#[derive(Default)]
pub(crate) struct Jobs {
    desks: Lock<HashMap<JobId, Arc<Desk>>>,
    /// The agent ends: nothing that breaks now is recorded.
    stopping: watch::Sender<bool>,
    /// What is arriving for jobs.
    pub intake: Arc<intake::Intake>,
}

/// Who listens to a job, and how it is told something.
#[derive(Default)]
pub(crate) struct Desk {
    /// Its record or its log has changed.
    changed: watch::Sender<()>,
    words: Lock<Option<mpsc::UnboundedSender<Word>>>,
    /// The client that it is attached to gets its output as it comes.
    client: Lock<Option<mpsc::Sender<Frame>>>,
    /// Counts the clients: one that comes takes the place of the one before.
    clients: watch::Sender<u64>,
    /// Held while output is written and while a client comes: it gets all of it, and nothing twice.
    turn: Mutex<()>,
}

impl Desk {
    fn bump(&self) {
        self.changed.send_replace(());
    }

    /// Where output goes besides the log.
    fn client(&self) -> Option<mpsc::Sender<Frame>> {
        locked(&self.client).clone()
    }

    /// What is said to the job, from now on.
    fn listen(&self) -> mpsc::UnboundedReceiver<Word> {
        let (words, heard) = mpsc::unbounded_channel();
        *locked(&self.words) = Some(words);
        heard
    }

    /// Tells the job something, if it runs.
    pub(crate) fn tell(&self, word: Word) {
        if let Some(words) = &*locked(&self.words) {
            let _ = words.send(word);
        }
    }
}

impl Jobs {
    /// The agent is about to end. What breaks from now on, since its parts are taken down, says
    /// nothing of jobs: the next agent takes them up again.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Tells when the agent ends.
    fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// A job's desk.
    pub(crate) fn desk(&self, id: JobId) -> Arc<Desk> {
        locked(&self.desks).entry(id).or_default().clone()
    }

    fn forget(&self, id: JobId) {
        if let Some(desk) = locked(&self.desks).remove(&id) {
            desk.bump();
        }
    }
}

impl Node {
    pub(crate) fn job_dir(&self, id: JobId) -> PathBuf {
        self.parts.root.jobs().join(id.to_string())
    }

    fn inputs_of(&self, id: JobId) -> PathBuf {
        self.job_dir(id).join("inputs.tar")
    }

    pub(crate) fn log_of(&self, id: JobId) -> PathBuf {
        self.job_dir(id).join("log")
    }

    /// Where the archive of one of a job's artifacts lies.
    pub(crate) fn artifact_of(&self, id: JobId, index: usize) -> PathBuf {
        self.job_dir(id).join(format!("artifact-{index}.tar"))
    }

    /// Changes a job's record and tells those who listen. Gives the record as it is then.
    async fn update_job(
        &self,
        id: JobId,
        change: impl FnOnce(&mut Job) -> std::result::Result<(), Fault>,
    ) -> Result<Job> {
        let job = self
            .records
            .change(|world, changes| {
                let mut job = world.job(id)?.clone();
                change(&mut job)?;
                changes.put_job(job.clone());
                Ok(job)
            })
            .await?;
        if job.state.has_ended() {
            self.forget_values(id).await;
        }
        self.jobs.desk(id).bump();
        Ok(job)
    }

    /// Records what became of a run, unless the agent ends: then it is the next one's to find out.
    async fn record_job(
        &self,
        id: JobId,
        change: impl FnOnce(&mut Job) -> std::result::Result<(), Fault>,
    ) -> Result<Job> {
        if self.jobs.is_stopping() {
            return std::future::pending().await;
        }
        self.update_job(id, change).await
    }

    /// Records a job of the pool, and queues it unless it is to wait for its inputs.
    pub(crate) async fn create_job(
        &self,
        pool: &PoolRef,
        wanted: SubmitJob,
        holder: String,
    ) -> Result<JobView> {
        wanted.spec.validate()?;
        let id = JobId::from_number(u32::from_le_bytes(crate::random::random_bytes::<4>()?));
        crate::audit::note_job(id);
        make_dir(&self.job_dir(id), 0o700)?;
        let SubmitJob { spec, hold } = wanted;
        let mut job = Job::new(id, pool.clone(), spec, holder, now());
        let values = job.part_values();
        let kept = match job.values_apart {
            true => self.keep_values(id, values).await,
            false => Ok(()),
        };
        let recorded = self
            .records
            .change(|world, changes| {
                kept?;
                let record = world.pool(pool)?;
                if record.current_revision().is_none() {
                    return Err(crate::records::not_built(pool));
                }
                if world.jobs.contains_key(&id) {
                    return Err(Problem::internal("no free job id was drawn"));
                }
                let has = |name: &mvm_model::Name| {
                    record.caches.iter().any(|disk| disk.cache.name == *name)
                };
                if let Some(name) = job.spec.cache_commit.iter().find(|name| !has(name)) {
                    return Err(crate::caches::no_cache(pool, name));
                }
                let limit = world.tenant(&pool.tenant)?.quotas.max_queued_jobs;
                job::admit(pool, limit, world.jobs_of(pool))?;
                let mut job = job;
                if !hold {
                    job.queue(next_number(world), now())?;
                }
                changes.put_job(job.clone());
                Ok(job)
            })
            .await;
        // The directory of a job that was refused goes at once; what a killed agent left, at start.
        let job = match recorded {
            Ok(job) => job,
            Err(problem) => {
                remove_dir(&self.job_dir(id))?;
                return Err(problem);
            }
        };
        Ok(JobView::from(&job).shown())
    }

    /// Takes a job's inputs in: a tar archive whose entries are below the guest's root.
    pub(crate) async fn take_inputs<E: std::fmt::Display>(
        &self,
        id: JobId,
        mut body: impl Stream<Item = std::result::Result<axum::body::Bytes, E>> + Unpin,
    ) -> Result<()> {
        self.records.read(|world| preparing(world, id))?;
        let mut arrival = self.arrival(id).await?;
        // A name of its own: a client whose connection broke sends all anew while the agent may still
        // hold on to the first upload.
        let early = format!("inputs.{}.new", crate::random::hex_digits(4)?);
        let (path, early) = (self.inputs_of(id), self.job_dir(id).join(early));
        let failed = |e| io(format!("write {}", early.display()), e);
        let take = async {
            let mut file = tokio::fs::File::create(&early).await.map_err(failed)?;
            let mut taken = 0;
            while let Some(piece) = body.next().await {
                let piece = piece.map_err(|cause| {
                    Problem::new(400, "inputs_incomplete", format!("the inputs broke off: {cause}"))
                })?;
                taken += piece.len() as u64;
                if taken > MAX_INPUTS {
                    let what = format!("the inputs have over {} GiB", MAX_INPUTS >> 30);
                    return Err(Problem::new(413, "invalid_value", what));
                }
                arrival.room_for(piece.len() as u64)?;
                file.write_all(&piece).await.map_err(failed)?;
                arrival.count(piece.len() as u64);
            }
            file.flush().await.map_err(failed)?;
            // Not under the hands of one that was queued meanwhile.
            self.records.read(|world| preparing(world, id))
        };
        if let Err(problem) = take.await {
            remove_file(&early)?;
            return Err(problem);
        }
        tokio::fs::rename(&early, &path).await.map_err(failed)
    }

    /// Queues a job that has its inputs.
    pub(crate) async fn queue_job(&self, id: JobId, attached: bool) -> Result<Job> {
        let inputs = self.inputs_of(id);
        // One that is attached is gone with its client after a power cut; others are not.
        if !attached && let Ok(file) = tokio::fs::File::open(&inputs).await {
            file.sync_all().await.map_err(|e| io(format!("write {}", inputs.display()), e))?;
        }
        let job = self
            .records
            .change(|world, changes| {
                let mut job = world.job(id)?.clone();
                job.queue(next_number(world), now())?;
                job.attached = attached;
                changes.put_job(job.clone());
                Ok(job)
            })
            .await?;
        self.jobs.desk(id).bump();
        Ok(job)
    }

    /// Ends a job: one that waits at once, one that runs with a signal and a moment for it to end.
    pub(crate) async fn cancel_job(&self, id: JobId, why: &str) -> Result<Job> {
        let job = self
            .update_job(id, |job| match job.state {
                JobState::Preparing | JobState::Queued => {
                    job.end(Outcome::because(JobState::Canceled, why), now())
                }
                state if state.has_ended() => Ok(()),
                _ => {
                    job.cancel_requested = true;
                    Ok(())
                }
            })
            .await?;
        self.jobs.desk(id).tell(Word::Cancel);
        if job.state.has_ended() {
            remove_file(&self.inputs_of(id))?;
        }
        Ok(job)
    }

    /// Gives a job when it has ended, or as it is when it is forgotten meanwhile.
    pub(crate) async fn ended_job(&self, id: JobId) -> Result<Job> {
        self.records.read(|world| world.job(id).map(drop))?;
        let mut changed = self.jobs.desk(id).changed.subscribe();
        loop {
            changed.borrow_and_update();
            let job = self.records.read(|world| world.job(id).cloned())?;
            if job.state.has_ended() {
                return Ok(job);
            }
            if changed.changed().await.is_err() {
                return Err(Problem::internal("a job's desk was cleared away"));
            }
        }
    }

    /// A signal for the command; a job that does not run yet is ended by it.
    pub(crate) async fn signal_job(&self, id: JobId, signal: i32) -> Result<()> {
        let runs =
            self.records.read(|world| world.job(id).map(|job| job.state == JobState::Running));
        if runs? {
            self.jobs.desk(id).tell(Word::Signal(signal));
            return Ok(());
        }
        self.cancel_job(id, "interrupted").await.map(drop)
    }

    /// The job that a caller names. One of another tenant's is not there for it.
    pub(crate) async fn job_for(&self, peer: &Peer, id: &str) -> Result<JobId> {
        let id: JobId = id.parse()?;
        let seen =
            self.records.read(|world| world.job(id).map(|job| peer.sees(&job.pool.tenant)))?;
        if seen { Ok(id) } else { Err(no_job(id)) }
    }

    /// A job as the API shows it.
    pub(crate) async fn job_view(&self, id: JobId) -> Result<JobView> {
        self.records.read(|world| world.job(id).map(|job| view(world, job).shown()))
    }

    /// The jobs that a filter takes, oldest first. Their times are of the timeline: a list's cursor
    /// is made of them.
    pub(crate) async fn job_views(&self, filter: &JobFilter) -> Vec<JobView> {
        let takes = |job: &&Job| {
            filter.tenant.as_ref().is_none_or(|tenant| job.pool.tenant == *tenant)
                && filter.pool.as_ref().is_none_or(|pool| job.pool == *pool)
                && filter.state.is_none_or(|state| job.state == state)
        };
        self.records.read(|world| {
            let mut jobs: Vec<&Job> = world.jobs.values().filter(takes).collect();
            jobs.sort_by_key(|job| (job.created_at, job.number));
            let mut views: Vec<JobView> = jobs.into_iter().map(JobView::from).collect();
            let mut places = HashMap::new();
            for pool in world.pools.keys() {
                let queue = job::queue(world.jobs_of(pool));
                places.extend(queue.iter().enumerate().map(|(index, job)| (job.id, index + 1)));
            }
            views.iter_mut().for_each(|view| view.position = places.get(&view.job_id).copied());
            views
        })
    }

    /// Forgets the jobs that have been over for long enough, and ends those whose inputs never came.
    pub(crate) async fn tidy_jobs(&self) -> Result<()> {
        let (old, stuck) = self.records.read(|world| {
            let pools = world.pools.keys();
            let old = pools.flat_map(|pool| job::forgotten(world.jobs_of(pool), now()));
            (old.collect::<Vec<_>>(), job::abandoned(world.jobs.values(), now()))
        });
        for id in stuck {
            self.cancel_job(id, "its inputs never came").await?;
        }
        self.forget_jobs(&old).await
    }

    /// Removes records first: files without one are removed at the next start.
    async fn forget_jobs(&self, ids: &[JobId]) -> Result<()> {
        self.records
            .change(|_, changes| {
                ids.iter().for_each(|id| changes.remove_job(*id));
                Ok(())
            })
            .await?;
        self.clear_away(ids)
    }

    /// Removes what is left of jobs whose records are gone.
    pub(crate) fn clear_away(&self, ids: &[JobId]) -> Result<()> {
        ids.iter().try_for_each(|id| {
            self.jobs.forget(*id);
            remove_dir(&self.job_dir(*id))
        })
    }

    /// Before a pool is destroyed: its jobs are ended.
    pub(crate) async fn cancel_jobs_of(&self, pool: &PoolRef) -> Result<()> {
        let live = |world: &World| -> Vec<JobId> {
            let jobs = world.jobs_of(pool).filter(|job| !job.state.has_ended());
            jobs.map(|job| job.id).collect()
        };
        let ids = self.records.read(live);
        for id in &ids {
            self.cancel_job(*id, "its pool was destroyed").await?;
        }
        for id in ids {
            self.ended_job(id).await?;
        }
        Ok(())
    }
}

fn preparing(world: &World, id: JobId) -> Result<()> {
    match world.job(id)?.state {
        JobState::Preparing => Ok(()),
        state => Err(Problem::new(409, "wrong_state", format!("job {id} is {state}"))
            .hint("inputs are given before a job is queued: submit another")),
    }
}

/// One more than any job of the node has.
fn next_number(world: &World) -> u64 {
    world.jobs.values().map(|job| job.number).max().unwrap_or(0) + 1
}

fn view(world: &World, job: &Job) -> JobView {
    let mut view = JobView::from(job);
    if job.state == JobState::Queued {
        let queue = job::queue(world.jobs_of(&job.pool));
        view.position = queue.iter().position(|other| other.id == job.id).map(|index| index + 1);
    }
    if view.position == Some(1) {
        view.waits_for = dispatch::obstacle(world, job).map(|problem| problem.detail);
    }
    view
}
