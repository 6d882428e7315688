//! Whether a coordinator knows what it is asked about. One that has just been started has read nothing
//! of the store yet and reaches no node: its lists would be empty, and nothing would be found.

use crate::Error;
use crate::records::{ALIVE, DOCUMENT, NODES, SHARES};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// What is read of the store before anything is answered.
pub(crate) const READ: [&str; 4] = [ALIVE, DOCUMENT, NODES, SHARES];
/// How long a request waits until the store is read.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far a coordinator is with reading.
pub(crate) struct Readiness {
    read: watch::Sender<BTreeSet<&'static str>>,
    done: watch::Sender<bool>,
}

impl Default for Readiness {
    fn default() -> Readiness {
        Readiness { read: watch::channel(BTreeSet::new()).0, done: watch::channel(false).0 }
    }
}

impl Readiness {
    /// Notes that all records below this prefix are known.
    pub fn has_read(&self, prefix: &str) {
        if let Some(prefix) = READ.into_iter().find(|one| *one == prefix) {
            self.read.send_if_modified(|read| read.insert(prefix));
        }
    }

    /// Waits until everything that answers need is known. Errors: `not_ready`.
    pub async fn wait(&self) -> Result<(), Error> {
        let mut done = self.done.subscribe();
        match timeout(PATIENCE, done.wait_for(|done| *done)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::NotReady),
        }
    }

    /// Waits until all records are known; `false` where that can no longer happen.
    pub async fn all_read(&self) -> bool {
        self.read.subscribe().wait_for(|read| read.len() == READ.len()).await.is_ok()
    }

    /// Lets the coordinator answer from now on.
    pub fn finish(&self) {
        self.done.send_replace(true);
    }
}
