//! Signals upwards: a service wakes a loop above it without knowing the loop.

use std::sync::Arc;
use tokio::sync::Notify;

/// Wakes a loop. The code that constructs the services passes clones on; one loop waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wake(Arc<Notify>);

impl Wake {
    /// Lets the loop run once more, soon. Several calls before it does count as one.
    pub(crate) fn notify(&self) {
        self.0.notify_one();
    }

    /// Waits until [`Wake::notify`] is called, or returns at once if it was called since the last
    /// time.
    pub(crate) async fn notified(&self) {
        self.0.notified().await;
    }
}
