//! The errors of a store, each with a stable code.

use crate::records::{Expect, SessionId};
use mvm_model::Code;

/// The result of every fallible call of a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refused or failed call of a store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A condition did not hold; nothing was written.
    #[error("the record {key} is at revision {found}, not as expected ({expected:?})")]
    Conflict {
        /// The record's key.
        key: String,
        /// The condition that did not hold.
        expected: Expect,
        /// The record's revision; 0 if it does not exist.
        found: u64,
    },
    /// The session that should hold a record, or be kept alive, has ended; nothing was written.
    #[error("the session {0} has ended: it was not kept alive in time; open a new one")]
    SessionEnded(SessionId),
    /// The changes after that revision are no longer kept.
    #[error("the changes after revision {after} are gone; list the records, then watch from there")]
    Compacted {
        /// The revision after which changes were requested.
        after: u64,
    },
    /// Another process has the store open.
    #[error("{path} is in use by another agent{holder}; stop that one first (mvm agent stop)")]
    Locked {
        /// Path of the lock file.
        path: String,
        /// ` (pid N)`, or empty if the process is unknown.
        holder: String,
    },
    /// The file was written by a newer mvm.
    #[error("{path} has schema version {found}; this mvm knows up to {known}: use a newer mvm")]
    TooNew {
        /// Path of the file.
        path: String,
        /// The file's schema version.
        found: u32,
        /// The newest schema version that this program knows.
        known: u32,
    },
    /// The file is not a database, or is damaged.
    #[error(
        "{path} cannot be read as a database: {cause}; restore it, or move it away to begin anew"
    )]
    Damaged {
        /// Path of the file.
        path: String,
        /// SQLite's own message.
        cause: String,
    },
    /// The disk is full; nothing was written.
    #[error("no space is left for {path}; free some and try again")]
    NoSpace {
        /// Path of the file, or the cluster's endpoints.
        path: String,
    },
    /// The cluster does not answer; nothing was written.
    #[error("the store {path} cannot be reached: {cause}; see that its members run, and try again")]
    Unreachable {
        /// The cluster's endpoints.
        path: String,
        /// Why it cannot be reached.
        cause: String,
    },
    /// A commit was sent but its answer was lost, and the cluster does not say whether it took
    /// effect.
    #[error("whether {path} took the change is not known ({cause}); read before trying again")]
    Unknown {
        /// The cluster's endpoints.
        path: String,
        /// How the answer was lost.
        cause: String,
    },
    /// The transaction is larger than the engine allows; nothing was written.
    #[error("the change is too large for one transaction ({cause}); make it in several")]
    TooLarge {
        /// The limit, in the engine's own words.
        cause: String,
    },
    /// Any other error of the engine.
    #[error("the store {path} failed: {cause}")]
    Engine {
        /// Path of the file, or the cluster's endpoints.
        path: String,
        /// The engine's own message.
        cause: String,
    },
}

impl Error {
    /// Returns the stable code of the failure.
    pub fn code(&self) -> Code {
        match self {
            Error::Conflict { .. } => Code::StoreConflict,
            Error::SessionEnded(_) => Code::SessionEnded,
            Error::Compacted { .. } => Code::StoreCompacted,
            Error::Locked { .. } => Code::StoreLocked,
            Error::TooNew { .. } => Code::StoreTooNew,
            Error::Damaged { .. } => Code::StoreDamaged,
            Error::NoSpace { .. } => Code::NoSpace,
            Error::Unreachable { .. } => Code::StoreUnreachable,
            Error::Unknown { .. } => Code::StoreUnknown,
            Error::TooLarge { .. } => Code::StoreTooLarge,
            Error::Engine { .. } => Code::StoreFailed,
        }
    }

    /// Returns whether the same call may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Unknown { .. })
    }
}
