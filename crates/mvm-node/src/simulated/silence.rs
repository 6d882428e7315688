//! Guests that fall silent, for tests of the operations that wait for them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Lets a guest fall silent at a round trip: a new connection from its host, or a request. From
/// then on the guest sends nothing on any connection, until its machine is started anew.
#[derive(Clone, Debug, Default)]
pub struct Silence(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// The number of the round trip at which a guest falls silent; 0 is never.
    at: AtomicU64,
    trips: AtomicU64,
    struck: tokio::sync::Notify,
    fallen: Mutex<HashSet<u64>>,
}

impl Silence {
    /// Counts round trips from now on, and lets the guest of the `at`th one fall silent.
    #[cfg(test)]
    pub fn arm(&self, at: Option<u64>) {
        self.0.at.store(at.unwrap_or(0), Ordering::SeqCst);
        self.0.trips.store(0, Ordering::SeqCst);
    }

    /// Returns the number of round trips since the silence was armed.
    #[cfg(test)]
    pub fn trips(&self) -> u64 {
        self.0.trips.load(Ordering::SeqCst)
    }

    /// Waits until a guest has fallen silent since the last call.
    #[cfg(test)]
    pub async fn struck(&self) {
        self.0.struck.notified().await;
    }

    /// Notes the beginning of a round trip with the guest of the machine `machine`. Never returns
    /// if the guest is or falls silent.
    pub(super) async fn trip(&self, machine: u64) {
        let trip = self.0.trips.fetch_add(1, Ordering::SeqCst) + 1;
        if trip == self.0.at.load(Ordering::SeqCst) {
            crate::locks::locked(&self.0.fallen).insert(machine);
            self.0.struck.notify_one();
        }
        self.wait_unless_heard(machine).await;
    }

    /// Returns if the guest is not silent; otherwise never.
    pub(super) async fn wait_unless_heard(&self, machine: u64) {
        if crate::locks::locked(&self.0.fallen).contains(&machine) {
            std::future::pending::<()>().await;
        }
    }
}
