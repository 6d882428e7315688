//! Graceful shutdown: a coordinator that is asked to end leads no longer, takes nothing new, and lets
//! what goes through it come to its end.

use tokio::sync::watch;

/// Whether the coordinator is to end, and how much it still waits for.
pub(crate) struct Shutdown {
    begun: watch::Sender<bool>,
    under_way: watch::Sender<usize>,
}

/// Something that the end waits for, until this is dropped.
pub(crate) struct UnderWay(watch::Sender<usize>);

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown { begun: watch::channel(false).0, under_way: watch::channel(0).0 }
    }
}

impl Shutdown {
    /// Begins the shutdown.
    pub fn begin(&self) {
        self.begun.send_replace(true);
    }

    pub fn has_begun(&self) -> bool {
        *self.begun.borrow()
    }

    /// Waits until the shutdown has begun.
    pub async fn begun(&self) {
        let mut begun = self.begun.subscribe();
        let _ = begun.wait_for(|begun| *begun).await;
    }

    /// Makes the shutdown wait until the result is dropped.
    pub fn wait_for_this(&self) -> UnderWay {
        self.under_way.send_modify(|count| *count += 1);
        UnderWay(self.under_way.clone())
    }

    /// Waits until nothing is under way.
    pub async fn over(&self) {
        let mut under_way = self.under_way.subscribe();
        let _ = under_way.wait_for(|count| *count == 0).await;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
