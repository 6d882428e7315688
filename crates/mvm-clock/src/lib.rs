//! Time that passes evenly, whatever happens to the wall clock.
//!
//! What lives here: the clock as a value, which is handed to whatever asks for the time ([`Clock`]).
//! The system's follows CLOCK_BOOTTIME and continues where the process before it was
//! ([`Clock::open`]). A test sets its own ([`ManualClock`]).
//!
//! What never may: what anything waits for, and when it is due (mvm-model takes times as
//! arguments); and a clock that everything in the process can reach, since no test could set it for
//! one part alone.

mod manual;
mod system;

pub use manual::ManualClock;

use mvm_model::Timestamp;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use system::System;

/// A clock: elapsed time for decisions, and the wall clock for certificates and for people. It is
/// cloned cheaply, and a clone is the same clock.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System(Arc<System>),
    Manual(ManualClock),
}

impl Clock {
    /// Returns the system's clock, with a timeline that begins with the wall clock now. For programs
    /// that keep no time beyond their end.
    pub fn system() -> Clock {
        Clock(Source::System(Arc::new(System::first())))
    }

    /// Returns the system's clock, with the timeline that `file` holds, which is written there from
    /// now on. Only the process that alone may write to the file may call this, and once. Errors:
    /// those of reading and writing the file.
    pub fn open(file: &Path) -> io::Result<Clock> {
        Ok(Clock(Source::System(System::open(file)?)))
    }

    /// Returns the time on the clock's timeline. It never goes back, and passes as time does,
    /// including suspended time. Its values equal the wall clock's for as long as nobody steps that.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System(system) => system.now(),
            Source::Manual(manual) => manual.now(),
        }
    }

    /// Returns the wall clock's time.
    pub fn wall(&self) -> Timestamp {
        Timestamp::EPOCH + self.since_epoch()
    }

    /// Returns the wall clock to the nanosecond, to which a guest's is set; zero before the Unix
    /// epoch.
    pub fn since_epoch(&self) -> Duration {
        match &self.0 {
            Source::System(_) => system::since_epoch(),
            Source::Manual(manual) => manual.since_epoch(),
        }
    }

    /// Returns when, by the present wall clock, a time of the timeline was or will be. Two
    /// calls return the same unless the wall clock was stepped in between.
    pub fn wall_of(&self, time: Timestamp) -> Timestamp {
        match &self.0 {
            Source::System(system) => system.wall_of(time),
            Source::Manual(manual) => manual.wall_of(time),
        }
    }

    /// Returns the hand of a clock that a test has made; `None` for the system's, which nobody moves.
    pub fn hand(&self) -> Option<&ManualClock> {
        match &self.0 {
            Source::System(_) => None,
            Source::Manual(manual) => Some(manual),
        }
    }
}

impl ManualClock {
    /// Returns the clock to hand in.
    pub fn clock(&self) -> Clock {
        Clock(Source::Manual(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use system::difference;

    fn time(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn the_timeline_begins_with_the_wall_clock() {
        let clock = Clock::system();
        assert!(difference(clock.now(), clock.wall()).unsigned_abs() < system::STEP);
        assert_eq!(clock.wall_of(time(5)), time(5));
    }

    #[test]
    fn clocks_of_one_process_are_set_apart_and_clones_together() {
        let (ours, theirs) = (ManualClock::standing(time(1000)), ManualClock::standing(time(1000)));
        let clock = ours.clock();
        ours.advance(Duration::from_millis(50));
        ours.step_wall(-200);
        for clone in [clock.clone(), ours.clock()] {
            let seen = [clone.now(), clone.wall(), clone.wall_of(time(1000))];
            assert_eq!(seen, [1050, 850, 800].map(time));
        }
        let other = theirs.clock();
        let seen = [other.now(), other.wall(), other.wall_of(time(1000))];
        assert_eq!(seen, [time(1000); 3]);
    }

    #[test]
    fn every_thread_sees_a_clock_that_was_advanced() {
        let (hour, manual) = (Duration::from_secs(3600), ManualClock::running());
        let clock = manual.clock();
        let began = clock.now();
        let seen = std::thread::scope(|scope| {
            let elsewhere = scope.spawn(|| {
                while clock.now() < began + hour {
                    std::thread::yield_now();
                }
                (clock.now(), clock.wall())
            });
            manual.advance(hour);
            elsewhere.join().expect("a thread")
        });
        let apart = difference(seen.1, seen.0).unsigned_abs();
        assert!(seen.0 >= began + hour && apart < system::STEP, "{seen:?}");
        assert_eq!(clock.wall_of(began), began, "the wall clock was not stepped");
    }
}
