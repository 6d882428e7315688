//! Versioned records with compare-and-set, transactions, watches, sessions and elections.
//!
//! What lives here: the trait [`Store`] (revisions of the whole store, transactions with
//! conditions, lists by prefix, watches from a revision, records that vanish with their session),
//! its embedded engine on SQLite, [`SqliteStore`], its engine for fleets on etcd, [`EtcdStore`],
//! and what is built on the trait alone: a session that is kept alive ([`Session`]), a leader
//! ([`Election`]), a list that stays current ([`follow`]).
//!
//! What never may: the meaning of the records.

mod election;
mod error;
mod etcd;
mod follow;
mod history;
mod session;
mod sqlite;
#[cfg(feature = "testing")]
pub mod testing;

pub use election::{Election, Leader, Leadership};
pub use error::{Error, Result};
pub use etcd::{EtcdOptions, EtcdStore, EtcdTls};
pub use follow::{Followed, follow};
pub use session::Session;
pub use sqlite::SqliteStore;

use async_trait::async_trait;
use futures::stream::BoxStream;
use std::fmt;
use std::time::Duration;

/// One record of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key, such as `pools/ci/runners`.
    pub key: String,
    /// The value; mvm writes JSON text.
    pub value: Vec<u8>,
    /// The store-wide revision of its last change.
    pub revision: u64,
    /// The session that it vanishes with; `None` means that it stays.
    pub session: Option<SessionId>,
}

/// Identifies a session of a store; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// What must hold for a write to take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything may be there.
    Any,
    /// The record must not exist.
    Absent,
    /// The record's last change must have this revision.
    Revision(u64),
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Makes or replaces a record, which stays until it is deleted.
    Put {
        /// The record's key.
        key: String,
        /// The new value.
        value: Vec<u8>,
        /// The condition on the record.
        expect: Expect,
    },
    /// Makes or replaces a record that vanishes when its session ends.
    Hold {
        /// The record's key.
        key: String,
        /// The new value.
        value: Vec<u8>,
        /// The condition on the record.
        expect: Expect,
        /// The session that holds the record.
        session: SessionId,
    },
    /// Removes a record; a missing one is no error unless `expect` forbids it.
    Delete {
        /// The record's key.
        key: String,
        /// The condition on the record.
        expect: Expect,
    },
    /// Writes nothing: the other writes take effect only if this condition holds.
    Check {
        /// The record's key.
        key: String,
        /// The condition on the record.
        expect: Expect,
    },
}

impl Write {
    /// Returns the record's key, and what must hold for it.
    pub fn condition(&self) -> (&str, Expect) {
        match self {
            Write::Put { key, expect, .. }
            | Write::Hold { key, expect, .. }
            | Write::Delete { key, expect }
            | Write::Check { key, expect } => (key, *expect),
        }
    }

    /// Returns the writes that take effect: the last one for every key, and no checks.
    fn effects(writes: &[Write]) -> Vec<&Write> {
        let mut seen = std::collections::BTreeSet::new();
        let last = writes
            .iter()
            .rev()
            .filter(|write| !matches!(write, Write::Check { .. }))
            .filter(|write| seen.insert(write.condition().0));
        let mut effects: Vec<&Write> = last.collect();
        effects.reverse();
        effects
    }
}

/// A change that a watch reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key of the changed record.
    pub key: String,
    /// The new value; `None` if the record was removed.
    pub value: Option<Vec<u8>>,
    /// The revision of the change.
    pub revision: u64,
}

/// Records as they were at one revision of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The records in the order of their keys.
    pub records: Vec<Record>,
    /// The store's revision: a watch that begins after it misses nothing.
    pub revision: u64,
    /// Where to continue ([`Range::from`]); `None` if this was the last page.
    pub next: Option<String>,
}

/// Which records to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Prefix of the keys.
    pub prefix: String,
    /// The first key; empty means the first one with the prefix.
    pub from: String,
    /// The largest number of records; `None` means all.
    pub limit: Option<usize>,
}

impl Range {
    /// Returns the range of all records whose key begins with `prefix`.
    pub fn all(prefix: &str) -> Range {
        Range { prefix: prefix.to_owned(), ..Range::default() }
    }

    /// Returns the lowest key that belongs to the range.
    fn start(&self) -> &str {
        self.prefix.as_str().max(&self.from)
    }
}

/// The changes of each transaction, together and in the order of their revisions. The stream ends
/// when the store is closed, or with an error, which is [`Error::Compacted`] if the reader was too
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
    /// Opens a session, which ends `ttl` after it was last kept alive. [`Session`] keeps it alive.
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
