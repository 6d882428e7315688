//! Clients that follow a job. Such a job is queued for its client, sends its output to the client,
//! and ends with the client.

use super::queue::Jobs;
use crate::Result;
use crate::error::JobError;
use crate::locks::locked;
use mvm_guest::frame::Frame;
use mvm_model::{JobId, JobState};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Take;
use tokio::sync::{mpsc, watch};

/// How many pieces of output a client may be behind before the command waits for the client.
const BEHIND: usize = 8;
/// How long the client of an attached job may take to come back after the agent was replaced.
pub(super) const AWAY: Duration = Duration::from_secs(30);

/// A client that a job is attached to.
pub(crate) struct Attached {
    /// The part of the log that the client does not have yet; `None` where there is no log.
    pub missed: Option<Take<tokio::fs::File>>,
    /// The output from now on.
    pub output: mpsc::Receiver<Frame>,
    clients: watch::Receiver<u64>,
    number: u64,
}

impl Attached {
    /// Waits until another client has taken this client's place.
    pub(crate) async fn replaced(&mut self) {
        let number = self.number;
        let _ = self.clients.wait_for(|clients| *clients != number).await;
    }

    /// Returns whether another client has taken this client's place.
    pub(crate) fn is_replaced(&self) -> bool {
        *self.clients.borrow() != self.number
    }
}

impl Jobs {
    /// Attaches a client to a job. A job that waits for a client is queued. A job that had a client
    /// before continues with this one, which gets the log from byte `from` on.
    pub(crate) async fn attach(&self, id: JobId, from: u64) -> Result<Attached> {
        let channel = self.channel_of(id);
        let job = self.records.read(|records| records.job(id).cloned())?;
        let fresh = job.state == JobState::Preparing;
        if !fresh && !job.attached {
            return Err(JobError::NotAttached { id, state: job.state }.into());
        }
        let (client, output) = mpsc::channel(BEHIND);
        let mut number = 0;
        let missed = {
            let _turn = channel.turn.lock().await;
            channel.clients.send_modify(|clients| {
                *clients += 1;
                number = *clients;
            });
            *locked(&channel.client) = Some(client);
            self.files.log_from(id, from).await?
        };
        let clients = channel.clients.subscribe();
        if fresh && let Err(error) = self.queue(id, true).await {
            *locked(&channel.client) = None;
            return Err(error);
        }
        Ok(Attached { missed, output, clients, number })
    }

    /// Handles the end of a client's connection. The job ends too, unless the agent is stopping, or
    /// another client takes this one's place within `grace`.
    pub(crate) async fn client_gone(
        self: &Arc<Self>,
        id: JobId,
        mut attached: Attached,
        grace: Duration,
    ) {
        // Dropped so that the command's output does not wait for this client.
        drop(std::mem::replace(&mut attached.output, mpsc::channel(1).1));
        if tokio::time::timeout(grace, attached.replaced()).await.is_ok() || attached.is_replaced()
        {
            return;
        }
        self.end_with_client(id, "the client that followed it went away").await;
    }

    pub(super) async fn end_with_client(&self, id: JobId, why: &str) {
        if self.is_stopping() {
            return;
        }
        if let Err(error) = self.cancel(id, why).await {
            tracing::warn!(job = %id, "cannot cancel it: {error}");
        }
    }
}
