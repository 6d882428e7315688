//! A list and its watch as one stream: no change is missed, and none is reported twice.

use crate::{Change, Error, Range, Record, Result, Store, Watch};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::time::Duration;

/// Pause between two tries while the store does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// One item for a follower of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// All records: the first item, and again after changes were missed. A record that is not among
    /// them is gone.
    All {
        /// The records in the order of their keys.
        records: Vec<Record>,
        /// The revision that the list is of.
        revision: u64,
    },
    /// The changes of one transaction.
    Changed(Vec<Change>),
}

/// Reports all records whose key begins with `prefix`, then every change of them. Waits while the
/// store cannot be reached. The stream ends when the store is closed, or with an error that trying
/// again does not mend.
pub fn follow(store: Arc<dyn Store>, prefix: &str) -> BoxStream<'static, Result<Followed>> {
    let follower = Follower { store, prefix: prefix.to_owned(), watch: None, failed: false };
    Box::pin(futures::stream::unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        follower.failed = item.is_err();
        Some((item, follower))
    }))
}

struct Follower {
    store: Arc<dyn Store>,
    prefix: String,
    watch: Option<Watch>,
    failed: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<Result<Followed>> {
        if self.failed {
            return None;
        }
        if let Some(watch) = &mut self.watch {
            match watch.next().await? {
                Ok(changes) => return Some(Ok(Followed::Changed(changes))),
                Err(Error::Compacted { .. }) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        loop {
            match self.list().await {
                Err(error) if error.is_transient() => {
                    tracing::warn!(prefix = self.prefix, %error, "the list is tried again");
                    tokio::time::sleep(RETRY).await;
                }
                other => return Some(other),
            }
        }
    }

    async fn list(&mut self) -> Result<Followed> {
        let listing = self.store.range(Range::all(&self.prefix)).await?;
        self.watch = Some(self.store.watch(&self.prefix, listing.revision).await?);
        Ok(Followed::All { records: listing.records, revision: listing.revision })
    }
}
