//! Clients that follow a job: it is queued for one, gives it its output, and ends with it.

use super::queue::Jobs;
use crate::Result;
use crate::locks::locked;
use mvm_api::Problem;
use mvm_guest::frame::Frame;
use mvm_model::{Code, JobId, JobState};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Take;
use tokio::sync::{mpsc, watch};

/// How many pieces of output a client may be behind before the command waits for it.
const BEHIND: usize = 8;
/// How long the client of a job that was attached to an agent before this one may take to come back.
pub(super) const AWAY: Duration = Duration::from_secs(30);

/// A client that a job is attached to.
pub(crate) struct Attached {
    /// Of the log what it does not have yet.
    pub missed: Option<Take<tokio::fs::File>>,
    /// What is printed from now on.
    pub output: mpsc::Receiver<Frame>,
    clients: watch::Receiver<u64>,
    number: u64,
}

impl Attached {
    /// Resolves when another client has taken this one's place.
    pub(crate) async fn replaced(&mut self) {
        let number = self.number;
        let _ = self.clients.wait_for(|clients| *clients != number).await;
    }

    /// Whether another client has taken this one's place.
    pub(crate) fn is_replaced(&self) -> bool {
        *self.clients.borrow() != self.number
    }
}

impl Jobs {
    /// Attaches a client to a job: queues one that waits for that, and goes on with one that was
    /// attached before, behind the first `from` bytes of its log.
    pub(crate) async fn attach(&self, id: JobId, from: u64) -> Result<Attached> {
        let channel = self.channel_of(id);
        let job = self.records.read(|world| world.job(id).cloned())?;
        let fresh = job.state == JobState::Preparing;
        if !fresh && !job.attached {
            let what = format!("job {id} is {} and attached to no client", job.state);
            return Err(Problem::new(Code::WrongState, what)
                .hint(format!("follow it with `mvm job logs -f {id}`")));
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
        if fresh && let Err(problem) = self.queue(id, true).await {
            *locked(&channel.client) = None;
            return Err(problem);
        }
        Ok(Attached { missed, output, clients, number })
    }

    /// A client has gone. Its job ends with it, unless the agent ends, or another client has come in
    /// its place within `grace`.
    pub(crate) async fn client_gone(
        self: &Arc<Self>,
        id: JobId,
        mut attached: Attached,
        grace: Duration,
    ) {
        // Whoever prints is not to wait for it.
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
        if let Err(problem) = self.cancel(id, why).await {
            tracing::warn!(job = %id, "cannot cancel it: {problem}");
        }
    }
}
