//! Who listens to a job, and how it is told something: in memory only.

use crate::locks::locked;
use mvm_guest::frame::Frame;
use std::sync::Mutex as Lock;
use tokio::sync::{Mutex, mpsc, watch};

/// What a running job is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Pass this signal on to the command.
    Signal(i32),
    /// End.
    Cancel,
}

/// Who listens to a job, and how it is told something.
#[derive(Default)]
pub(crate) struct Desk {
    /// Its record or its log has changed.
    pub(super) changed: watch::Sender<()>,
    words: Lock<Option<mpsc::UnboundedSender<Word>>>,
    /// The client that it is attached to gets its output as it comes.
    pub(super) client: Lock<Option<mpsc::Sender<Frame>>>,
    /// Counts the clients: one that comes takes the place of the one before.
    pub(super) clients: watch::Sender<u64>,
    /// Held while output is written and while a client comes: it gets all of it, and nothing twice.
    pub(super) turn: Mutex<()>,
}

impl Desk {
    pub(super) fn bump(&self) {
        self.changed.send_replace(());
    }

    /// Where output goes besides the log.
    pub(super) fn client(&self) -> Option<mpsc::Sender<Frame>> {
        locked(&self.client).clone()
    }

    /// What is said to the job, from now on.
    pub(super) fn listen(&self) -> mpsc::UnboundedReceiver<Word> {
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
