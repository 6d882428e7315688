//! Guests that fall silent, for tests of whoever waits for them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Lets a guest fall silent at a round trip: a new connection of its host, or a request. From then on
/// it says nothing more on any connection, until it is started anew.
#[derive(Clone, Debug, Default)]
pub struct Silence(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// The round trip at which it happens; 0 is never.
    at: AtomicU64,
    trips: AtomicU64,
    struck: tokio::sync::Notify,
    fallen: Mutex<HashSet<u64>>,
}

impl Silence {
    /// Counts round trips from now on, and lets the guest of the `at`th fall silent.
    #[cfg(test)]
    pub fn arm(&self, at: Option<u64>) {
        self.0.at.store(at.unwrap_or(0), Ordering::SeqCst);
        self.0.trips.store(0, Ordering::SeqCst);
    }

    /// The round trips since it was armed.
    #[cfg(test)]
    pub fn trips(&self) -> u64 {
        self.0.trips.load(Ordering::SeqCst)
    }

    /// Resolves when a guest has fallen silent since it was last asked.
    #[cfg(test)]
    pub async fn struck(&self) {
        self.0.struck.notified().await;
    }

    /// A round trip with the guest of the machine with this number begins.
    pub(super) async fn trip(&self, machine: u64) {
        let trip = self.0.trips.fetch_add(1, Ordering::SeqCst) + 1;
        if trip == self.0.at.load(Ordering::SeqCst) {
            crate::locks::locked(&self.0.fallen).insert(machine);
            self.0.struck.notify_one();
        }
        self.speak(machine).await;
    }

    /// Returns where the guest still speaks.
    pub(super) async fn speak(&self, machine: u64) {
        if crate::locks::locked(&self.0.fallen).contains(&machine) {
            std::future::pending::<()>().await;
        }
    }
}
