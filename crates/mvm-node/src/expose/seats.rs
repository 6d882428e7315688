//! The connections of a front, those that wait, and the instances that serve them.

use crate::error::FrontError;
use crate::locks::locked;
use crate::{Error, Result};
use mvm_clock::Clock;
use mvm_model::InstanceId;
use mvm_model::expose::{Front as Decisions, Limits};
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;
use tokio::sync::Notify;

/// The connections' places at the instances that serve a front.
pub(super) struct Seats {
    clock: Clock,
    limits: Lock<Limits>,
    decisions: Lock<Decisions>,
    /// Notified when waiting connections must check again.
    changed: Notify,
    /// Counts the wakes whose failure ends all waits, with the last one's error.
    hopeless: Lock<(u64, Option<Arc<Error>>)>,
}

impl Seats {
    /// Makes the places of a front without connections.
    pub fn new(limits: Limits, clock: Clock) -> Arc<Seats> {
        let (decisions, hopeless) = (Lock::default(), Lock::default());
        let limits = Lock::new(limits);
        Arc::new(Seats { clock, limits, decisions, changed: Notify::new(), hopeless })
    }

    pub fn limits(&self) -> Limits {
        *locked(&self.limits)
    }

    pub fn set_limits(&self, limits: Limits) {
        *locked(&self.limits) = limits;
    }

    /// Returns a copy of the present state.
    pub fn decisions(&self) -> Decisions {
        locked(&self.decisions).clone()
    }

    /// Waits until no instance is being woken or ended.
    pub async fn wait_until_settled(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if locked(&self.decisions).is_settled() {
                return;
            }
            changed.await;
        }
    }

    /// Waits for a place at an instance. Calls `wake` for each instance that is to be woken.
    pub async fn seat(self: &Arc<Self>, wake: impl Fn()) -> Result<Seat> {
        let waiting = Waiting::begin(self)?;
        let begun = locked(&self.hopeless).0;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let pause = {
                let limits = self.limits();
                let mut decisions = locked(&self.decisions);
                if let Some(id) = decisions.assign(&limits) {
                    return Ok(waiting.seated(id));
                }
                while decisions.wake(&limits, self.clock.now()) {
                    wake();
                }
                decisions.retry_at().since(self.clock.now())
            };
            let (failures, error) = locked(&self.hopeless).clone();
            if let Some(error) = error.filter(|_| failures != begun) {
                return Err(error.into());
            }
            let retry = async {
                match pause {
                    Duration::ZERO => std::future::pending().await,
                    pause => tokio::time::sleep(pause).await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = retry => {}
            }
        }
    }

    /// Notes that an instance was woken, or could not be.
    pub fn note_wake(&self, woken: Result<InstanceId>) {
        match woken {
            Ok(id) => locked(&self.decisions).woken(id, self.clock.now()),
            Err(error) => {
                if !locked(&self.decisions).failed(self.clock.now()) {
                    let mut hopeless = locked(&self.hopeless);
                    *hopeless = (hopeless.0 + 1, Some(Arc::new(error)));
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// Adds an instance that has served since an earlier agent.
    pub fn adopt(&self, id: InstanceId) {
        locked(&self.decisions).adopt(id, self.clock.now());
    }

    /// Returns the instances to end, because they have had no connection for long enough.
    pub fn over(&self) -> Vec<InstanceId> {
        locked(&self.decisions).end(&self.limits(), self.clock.now())
    }

    /// Notes that an instance was ended.
    pub fn ended(&self, id: InstanceId) {
        locked(&self.decisions).ended(id);
        self.changed.notify_waiters();
    }

    /// Notes that an instance no longer serves the front.
    pub fn lose(&self, id: InstanceId) {
        locked(&self.decisions).lose(id);
        self.changed.notify_waiters();
    }
}

/// A connection that waits for an instance, until it gets a place or is dropped.
struct Waiting<'a>(Option<&'a Arc<Seats>>);

impl Waiting<'_> {
    fn begin(seats: &Arc<Seats>) -> Result<Waiting<'_>> {
        if locked(&seats.decisions).arrive() {
            return Ok(Waiting(Some(seats)));
        }
        Err(FrontError::TooManyWait.into())
    }

    fn seated(mut self, id: InstanceId) -> Seat {
        // From now on the connection counts at the instance.
        let seats = self.0.take().cloned();
        Seat { seats, id }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(seats) = self.0 {
            locked(&seats.decisions).leave();
        }
    }
}

/// A connection's place at an instance, until it is dropped.
pub(super) struct Seat {
    seats: Option<Arc<Seats>>,
    pub id: InstanceId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(seats) = &self.seats {
            locked(&seats.decisions).close(self.id, seats.clock.now());
            seats.changed.notify_waiters();
        }
    }
}
