//! A list and its watch as one stream: no change is missed, none is needed twice.

use crate::{Change, Error, Range, Record, Result, Store, Watch};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::time::Duration;

/// Between two tries while the store does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// What a follower of records is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// All records, first of all, and again where changes were missed: what is not among them is gone.
    All {
        /// In the order of their keys.
        records: Vec<Record>,
        /// As of this revision.
        revision: u64,
    },
    /// The changes of one transaction.
    Changed(Vec<Change>),
}

/// All records whose key begins with `prefix`, then every change of them. A store that cannot be
/// reached is waited for; it ends when the store is closed, or with an error that asking again does
/// not mend.
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
