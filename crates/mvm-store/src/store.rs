//! The trait that every engine implements.

use crate::error::Result;
use crate::records::{Change, Listing, Range, Record, SessionId, Write};
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::time::Duration;

/// The changes of each transaction, together and in the order of their revisions. The stream ends
/// when the store is closed, or with an error, which is [`Error::Compacted`](crate::Error::Compacted) if the reader was too
/// slow.
pub type Watch = BoxStream<'static, Result<Vec<Change>>>;

/// Durable records. Every `commit` that changes something gets a revision of its own, higher than
/// all before.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Returns the record with this key; `None` if there is none.
    async fn get(&self, key: &str) -> Result<Option<Record>>;
    /// Returns the records of a range, all as of one revision. Later pages of the same list may be
    /// of later revisions: a watch from the first page's revision makes up for that.
    async fn range(&self, range: Range) -> Result<Listing>;
    /// Returns all records whose key begins with `prefix`, in the order of their keys.
    async fn list(&self, prefix: &str) -> Result<Vec<Record>> {
        Ok(self.range(Range::all(prefix)).await?.records)
    }
    /// Returns the records whose key begins with `prefix` and is not before `from`, in the order of
    /// their keys.
    async fn list_from(&self, prefix: &str, from: &str) -> Result<Vec<Record>> {
        let range = Range { from: from.to_owned(), ..Range::all(prefix) };
        Ok(self.range(range).await?.records)
    }
    /// Returns the last record whose key begins with `prefix`; `None` if there is none.
    async fn last(&self, prefix: &str) -> Result<Option<Record>>;
    /// Returns the store's present revision.
    async fn revision(&self) -> Result<u64>;
    /// Carries out all writes or none. The conditions must hold before the first write; of several
    /// writes to one key the last counts. Returns the revision: a new one if anything changed.
    /// Errors: `store_conflict`, `session_ended`, `no_space`, `store_unreachable`, `store_unknown`,
    /// `store_too_large`, `store_failed`.
    async fn commit(&self, writes: Vec<Write>) -> Result<u64>;
    /// Watches every change of keys that begin with `prefix` after the revision `after`.
    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch>;
    /// Opens a session, which ends `ttl` after it was last kept alive. [`Session`](crate::Session) keeps it alive.
    async fn open_session(&self, ttl: Duration) -> Result<SessionId>;
    /// Lets the session live for its `ttl` from now on. Error: `session_ended`.
    async fn keep_session(&self, session: SessionId) -> Result<()>;
    /// Ends the session and removes its records; a session that has ended is no error.
    async fn end_session(&self, session: SessionId) -> Result<()>;
    /// Rewrites the file of an embedded store, so that it holds nothing but the present records:
    /// former values are gone from the disk. Takes as long as writing all of it. Does nothing in a
    /// cluster.
    async fn scrub(&self) -> Result<()> {
        Ok(())
    }
}
