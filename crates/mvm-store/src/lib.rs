//! Versioned records with compare-and-set, transactions, watches, sessions and elections.
//!
//! What lives here: the trait [`Store`] (revisions of the whole store, transactions with
//! conditions, lists by prefix, watches from a revision, records that vanish with their session),
//! its embedded engine on SQLite, [`SqliteStore`], its engine for fleets on etcd, [`EtcdStore`],
//! and what is built on the trait alone: a session that is kept alive ([`Session`]), a leader
//! ([`Election`]), a list that stays current ([`follow()`]).
//!
//! What never may: the meaning of the records.

mod election;
mod error;
mod etcd;
mod follow;
mod history;
mod records;
mod session;
mod sqlite;
mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use election::{Election, Leader, Leadership};
pub use error::{Error, Result};
pub use etcd::{EtcdOptions, EtcdStore, EtcdTls};
pub use follow::{Followed, follow};
pub use records::{Change, Expect, Listing, Range, Record, SessionId, Write};
pub use session::Session;
pub use sqlite::SqliteStore;
pub use store::{Store, Watch};
