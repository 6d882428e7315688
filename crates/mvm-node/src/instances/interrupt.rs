//! Ends the waits of an operation that holds an instance's gate.
//!
//! A task that cannot wait for the gate, because the instance is to be destroyed or its guest does
//! not answer, raises an interrupt. Every wait for the guest then fails with the interrupt's
//! reason, and the operation ends as after any other error. Only waits end early: changes of
//! records, disks and links are completed.

use crate::deadlines::Until;
use crate::locks::locked;
use crate::{Error, Result};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// The interrupts of one instance.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    raised: Mutex<Vec<Arc<Error>>>,
    count: watch::Sender<usize>,
}

/// An interrupt that is raised until this guard is dropped.
#[derive(Debug)]
pub(crate) struct Interrupt {
    waits: Arc<Waits>,
    why: Arc<Error>,
}

impl Waits {
    /// Ends all present and future waits until the returned guard is dropped.
    pub fn interrupt(self: &Arc<Self>, why: impl Into<Arc<Error>>) -> Interrupt {
        let why = why.into();
        self.change(|raised| raised.push(why.clone()));
        Interrupt { waits: self.clone(), why }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Error>>)) {
        let mut raised = locked(&self.raised);
        change(&mut raised);
        self.count.send_replace(raised.len());
    }

    /// Returns the reason of the first raised interrupt, if there is one.
    pub fn interrupted(&self) -> Option<Error> {
        locked(&self.raised).first().map(|why| why.clone().into())
    }

    /// Waits until an interrupt is raised, and returns its reason.
    pub async fn interruption(&self) -> Error {
        let mut count = self.count.subscribe();
        loop {
            if let Some(why) = self.interrupted() {
                return why;
            }
            // This cannot fail: `self` owns the sender.
            let _ = count.wait_for(|count| *count > 0).await;
        }
    }

    /// Waits for a guest's answer, until the deadline passes or an interrupt is raised.
    pub async fn guest<T>(
        &self,
        until: impl Into<Until>,
        work: impl Future<Output = mvm_guest::Result<T>>,
    ) -> Result<T> {
        let until = until.into();
        tokio::select! {
            biased;
            why = self.interruption() => Err(why),
            outcome = work => match outcome {
                Err(mvm_guest::Error::Silent(_)) => Err(until.deadline.silent()),
                outcome => outcome.map_err(Error::from),
            },
            () = tokio::time::sleep_until(until.at) => Err(until.deadline.silent()),
        }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.waits.change(|raised| raised.retain(|why| !Arc::ptr_eq(why, &self.why)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadlines::{STATS, haste};
    use crate::error::MachineError;
    use mvm_model::InstanceId;

    fn why(number: u32) -> Error {
        MachineError::BeingDestroyed(InstanceId::from_number(number)).into()
    }

    fn message_of<T>(outcome: Result<T>) -> std::result::Result<T, String> {
        outcome.map_err(|error| error.to_string())
    }

    async fn wait(waits: &Waits) -> std::result::Result<(), String> {
        message_of(waits.guest(STATS, std::future::pending()).await)
    }

    #[tokio::test]
    async fn a_wait_ends_by_its_deadline_or_by_an_interrupt() {
        let waits = Arc::new(Waits::default());
        haste::make(100);
        assert_eq!(wait(&waits).await, Err(STATS.silent().to_string()));
        haste::make(1);
        let waiter = tokio::spawn({
            let waits = waits.clone();
            async move { wait(&waits).await }
        });
        tokio::task::yield_now().await;
        let first = waits.interrupt(why(1));
        assert_eq!(waiter.await.expect("the task"), Err(why(1).to_string()));
        let second = waits.interrupt(why(2));
        assert_eq!(wait(&waits).await, Err(why(1).to_string()), "also who begins to wait now");
        drop(first);
        assert_eq!(wait(&waits).await, Err(why(2).to_string()));
        drop(second);
        assert!(waits.interrupted().is_none());
        assert_eq!(message_of(waits.guest(STATS, async { Ok(7) }).await), Ok(7));
    }
}
