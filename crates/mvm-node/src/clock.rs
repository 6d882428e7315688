//! The node's time: elapsed time for decisions, and wall-clock time for display.
//!
//! Records hold times of the timeline (`mvm_clock`), so that a step of the wall clock ends no
//! lease. People compare times with their own clocks, so a view converts them to wall-clock times.

use mvm_api::jobs::JobView;
use mvm_api::types::InstanceView;
use mvm_model::Millis;

pub(crate) use mvm_clock::{wall, wall_of};

/// Returns the time on the node's timeline, in ms. Only differences are meaningful.
pub(crate) fn now() -> Millis {
    let now = mvm_clock::now();
    #[cfg(test)]
    let now = now + ahead();
    now
}

/// A view whose times people read.
pub(crate) trait Shown: Sized {
    /// Returns all times of the view that are on the timeline. The times of a lease are converted
    /// already, since its end depends on its holders.
    fn times(&mut self) -> Vec<&mut Millis>;

    /// Converts the view's times to wall-clock times.
    fn shown(mut self) -> Self {
        self.times().into_iter().for_each(|time| *time = wall_of(*time));
        self
    }
}

impl Shown for InstanceView {
    fn times(&mut self) -> Vec<&mut Millis> {
        let own = [&mut self.created_at, &mut self.state_since];
        let due =
            self.lingers_until.iter_mut().chain(self.next.iter_mut().map(|next| &mut next.at));
        own.into_iter().chain(due).collect()
    }
}

impl Shown for JobView {
    fn times(&mut self) -> Vec<&mut Millis> {
        let own = [Some(&mut self.created_at), self.queued_at.as_mut(), self.ended_at.as_mut()];
        let runs = self.attempts.iter_mut().flat_map(|attempt| {
            [Some(&mut attempt.since), attempt.began_at.as_mut(), attempt.ended_at.as_mut()]
        });
        own.into_iter().chain(runs).flatten().collect()
    }
}

#[cfg(test)]
pub(crate) use ahead::{advance, ahead};

/// Tests advance the time instead of waiting.
#[cfg(test)]
mod ahead {
    use mvm_model::Millis;
    use std::cell::Cell;

    thread_local! {
        static AHEAD: Cell<Millis> = const { Cell::new(0) };
    }

    /// Returns how far this thread's time is ahead.
    pub(crate) fn ahead() -> Millis {
        AHEAD.get()
    }

    /// Advances this thread's time.
    pub(crate) fn advance(by: Millis) {
        AHEAD.set(AHEAD.get() + by);
    }
}
