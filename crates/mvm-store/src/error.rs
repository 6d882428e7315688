//! Why a store refused or failed.

use crate::{Expect, SessionId};
use mvm_model::Code;

/// What a store gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

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
    /// The session that a record was to belong to, or that was to be kept, has ended; nothing was
    /// written.
    #[error("the session {0} has ended: it was not kept alive in time; open a new one")]
    SessionEnded(SessionId),
    /// The changes after that revision are not kept any more.
    #[error("the changes after revision {after} are gone; list the records, then watch from there")]
    Compacted {
        /// From where they were asked for.
        after: u64,
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
        /// The file, or the cluster.
        path: String,
    },
    /// The cluster does not answer; nothing was written.
    #[error("the store {path} cannot be reached: {cause}; see that its members run, and try again")]
    Unreachable {
        /// The cluster.
        path: String,
        /// What stands in the way.
        cause: String,
    },
    /// A commit was sent and its answer lost, and the cluster does not tell what became of it.
    #[error("whether {path} took the change is not known ({cause}); read before trying again")]
    Unknown {
        /// The cluster.
        path: String,
        /// How the answer was lost.
        cause: String,
    },
    /// More than the engine takes in one transaction; nothing was written.
    #[error("the change is too large for one transaction ({cause}); make it in several")]
    TooLarge {
        /// The limit, as the engine says it.
        cause: String,
    },
    /// Anything else that the engine says.
    #[error("the store {path} failed: {cause}")]
    Engine {
        /// The file, or the cluster.
        path: String,
        /// What the engine says.
        cause: String,
    },
}

impl Error {
    /// A stable code.
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

    /// Whether the same can go well later, with nothing mended by hand.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Unknown { .. })
    }
}
