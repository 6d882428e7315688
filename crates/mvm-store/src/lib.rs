//! Versioned records with compare-and-set, transactions, watches, sessions and elections.
//!
//! Lives here: the trait [`Store`] (revisions of the whole store, transactions with conditions,
//! lists by prefix, watches from a revision, records that vanish with their session), its embedded
//! engine on SQLite, [`SqliteStore`], its engine for fleets on etcd, [`EtcdStore`], and what is built on the trait alone: a session that is kept
//! alive ([`Session`]), a leader ([`Election`]), a list that stays true ([`follow`]).
//!
//! Never here: what the records mean.

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

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its key, such as `pools/ci/runners`.
    pub key: String,
    /// Its value: JSON text, as far as mvm writes it.
    pub value: Vec<u8>,
    /// The store-wide revision of its last change.
    pub revision: u64,
    /// The session that it vanishes with; none: it stays.
    pub session: Option<SessionId>,
}

/// Names a session of a store; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// There is no such record.
    Absent,
    /// The record's last change has this revision.
    Revision(u64),
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Makes or replaces a record, which stays until it is deleted.
    Put {
        /// Its key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The condition.
        expect: Expect,
    },
    /// Makes or replaces a record that vanishes when its session ends.
    Hold {
        /// Its key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The condition.
        expect: Expect,
        /// The session.
        session: SessionId,
    },
    /// Removes a record; one that is not there is no error unless `expect` says so.
    Delete {
        /// Its key.
        key: String,
        /// The condition.
        expect: Expect,
    },
    /// Writes nothing: the other writes happen only if this holds.
    Check {
        /// The record's key.
        key: String,
        /// The condition.
        expect: Expect,
    },
}

impl Write {
    /// The record that it speaks of, and what must hold for it.
    pub fn condition(&self) -> (&str, Expect) {
        match self {
            Write::Put { key, expect, .. }
            | Write::Hold { key, expect, .. }
            | Write::Delete { key, expect }
            | Write::Check { key, expect } => (key, *expect),
        }
    }

    /// The writes that count: the last one of every key, and no checks.
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
    /// The key.
    pub key: String,
    /// The new value; `None` where the record was removed.
    pub value: Option<Vec<u8>>,
    /// The revision of the change.
    pub revision: u64,
}

/// Records as they were at one revision of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// In the order of their keys.
    pub records: Vec<Record>,
    /// The revision: a watch that begins after it misses nothing.
    pub revision: u64,
    /// Where to go on ([`Range::from`]) if there are more than were asked for.
    pub next: Option<String>,
}

/// Which records are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// What their keys begin with.
    pub prefix: String,
    /// The first key; empty: from the first with the prefix.
    pub from: String,
    /// At most so many; none: all.
    pub limit: Option<usize>,
}

impl Range {
    /// All whose key begins with `prefix`.
    pub fn all(prefix: &str) -> Range {
        Range { prefix: prefix.to_owned(), ..Range::default() }
    }

    /// The lowest key that belongs to it.
    fn start(&self) -> &str {
        self.prefix.as_str().max(&self.from)
    }
}

/// The changes of each transaction, together and in the order of their revisions. It ends with an
/// error, [`Error::Compacted`] where the reader was too slow, or when the store is closed.
pub type Watch = BoxStream<'static, Result<Vec<Change>>>;

/// Durable records. Every `commit` that changes something has its own revision, higher than all
/// before.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One record.
    async fn get(&self, key: &str) -> Result<Option<Record>>;
    /// The records of a range, all as of one revision. Pages of one list that are asked for one
    /// after another may be of different revisions: a watch from the first one's makes up for that.
    async fn range(&self, range: Range) -> Result<Listing>;
    /// All records whose key begins with `prefix`, in the order of their keys.
    async fn list(&self, prefix: &str) -> Result<Vec<Record>> {
        Ok(self.range(Range::all(prefix)).await?.records)
    }
    /// Those of them whose key is `from` or comes after it.
    async fn list_from(&self, prefix: &str, from: &str) -> Result<Vec<Record>> {
        let range = Range { from: from.to_owned(), ..Range::all(prefix) };
        Ok(self.range(range).await?.records)
    }
    /// The last of all whose key begins with `prefix`.
    async fn last(&self, prefix: &str) -> Result<Option<Record>>;
    /// The store's revision now.
    async fn revision(&self) -> Result<u64>;
    /// All writes or none. The conditions must hold before the first write; of several writes of one
    /// key the last counts. Gives the revision: a new one if anything changed.
    async fn commit(&self, writes: Vec<Write>) -> Result<u64>;
    /// Every change of keys that begin with `prefix` after the revision `after`.
    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch>;
    /// A new session, which ends `ttl` after it was last kept alive. [`Session`] does the keeping.
    async fn open_session(&self, ttl: Duration) -> Result<SessionId>;
    /// Lets the session live for its `ttl` from now on.
    async fn keep_session(&self, session: SessionId) -> Result<()>;
    /// Ends the session and removes its records; one that has ended is no error.
    async fn end_session(&self, session: SessionId) -> Result<()>;
    /// Has the file of an embedded store hold nothing but what its records say: what they have said
    /// is not in it any more. Takes as long as writing all of it. In a cluster nothing happens.
    async fn scrub(&self) -> Result<()> {
        Ok(())
    }
}
