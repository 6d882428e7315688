//! The results of a job: its artifacts, and the caches that it commits.

use super::dispatcher::Dispatcher;
use super::intake::Arrival;
use super::limit::{Interruption, Limit};
use super::runner::WORK;
use crate::error::io;
use crate::state_dir::remove_file;
use crate::{Error, Result};
use mvm_archive::{Notes, plain};
use mvm_guest::channel::Channel;
use mvm_model::job::{Artifact, JobState, Outcome};
use mvm_model::{InstanceId, Job, JobId};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::AsyncWrite;

/// The maximum size of an artifact, in bytes.
const MAX_ARTIFACT: u64 = 16 << 30;

/// Takes a job's results from its guest.
pub(super) struct Harvest<'a> {
    pub dispatcher: &'a Dispatcher,
    pub instance: InstanceId,
    pub channel: &'a Channel,
    pub limit: &'a mut Limit,
    /// Whether the guest was cut off because it did not hand over a result in time.
    pub cut: bool,
    /// Notes of the guest on files that it could not copy as they were.
    pub notes: Notes,
    /// The arrivals of the artifacts, whose bytes count as arriving until the artifacts are
    /// recorded.
    pub arrived: Vec<Arrival>,
}

impl Harvest<'_> {
    /// Fetches the artifacts. If the job succeeded, commits its caches as well.
    pub(super) async fn take(&mut self, job: &Job, outcome: &mut Outcome) -> Vec<Artifact> {
        let artifacts = self.artifacts(job, outcome).await;
        if outcome.state == JobState::Succeeded && !self.cut {
            self.caches(job, outcome).await;
        }
        artifacts
    }

    /// Fetches all artifacts. A missing artifact is an error only if the job succeeded.
    async fn artifacts(&mut self, job: &Job, outcome: &mut Outcome) -> Vec<Artifact> {
        let mut artifacts = Vec::new();
        for (index, path) in job.spec.artifacts.iter().enumerate() {
            let began = Instant::now();
            let fetched = match self.cut {
                true => Ok(None),
                false => self.artifact(job.id, path, index, outcome).await,
            };
            let took_us = began.elapsed().as_micros() as u64;
            let bytes = fetched.as_ref().ok().copied().flatten();
            artifacts.push(Artifact { path: path.clone(), bytes, took_us });
            if let Err(error) = fetched
                && outcome.state == JobState::Succeeded
            {
                outcome.state = JobState::Failed;
                outcome.add_reason(format!("no artifact {}: {error}", shown(path)));
            }
        }
        artifacts
    }

    /// Fetches one artifact. Returns the size of its archive in bytes; `None` where the guest was
    /// cut off.
    async fn artifact(
        &mut self,
        id: JobId,
        path: &str,
        index: usize,
        outcome: &mut Outcome,
    ) -> Result<Option<u64>> {
        let to = self.dispatcher.jobs.files.artifact(id, index);
        remove_file(&to)?;
        let early = to.with_extension("new");
        let source = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("{WORK}/{path}"),
        };
        let (dispatcher, channel) = (self.dispatcher, self.channel);
        let fetch = async {
            let failed = |e| io(format!("write {}", early.display()), e);
            let file = tokio::fs::File::create(&early).await.map_err(failed)?;
            let arrival = dispatcher.jobs.arrival(id).await?;
            let mut file = Bounded { file, room: MAX_ARTIFACT, arrival, denied: None };
            let notes = match channel.get(&source, &mut file).await {
                Err(error) => return Err(file.denied.take().unwrap_or_else(|| error.into())),
                Ok(notes) => notes,
            };
            let bytes = file.file.metadata().await.map_err(failed)?.len();
            tokio::fs::rename(&early, &to).await.map_err(failed)?;
            Ok((bytes, notes, file.arrival))
        };
        let fetched = match self.limit.hold(fetch).await {
            Ok(fetched) => fetched.map(|(bytes, notes, arrival)| {
                self.notes.append(notes);
                self.arrived.push(arrival);
                Some(bytes)
            }),
            Err(cut) => {
                self.cut_off(cut, &format!("artifact {} was fetched", shown(path)), outcome);
                Ok(None)
            }
        };
        if !matches!(fetched, Ok(Some(_))) {
            remove_file(&early)?;
        }
        fetched
    }

    async fn caches(&mut self, job: &Job, outcome: &mut Outcome) {
        for name in &job.spec.cache_commit {
            let (dispatcher, channel) = (self.dispatcher, self.channel);
            // Only the release needs the guest. The commit that follows is atomic.
            let released =
                self.limit.hold(dispatcher.caches.release(self.instance, name, channel)).await;
            let committed = match released {
                Err(cut) => {
                    return self.cut_off(cut, &format!("cache {name} was unmounted"), outcome);
                }
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) => dispatcher.caches.commit(self.instance, name).await,
            };
            if let Err(error) = committed {
                tracing::warn!(job = %job.id, "cannot commit cache {name}: {error}");
                return outcome.add_reason(format!("cache {name} was not committed: {error}"));
            }
        }
    }

    /// Notes that the guest was cut off. The command's own outcome remains, unless it was a
    /// success.
    fn cut_off(&mut self, cut: Interruption, doing: &str, outcome: &mut Outcome) {
        self.cut = true;
        let late = self.limit.outcome(cut, doing);
        match outcome.state {
            JobState::Succeeded => *outcome = Outcome { exit_status: outcome.exit_status, ..late },
            // The outcome already says that the deadline has passed or that the job was canceled.
            JobState::TimedOut | JobState::Canceled => {
                outcome.add_reason(format!("the guest was cut off while {doing}"));
            }
            _ => outcome.add_reason(late.reason.unwrap_or_default()),
        }
    }
}

/// Returns a path from the job's specification as one line for a message.
fn shown(path: &str) -> String {
    plain(path, 300)
}

/// A file that takes at most `room` bytes, and only as many as there is disk space and quota for.
struct Bounded {
    file: tokio::fs::File,
    room: u64,
    arrival: Arrival,
    /// Why the file took no more.
    denied: Option<Error>,
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        if self.room < bytes.len() as u64 {
            let what = format!("it has over {} GiB", MAX_ARTIFACT >> 30);
            return Poll::Ready(Err(std::io::Error::other(what)));
        }
        if let Err(error) = self.arrival.room_for(bytes.len() as u64) {
            self.denied = Some(error);
            return Poll::Ready(Err(std::io::ErrorKind::StorageFull.into()));
        }
        let written = std::task::ready!(Pin::new(&mut self.file).poll_write(cx, bytes))?;
        self.room -= written as u64;
        self.arrival.count(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.file).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.file).poll_shutdown(cx)
    }
}
