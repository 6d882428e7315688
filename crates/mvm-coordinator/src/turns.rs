//! One task at a time serves a claim.
//!
//! A client whose connection breaks asks for its claim again by the same key, while the leader may
//! still serve the first request: the connection goes through a coordinator that was stopped, or
//! the network has not reported the break yet. The later request takes the place of the earlier
//! one.

use crate::{Error, Result};
use mvm_model::LeaseId;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a request waits for the earlier one to give up its place.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// The claims that are being served, by id.
#[derive(Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<HashMap<LeaseId, TurnHolder>>>);

/// How a later request reaches the one that has its turn.
struct TurnHolder {
    displace: watch::Sender<bool>,
    over: watch::Receiver<()>,
}

/// The right to serve a claim, until it is dropped.
pub(crate) struct Turn {
    id: LeaseId,
    turns: Turns,
    displaced: watch::Receiver<bool>,
    /// Dropped after the place is free: wakes the requests that wait for it.
    _over: watch::Sender<()>,
}

impl Turns {
    fn map(&self) -> MutexGuard<'_, HashMap<LeaseId, TurnHolder>> {
        self.0.lock()
    }

    /// Takes the place of the request that serves the claim. Errors: `claim_under_way`, where the
    /// earlier request does not give up its place in time.
    pub async fn take(&self, id: LeaseId) -> Result<Turn> {
        let turn = timeout(GIVEN_UP, self.wait_for(id)).await;
        turn.map_err(|_| Error::ClaimUnderWay(id))
    }

    async fn wait_for(&self, id: LeaseId) -> Turn {
        loop {
            let mut over = {
                let mut map = self.map();
                let Some(place) = map.get(&id) else {
                    let (displace, displaced) = watch::channel(false);
                    let (over, ended) = watch::channel(());
                    map.insert(id, TurnHolder { displace, over: ended });
                    return Turn { id, turns: self.clone(), displaced, _over: over };
                };
                place.displace.send_replace(true);
                place.over.clone()
            };
            // Nothing is ever sent: the wait ends when the sender is dropped.
            while over.changed().await.is_ok() {}
        }
    }
}

impl Turn {
    /// Waits until a later request wants the place.
    pub async fn displaced(&self) {
        let mut displaced = self.displaced.clone();
        if displaced.wait_for(|displaced| *displaced).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns whether a later request wants the place.
    pub fn is_displaced(&self) -> bool {
        *self.displaced.borrow()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.map().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_later_request_takes_the_place_of_the_earlier_one() {
        let (turns, [id, another]) = (Turns::default(), [1, 2].map(LeaseId::of_claim));
        let first = turns.take(id).await.expect("nobody is there");
        let other = turns.take(another).await.expect("another claim");
        assert!(!first.is_displaced() && first.displaced().now_or_never().is_none());
        let (asked, second) = (turns.clone(), turns.clone());
        let second = tokio::spawn(async move { second.take(id).await });
        first.displaced().await;
        assert!(first.is_displaced() && !other.is_displaced());
        assert!(!second.is_finished(), "the first has not given up its place");
        drop(first);
        let second = second.await.expect("a task").expect("its turn");
        assert!(!second.is_displaced());
        drop(second);
        asked.take(id).await.expect("it is free");
    }
}
