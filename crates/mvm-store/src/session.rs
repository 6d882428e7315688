//! A session that a task keeps alive.

use crate::{Error, Result, SessionId, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A session of this process. When dropped, it is no longer kept alive and ends after its time to
/// live, as if the process had died. [`Session::close`] ends it at once.
pub struct Session {
    store: Arc<dyn Store>,
    id: SessionId,
    live: watch::Receiver<bool>,
    keeper: JoinHandle<()>,
}

impl Session {
    /// Opens a session that ends `ttl` (whole seconds, at least 1) after this process has died.
    pub async fn open(store: Arc<dyn Store>, ttl: Duration) -> Result<Session> {
        let begun = Instant::now();
        let id = store.open_session(ttl).await?;
        let (said, live) = watch::channel(true);
        let keeper = tokio::spawn({
            let store = store.clone();
            async move {
                keep(&*store, id, ttl, begun).await;
                said.send_replace(false);
            }
        });
        Ok(Session { store, id, live, keeper })
    }

    /// Returns the session's id, for [`crate::Write::Hold`].
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Returns the store that the session belongs to.
    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Returns whether the session certainly lives.
    pub fn is_live(&self) -> bool {
        *self.live.borrow()
    }

    /// Waits until the session has ended, or may have because the store was not reached in time.
    /// This process knows so before others can see the session's records vanish.
    pub async fn ended(&self) {
        let mut live = self.live.clone();
        let _ = live.wait_for(|live| !live).await;
    }

    /// Ends the session now and removes its records.
    pub async fn close(self) -> Result<()> {
        self.keeper.abort();
        self.store.end_session(self.id).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Keeps the session alive; returns once it has ended, or may have.
async fn keep(store: &dyn Store, id: SessionId, ttl: Duration, begun: Instant) {
    let mut ends = begun + ttl;
    let (beat, retry) = (ttl / 3, ttl / 10);
    let mut pause = beat;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(ends) => return,
            () = tokio::time::sleep(pause) => {}
        }
        let asked = Instant::now();
        let answer = tokio::time::timeout_at(ends, store.keep_session(id)).await;
        pause = match answer {
            Ok(Ok(())) => {
                // The time to live counts from when the store received the request, which was
                // later.
                ends = asked + ttl;
                beat
            }
            Ok(Err(Error::SessionEnded(_))) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::warn!(session = %id, %error, "the session could not be kept; trying again");
                retry
            }
        };
    }
}
