//! Records, and what is read and written of them.

use std::fmt;

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
    pub(crate) fn effects(writes: &[Write]) -> Vec<&Write> {
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
    pub(crate) fn start(&self) -> &str {
        self.prefix.as_str().max(&self.from)
    }
}
