//! When a guest that says nothing is taken for dead.
//!
//! A watcher looks at the guest now and then. A guest that has said nothing for a while is asked
//! for a sign of life, again and again; one that has said nothing for the whole of its pool's
//! `guest_timeout_s` since it was first asked is dead. Times are those of a clock that never goes
//! back.

use crate::timestamp::Timestamp;
use std::time::Duration;

/// The longest pause between two looks. After a longer one, earlier questions do not count:
/// a watcher that was held up has not heard what was said meanwhile.
pub const HELD_UP: Duration = Duration::from_secs(5);
/// The shortest pause before a silent guest is asked, and asked again.
const SHORTEST: Duration = Duration::from_millis(500);

/// What is to be done about a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing is done before the next look.
    Wait,
    /// The guest is asked for a sign of life.
    Ask,
    /// The guest is dead: it has said nothing for this long since it was first asked.
    Dead(Duration),
}

/// What a watcher remembers of one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// When the guest was last looked at.
    looked: Timestamp,
    /// When the guest was first and last asked since it said something; `None` where it was not.
    asked: Option<(Timestamp, Timestamp)>,
}

impl Liveness {
    /// Begins to watch a guest.
    pub fn begin(now: Timestamp) -> Liveness {
        Liveness { looked: now, asked: None }
    }

    /// Looks at a guest that was last heard from at `heard`, and returns what to do. `timeout_s` is
    /// its pool's, in seconds; with 0 the guest may be silent for ever.
    pub fn look(&mut self, timeout_s: u64, heard: Timestamp, now: Timestamp) -> Next {
        let held_up = now.since(self.looked) > HELD_UP;
        self.looked = now;
        if held_up || timeout_s == 0 || self.asked.is_some_and(|(first, _)| heard >= first) {
            self.asked = None;
        }
        if timeout_s == 0 {
            return Next::Wait;
        }
        let timeout = Duration::from_secs(timeout_s);
        let pause = (timeout / 3).max(SHORTEST);
        match self.asked {
            Some((first, _)) if now.since(first) >= timeout => Next::Dead(now.since(first)),
            Some((first, last)) if now.since(last) >= pause => {
                self.asked = Some((first, now));
                Next::Ask
            }
            None if now.since(heard) >= pause => {
                self.asked = Some((now, now));
                Next::Ask
            }
            _ => Next::Wait,
        }
    }

    /// Returns whether a guest that was last heard from at `heard` has said nothing since it was
    /// asked.
    pub fn is_silent_since(&self, heard: Timestamp) -> bool {
        self.asked.is_some_and(|(first, _)| heard < first)
    }
}
