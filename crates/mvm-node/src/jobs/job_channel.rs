//! The listeners of a job, and the signals to it, in memory only.

use crate::locks::locked;
use mvm_guest::frame::Frame;
use std::sync::Mutex as Lock;
use tokio::sync::{Mutex, mpsc, watch};

/// A signal to a running job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobSignal {
    /// Pass this signal on to the command.
    Signal(i32),
    /// End the job.
    Cancel,
}

/// The listeners of a job, and the signals to it.
#[derive(Default)]
pub(crate) struct JobChannel {
    /// Notified when the job's record or log has changed.
    pub(super) changed: watch::Sender<()>,
    signals: Lock<Option<mpsc::UnboundedSender<JobSignal>>>,
    /// Sends output to the attached client as it comes.
    pub(super) client: Lock<Option<mpsc::Sender<Frame>>>,
    /// Counts the clients. A new client takes the place of the one before.
    pub(super) clients: watch::Sender<u64>,
    /// Held while output is written and while a client attaches, so that the client gets each piece
    /// exactly once.
    pub(super) turn: Mutex<()>,
}

impl JobChannel {
    pub(super) fn bump(&self) {
        self.changed.send_replace(());
    }

    /// Returns the sender to the attached client, if there is one.
    pub(super) fn client(&self) -> Option<mpsc::Sender<Frame>> {
        locked(&self.client).clone()
    }

    /// Returns the receiver of the job's signals from now on.
    pub(super) fn listen(&self) -> mpsc::UnboundedReceiver<JobSignal> {
        let (signals, received) = mpsc::unbounded_channel();
        *locked(&self.signals) = Some(signals);
        received
    }

    /// Sends a signal to the job, if the job runs.
    pub(crate) fn send(&self, signal: JobSignal) {
        if let Some(signals) = &*locked(&self.signals) {
            let _ = signals.send(signal);
        }
    }
}
