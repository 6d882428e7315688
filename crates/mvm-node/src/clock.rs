//! The node's time: elapsed time for all that is decided, and wall-clock times for what is shown.
//!
//! Records hold times of the timeline (`mvm_clock`): a step of the wall clock ends no lease. People
//! compare what they read with their own clocks, so a view gives the same times as the wall clock
//! would call them now.

use mvm_api::jobs::JobView;
use mvm_api::types::InstanceView;
use mvm_model::Millis;

pub(crate) use mvm_clock::{wall, wall_of};

/// The time on the node's timeline, in ms. Only differences mean something.
pub(crate) fn now() -> Millis {
    let now = mvm_clock::now();
    #[cfg(test)]
    let now = now + ahead();
    now
}

/// A view whose times are to be read by people.
pub(crate) trait Shown: Sized {
    /// All its times, which are of the timeline. A lease in it is shown already, by those who know
    /// its holders.
    fn times(&mut self) -> Vec<&mut Millis>;

    /// The same with wall-clock times.
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

/// Tests do not wait: they let time pass.
#[cfg(test)]
mod ahead {
    use mvm_model::Millis;
    use std::cell::Cell;

    thread_local! {
        static AHEAD: Cell<Millis> = const { Cell::new(0) };
    }

    /// How much more time has passed for this thread.
    pub(crate) fn ahead() -> Millis {
        AHEAD.get()
    }

    /// Lets so much time pass for this thread.
    pub(crate) fn advance(by: Millis) {
        AHEAD.set(AHEAD.get() + by);
    }
}
