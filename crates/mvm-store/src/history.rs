//! The last changes of the embedded engine, for its watches.

use crate::{Change, Error, Watch};
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;

/// How many bytes are kept, as [`size`] counts them; a watch that lags further behind must list
/// again.
const MAX_BYTES: usize = 8 << 20;

/// The changes since the store was opened, as far as they are kept.
pub struct History {
    recent: Arc<Mutex<RecentChanges>>,
    /// The revision of the last change.
    tip: watch::Sender<u64>,
}

struct RecentChanges {
    /// All changes after this revision are here.
    floor: u64,
    /// In order of revision; never empty ones.
    transactions: VecDeque<Vec<Change>>,
    size: usize,
}

impl History {
    /// Makes an empty history that begins after `revision`.
    pub fn new(revision: u64) -> History {
        let recent = RecentChanges { floor: revision, transactions: VecDeque::new(), size: 0 };
        History { recent: Arc::new(Mutex::new(recent)), tip: watch::Sender::new(revision) }
    }

    /// Adds the changes of one transaction.
    pub fn add(&self, changes: Vec<Change>) {
        let Some(revision) = changes.first().map(|change| change.revision) else { return };
        let mut recent = locked(&self.recent);
        recent.size += size(&changes);
        recent.transactions.push_back(changes);
        while recent.size > MAX_BYTES {
            let Some(oldest) = recent.transactions.pop_front() else { break };
            recent.size -= size(&oldest);
            recent.floor = revision_of(&oldest);
        }
        drop(recent);
        self.tip.send_replace(revision);
    }

    /// Watches the changes of keys that begin with `prefix` after the revision `after`.
    pub fn watch(&self, prefix: &str, after: u64) -> Watch {
        let reader = Reader {
            recent: self.recent.clone(),
            tip: self.tip.subscribe(),
            prefix: prefix.to_owned(),
            after,
            failed: false,
        };
        Box::pin(futures::stream::unfold(reader, |mut reader| async move {
            let item = reader.next().await?;
            Some((item, reader))
        }))
    }
}

struct Reader {
    recent: Arc<Mutex<RecentChanges>>,
    tip: watch::Receiver<u64>,
    prefix: String,
    after: u64,
    failed: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<crate::Result<Vec<Change>>> {
        if self.failed {
            return None;
        }
        loop {
            self.tip.mark_unchanged();
            match self.look() {
                Ok(Some(changes)) => return Some(Ok(changes)),
                Ok(None) => self.tip.changed().await.ok()?,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
    }

    fn look(&mut self) -> crate::Result<Option<Vec<Change>>> {
        let recent = locked(&self.recent);
        if self.after < recent.floor {
            return Err(Error::Compacted { after: self.after });
        }
        let first =
            recent.transactions.partition_point(|changes| revision_of(changes) <= self.after);
        for changes in recent.transactions.range(first..) {
            self.after = revision_of(changes);
            let of_prefix = changes.iter().filter(|change| change.key.starts_with(&self.prefix));
            let found: Vec<Change> = of_prefix.cloned().collect();
            if !found.is_empty() {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

fn locked(recent: &Mutex<RecentChanges>) -> MutexGuard<'_, RecentChanges> {
    recent.lock()
}

fn revision_of(changes: &[Change]) -> u64 {
    changes.first().map_or(0, |change| change.revision)
}

fn size(changes: &[Change]) -> usize {
    let one = |change: &Change| {
        size_of::<Change>() + change.key.len() + change.value.as_ref().map_or(0, Vec::len)
    };
    changes.iter().map(one).sum()
}
