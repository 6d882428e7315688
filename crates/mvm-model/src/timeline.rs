//! A process' timeline: milliseconds that pass evenly, also while the wall clock is stepped.
//!
//! Leases, ages, deadlines and back-offs count elapsed time. The kernel's time since boot is that,
//! suspend included, but it begins anew at every boot. So an anchor ties it to a time that reads
//! like the wall clock's: within one boot the timeline follows the time since boot alone, and the
//! wall clock is asked only how long a reboot has taken.

use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One moment, as the clocks of a host show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Which boot of the host it belongs to; empty where the host does not tell.
    pub boot_id: String,
    /// Milliseconds since that boot, suspended ones included.
    pub since_boot: u64,
    /// The time by the wall clock.
    pub wall: Timestamp,
}

/// A moment, and its time on the timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The moment.
    #[serde(flatten)]
    pub moment: Moment,
    /// The moment's time on the timeline.
    pub time: Timestamp,
}

impl Anchor {
    /// Begins a timeline, whose first moment has the wall clock's time.
    pub fn first(moment: Moment) -> Anchor {
        let time = moment.wall;
        Anchor { moment, time }
    }

    /// Returns the time of a moment that is not before the anchor; it is never before the anchor's
    /// time.
    pub fn time_of(&self, moment: &Moment) -> Timestamp {
        let Moment { boot_id, since_boot, wall } = &self.moment;
        let same_boot = !boot_id.is_empty() && *boot_id == moment.boot_id;
        let elapsed = match moment.since_boot.checked_sub(*since_boot).filter(|_| same_boot) {
            Some(elapsed) => Duration::from_millis(elapsed),
            // The host was booted again: nothing but the wall clock knows how long that took.
            None => moment.wall.since(*wall),
        };
        self.time + elapsed
    }

    /// Returns the same timeline, anchored at a later moment.
    pub fn moved_to(&self, moment: Moment) -> Anchor {
        Anchor { time: self.time_of(&moment), moment }
    }
}
