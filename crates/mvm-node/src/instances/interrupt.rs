//! Ends the waits of an operation that holds an instance's gate.
//!
//! A task that cannot wait for the gate, because the instance is to be destroyed or its guest does
//! not answer, raises an interrupt. Every wait for the guest then fails with the interrupt's
//! reason, and the operation ends as after any other error. Only waits end early: changes of
//! records, disks and links are completed.

use crate::Result;
use crate::deadlines::Until;
use crate::locks::locked;
use crate::problem::OrProblem;
use mvm_api::Problem;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// The interrupts of one instance.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    raised: Mutex<Vec<Arc<Problem>>>,
    count: watch::Sender<usize>,
}

/// An interrupt that is raised until this guard is dropped.
#[derive(Debug)]
pub(crate) struct Interrupt {
    waits: Arc<Waits>,
    why: Arc<Problem>,
}

impl Waits {
    /// Ends all present and future waits until the returned guard is dropped.
    pub fn interrupt(self: &Arc<Self>, why: Problem) -> Interrupt {
        let why = Arc::new(why);
        self.change(|raised| raised.push(why.clone()));
        Interrupt { waits: self.clone(), why }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Problem>>)) {
        let mut raised = locked(&self.raised);
        change(&mut raised);
        self.count.send_replace(raised.len());
    }

    /// Returns the reason of the first raised interrupt, if there is one.
    pub fn interrupted(&self) -> Option<Problem> {
        locked(&self.raised).first().map(|why| (**why).clone())
    }

    /// Waits until an interrupt is raised, and returns its reason.
    pub async fn interruption(&self) -> Problem {
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
                outcome => outcome.or_problem(),
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
    use mvm_model::AnyCode;

    fn why(code: &str) -> Problem {
        Problem::new(AnyCode::of(code), code)
    }

    async fn wait(waits: &Waits) -> Result<()> {
        waits.guest(STATS, std::future::pending()).await
    }

    #[tokio::test]
    async fn a_wait_ends_by_its_deadline_or_by_an_interrupt() {
        let waits = Arc::new(Waits::default());
        haste::make(100);
        assert_eq!(wait(&waits).await, Err(STATS.silent()));
        haste::make(1);
        let waiter = tokio::spawn({
            let waits = waits.clone();
            async move { wait(&waits).await }
        });
        tokio::task::yield_now().await;
        let first = waits.interrupt(why("first"));
        assert_eq!(waiter.await.expect("the task"), Err(why("first")));
        let second = waits.interrupt(why("second"));
        assert_eq!(wait(&waits).await, Err(why("first")), "also who begins to wait now");
        drop(first);
        assert_eq!(wait(&waits).await, Err(why("second")));
        drop(second);
        assert_eq!(waits.interrupted(), None);
        assert_eq!(waits.guest(STATS, async { Ok(7) }).await, Ok(7));
    }
}
