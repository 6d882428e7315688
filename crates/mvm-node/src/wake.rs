//! Signals upwards: a service wakes a loop above it without knowing whose loop that is.

use std::sync::Arc;
use tokio::sync::Notify;

/// Wakes a loop. Whoever constructs the services hands out clones; one loop waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wake(Arc<Notify>);

impl Wake {
    /// Has the loop run once more, soon. Several calls before it does count as one.
    pub(crate) fn notify(&self) {
        self.0.notify_one();
    }

    /// Waits until somebody calls [`Wake::notify`], or returns at once if somebody has since the last time.
    pub(crate) async fn notified(&self) {
        self.0.notified().await;
    }
}
