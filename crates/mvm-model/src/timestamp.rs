//! Points in time. Lengths of time are [`Duration`]s.

use crate::text::plain_schema;
use serde::{Deserialize, Serialize};
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point in time to the millisecond, written as the milliseconds since the Unix epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(u64);

plain_schema!(Timestamp as u64);

impl Timestamp {
    /// The Unix epoch, which is before every other time.
    pub const EPOCH: Timestamp = Timestamp(0);
    /// A time that never comes.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// Returns the time so many milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Timestamp {
        Timestamp(millis)
    }

    /// Returns the milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the whole seconds since the Unix epoch.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// Returns the time since an earlier one; nothing since a later one.
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Returns the whole milliseconds of a length of time.
fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// Adds the whole milliseconds of a length of time; the latest sum is [`Timestamp::MAX`].
impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, length: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(millis(length)))
    }
}

impl AddAssign<Duration> for Timestamp {
    fn add_assign(&mut self, length: Duration) {
        *self = *self + length;
    }
}

/// Takes the whole milliseconds of a length of time away; the earliest result is
/// [`Timestamp::EPOCH`].
impl Sub<Duration> for Timestamp {
    type Output = Timestamp;

    fn sub(self, length: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(millis(length)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_written_as_a_plain_number() {
        let time = Timestamp::from_millis(1_700_000_000_123);
        let text = serde_json::to_string(&time).expect("JSON");
        assert_eq!(text, "1700000000123");
        assert_eq!(serde_json::from_str::<Timestamp>(&text).expect("a time"), time);
        let plain = schemars::schema_for!(u64);
        assert_eq!(schemars::schema_for!(Timestamp), plain);
    }

    proptest! {
        #[test]
        fn what_is_later_by_a_length_is_that_long_after(time: u64, seconds: u64, micros in 0u32..1_000_000) {
            let (time, length) = (Timestamp(time), Duration::new(seconds, micros * 1000));
            let whole = Duration::from_millis(millis(length));
            let (later, earlier) = (time + length, time - length);
            prop_assert!(earlier <= time && time <= later);
            prop_assert!(later.since(time) == whole || later == Timestamp::MAX);
            prop_assert!(time.since(earlier) == whole || earlier == Timestamp::EPOCH);
            prop_assert_eq!(time.since(later), Duration::ZERO);
        }
    }
}
