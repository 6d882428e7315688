//! Versioned records with compare-and-set, transactions and watch.
//!
//! Lives here: the trait [`Store`] (shaped so that etcd can stand behind it as well: revisions
//! of the whole store, transactions with conditions, lists by prefix, watches from a revision)
//! and its embedded engine on SQLite, [`SqliteStore`].
//!
//! Never here: what the records mean.

mod sqlite;

pub use sqlite::SqliteStore;

use async_trait::async_trait;
use tokio::sync::mpsc::UnboundedReceiver;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its key, such as `pools/ci/runners`.
    pub key: String,
    /// Its value: JSON text, as far as mvm writes it.
    pub value: Vec<u8>,
    /// The store-wide revision of its last change.
    pub revision: u64,
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
    /// Makes or replaces a record.
    Put {
        /// Its key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The condition.
        expect: Expect,
    },
    /// Removes a record; one that is not there is no error unless `expect` says so.
    Delete {
        /// Its key.
        key: String,
        /// The condition.
        expect: Expect,
    },
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

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A condition did not hold; nothing was written.
    #[error("the record {key} is at revision {found}, not as expected ({expected:?})")]
    Conflict {
        /// The record.
        key: String,
        /// What was expected.
        expected: Expect,
        /// Its revision; 0 where it does not exist.
        found: u64,
    },
    /// Another process has the store open.
    #[error("{path} is in use by another agent{holder}; stop that one first (mvm agent stop)")]
    Locked {
        /// The lock file.
        path: String,
        /// ` (pid N)` where known.
        holder: String,
    },
    /// The file was written by a newer mvm.
    #[error("{path} has schema version {found}; this mvm knows up to {known}: use a newer mvm")]
    TooNew {
        /// The file.
        path: String,
        /// Its version.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// The file is no database, or damaged.
    #[error(
        "{path} cannot be read as a database: {cause}; restore it, or move it away to begin anew"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What SQLite says.
        cause: String,
    },
    /// The disk is full; nothing was written.
    #[error("no space is left for {path}; free some and try again")]
    NoSpace {
        /// The file.
        path: String,
    },
    /// Anything else that the engine says.
    #[error("the store {path} failed: {cause}")]
    Engine {
        /// The file.
        path: String,
        /// What the engine says.
        cause: String,
    },
}

impl Error {
    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Conflict { .. } => "store_conflict",
            Error::Locked { .. } => "store_locked",
            Error::TooNew { .. } => "store_too_new",
            Error::Damaged { .. } => "store_damaged",
            Error::NoSpace { .. } => "no_space",
            Error::Engine { .. } => "store_failed",
        }
    }
}

/// What a store gives.
pub type Result<T> = std::result::Result<T, Error>;

/// Durable records. Every successful call of `commit` has its own revision, higher than all before.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One record.
    async fn get(&self, key: &str) -> Result<Option<Record>>;
    /// All records whose key begins with `prefix`, in the order of their keys.
    async fn list(&self, prefix: &str) -> Result<Vec<Record>> {
        self.list_from(prefix, prefix).await
    }
    /// Those of them whose key is `from` or comes after it.
    async fn list_from(&self, prefix: &str, from: &str) -> Result<Vec<Record>>;
    /// The last of all whose key begins with `prefix`.
    async fn last(&self, prefix: &str) -> Result<Option<Record>>;
    /// All writes or none; gives the new revision.
    async fn commit(&self, writes: Vec<Write>) -> Result<u64>;
    /// Every change of keys that begin with `prefix`, from now on.
    async fn watch(&self, prefix: &str) -> Result<UnboundedReceiver<Change>>;
}
