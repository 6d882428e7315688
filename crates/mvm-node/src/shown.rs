//! Views with times that people read.
//!
//! Records hold times of the clock's timeline, so that a step of the wall clock ends no lease. People
//! compare times with their own clocks, so a view converts them to wall-clock times.

use mvm_api::jobs::JobView;
use mvm_api::types::InstanceView;
use mvm_clock::Clock;
use mvm_model::Timestamp;

/// A view whose times people read.
pub(crate) trait Shown: Sized {
    /// Returns all times of the view that are on the timeline. The times of a lease are converted
    /// already, since its end depends on its holders.
    fn times(&mut self) -> Vec<&mut Timestamp>;

    /// Converts the view's times to wall-clock times.
    fn shown(mut self, clock: &Clock) -> Self {
        self.times().into_iter().for_each(|time| *time = clock.wall_of(*time));
        self
    }
}

impl Shown for InstanceView {
    fn times(&mut self) -> Vec<&mut Timestamp> {
        let own = [&mut self.created_at, &mut self.state_since];
        let due =
            self.lingers_until.iter_mut().chain(self.next.iter_mut().map(|next| &mut next.at));
        own.into_iter().chain(due).collect()
    }
}

impl Shown for JobView {
    fn times(&mut self) -> Vec<&mut Timestamp> {
        let own = [Some(&mut self.created_at), self.queued_at.as_mut(), self.ended_at.as_mut()];
        let runs = self.attempts.iter_mut().flat_map(|attempt| {
            [Some(&mut attempt.since), attempt.began_at.as_mut(), attempt.ended_at.as_mut()]
        });
        own.into_iter().chain(runs).flatten().collect()
    }
}
