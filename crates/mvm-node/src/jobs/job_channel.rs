//! Who listens to a job, and how it is told something: in memory only.

use crate::locks::locked;
use mvm_guest::frame::Frame;
use std::sync::Mutex as Lock;
use tokio::sync::{Mutex, mpsc, watch};

/// What a running job is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobSignal {
    /// Pass this signal on to the command.
    Signal(i32),
    /// End.
    Cancel,
}

/// Who listens to a job, and how it is told something.
#[derive(Default)]
pub(crate) struct JobChannel {
    /// Its record or its log has changed.
    pub(super) changed: watch::Sender<()>,
    signals: Lock<Option<mpsc::UnboundedSender<JobSignal>>>,
    /// The client that it is attached to gets its output as it comes.
    pub(super) client: Lock<Option<mpsc::Sender<Frame>>>,
    /// Counts the clients: one that comes takes the place of the one before.
    pub(super) clients: watch::Sender<u64>,
    /// Held while output is written and while a client comes: it gets all of it, and nothing twice.
    pub(super) turn: Mutex<()>,
}

impl JobChannel {
    pub(super) fn bump(&self) {
        self.changed.send_replace(());
    }

    /// Where output goes besides the log.
    pub(super) fn client(&self) -> Option<mpsc::Sender<Frame>> {
        locked(&self.client).clone()
    }

    /// What is said to the job, from now on.
    pub(super) fn listen(&self) -> mpsc::UnboundedReceiver<JobSignal> {
        let (signals, received) = mpsc::unbounded_channel();
        *locked(&self.signals) = Some(signals);
        received
    }

    /// Tells the job something, if it runs.
    pub(crate) fn send(&self, signal: JobSignal) {
        if let Some(signals) = &*locked(&self.signals) {
            let _ = signals.send(signal);
        }
    }
}
