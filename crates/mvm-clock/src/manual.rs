//! A clock that a test sets.

use crate::system::{System, since_epoch, stepped};
use mvm_model::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// The hand of a clock in a test, with which the test moves the time for whoever has its
/// [`ManualClock::clock`]. A clone moves the same clock.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Setting>);

#[derive(Debug)]
struct Setting {
    base: Base,
    /// How far the time was advanced, in ms.
    advanced: AtomicU64,
    /// How far the wall clock was stepped away from the timeline, in ms.
    stepped: AtomicI64,
}

/// What passes by itself.
#[derive(Debug)]
enum Base {
    /// Nothing, from this time on.
    Standing(Timestamp),
    /// The system's time.
    Running(System),
}

impl ManualClock {
    /// Makes a clock that stands at `start` until it is advanced.
    pub fn standing(start: Timestamp) -> ManualClock {
        ManualClock::of(Base::Standing(start))
    }

    /// Makes a clock that runs as the system's does and can be advanced beyond it, for tests of
    /// tasks that also wait for real.
    pub fn running() -> ManualClock {
        ManualClock::of(Base::Running(System::first()))
    }

    fn of(base: Base) -> ManualClock {
        let (advanced, stepped) = Default::default();
        ManualClock(Arc::new(Setting { base, advanced, stepped }))
    }

    /// Advances the time, and the wall clock with it, for whoever has the clock.
    pub fn advance(&self, by: Duration) {
        self.0.advanced.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// Steps the wall clock, forward or back, in ms. The timeline does not notice.
    pub fn step_wall(&self, by: i64) {
        self.0.stepped.fetch_add(by, Ordering::SeqCst);
    }

    pub(crate) fn now(&self) -> Timestamp {
        let base = match &self.0.base {
            Base::Standing(start) => *start,
            Base::Running(system) => system.now(),
        };
        base + self.advanced()
    }

    pub(crate) fn since_epoch(&self) -> Duration {
        let base = match &self.0.base {
            Base::Standing(start) => start.since(Timestamp::EPOCH),
            Base::Running(_) => since_epoch(),
        };
        let (ahead, step) = (base + self.advanced(), self.stepped());
        let by = Duration::from_millis(step.unsigned_abs());
        if step < 0 { ahead.saturating_sub(by) } else { ahead + by }
    }

    pub(crate) fn wall_of(&self, time: Timestamp) -> Timestamp {
        let time = match &self.0.base {
            Base::Standing(_) => time,
            Base::Running(system) => system.wall_of(time),
        };
        stepped(time, self.stepped())
    }

    fn advanced(&self) -> Duration {
        Duration::from_millis(self.0.advanced.load(Ordering::SeqCst))
    }

    fn stepped(&self) -> i64 {
        self.0.stepped.load(Ordering::SeqCst)
    }
}
