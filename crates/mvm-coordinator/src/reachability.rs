//! Which nodes this coordinator reaches, and what of that the store does not say yet.

use mvm_model::Name;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// So many are written at once.
const BATCH: usize = 100;

/// What is to be told.
#[derive(Default)]
pub(crate) struct Reachability {
    book: Mutex<Book>,
    changed: Notify,
}

#[derive(Default)]
struct Book {
    reached: BTreeSet<Name>,
    /// What the store does not say yet.
    pending: BTreeMap<Name, bool>,
}

impl Reachability {
    /// This coordinator reaches the node, or does not.
    pub fn set(&self, node: &Name, reached: bool) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match reached {
            true => book.reached.insert(node.clone()),
            false => book.reached.remove(node),
        };
        if changed {
            book.pending.insert(node.clone(), reached);
            self.changed.notify_one();
        }
    }

    /// Waits until something is to be told.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Everything is to be told again.
    pub fn all_again(&self) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.pending = book.reached.iter().map(|node| (node.clone(), true)).collect();
    }

    pub fn take(&self) -> Vec<(Name, bool)> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        while taken.len() < BATCH {
            let Some(one) = book.pending.pop_first() else { break };
            taken.push(one);
        }
        taken
    }

    /// These are still to be told, unless something newer is.
    pub fn put_back(&self, taken: Vec<(Name, bool)>) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, reached) in taken {
            book.pending.entry(node).or_insert(reached);
        }
    }
}
