//! When a guest that says nothing is taken for dead.
//!
//! Whoever watches it looks now and then. A guest that has said nothing for a while is asked, again and
//! again; one that has said nothing since it was first asked, for the whole of its pool's
//! `guest_timeout_s`, is dead. Times are in ms of a clock that never goes back.

use crate::Millis;

/// The longest between two looks for what was asked before the first to count after the second: a
/// watcher that was held up has not heard what was said meanwhile.
pub const HELD_UP_MS: Millis = 5000;
/// The shortest pause before a guest that is silent is asked, and asked again.
const SHORTEST_MS: Millis = 500;

/// What is to be done about a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Wait,
    /// It is to be asked for a sign of life.
    Ask,
    /// It is dead: it has said nothing for so many ms after it was asked.
    Dead(Millis),
}

/// What is remembered of one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// When it was last looked at.
    looked: Millis,
    /// When it was asked first, and last, since it said something.
    asked: Option<(Millis, Millis)>,
}

impl Liveness {
    /// Begins to watch.
    pub fn begin(now: Millis) -> Liveness {
        Liveness { looked: now, asked: None }
    }

    /// Looks at a guest of a pool with this timeout in seconds (0: it may be silent for ever) that
    /// was last heard of at `heard`.
    pub fn look(&mut self, timeout_s: u64, heard: Millis, now: Millis) -> Next {
        let held_up = now.saturating_sub(self.looked) > HELD_UP_MS;
        self.looked = now;
        if held_up || timeout_s == 0 || self.asked.is_some_and(|(first, _)| heard >= first) {
            self.asked = None;
        }
        if timeout_s == 0 {
            return Next::Wait;
        }
        let timeout = timeout_s.saturating_mul(1000);
        let pause = (timeout / 3).max(SHORTEST_MS);
        match self.asked {
            Some((first, _)) if now.saturating_sub(first) >= timeout => {
                Next::Dead(now.saturating_sub(first))
            }
            Some((first, last)) if now.saturating_sub(last) >= pause => {
                self.asked = Some((first, now));
                Next::Ask
            }
            None if now.saturating_sub(heard) >= pause => {
                self.asked = Some((now, now));
                Next::Ask
            }
            _ => Next::Wait,
        }
    }

    /// Whether a guest that was last heard of at `heard` has said nothing since it was asked.
    pub fn is_silent_since(&self, heard: Millis) -> bool {
        self.asked.is_some_and(|(first, _)| heard < first)
    }
}
