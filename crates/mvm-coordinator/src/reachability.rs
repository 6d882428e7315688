//! Which nodes this coordinator reaches, and which changes of that the store does not have yet.

use mvm_model::Name;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::Notify;

/// How many changes are written at once.
const BATCH: usize = 100;

/// The nodes that this coordinator reaches, and the changes that are still to be written.
#[derive(Default)]
pub(crate) struct Reachability {
    book: Mutex<Book>,
    changed: Notify,
}

#[derive(Default)]
struct Book {
    reached: BTreeSet<Name>,
    /// Changes that the store does not have yet.
    pending: BTreeMap<Name, bool>,
}

impl Reachability {
    /// Notes whether this coordinator reaches the node.
    pub fn set(&self, node: &Name, reached: bool) {
        let mut book = self.book.lock();
        let changed = match reached {
            true => book.reached.insert(node.clone()),
            false => book.reached.remove(node),
        };
        if changed {
            book.pending.insert(node.clone(), reached);
            self.changed.notify_one();
        }
    }

    /// Waits until there is a change to write.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Has everything written again, for a new session of the store.
    pub fn all_again(&self) {
        let mut book = self.book.lock();
        book.pending = book.reached.iter().map(|node| (node.clone(), true)).collect();
    }

    pub fn take(&self) -> Vec<(Name, bool)> {
        let mut book = self.book.lock();
        let mut taken = Vec::new();
        while taken.len() < BATCH {
            let Some(one) = book.pending.pop_first() else { break };
            taken.push(one);
        }
        taken
    }

    /// Puts back changes that were not written, but for those that a newer change has replaced.
    pub fn put_back(&self, taken: Vec<(Name, bool)>) {
        let mut book = self.book.lock();
        for (node, reached) in taken {
            book.pending.entry(node).or_insert(reached);
        }
    }
}
