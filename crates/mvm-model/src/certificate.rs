//! The state of a certificate, decided with the time as an argument.

use crate::timestamp::Timestamp;
use std::time::Duration;

/// Whether a certificate is still valid, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateStatus {
    /// Valid for long enough.
    Valid,
    /// It expires soon, in this time: its renewal has been failing for a while.
    ExpiresSoon(Duration),
    /// It expired this long ago.
    Expired(Duration),
}

/// Returns the state of a certificate that is valid from `not_before` to `not_after`. Certificates
/// are renewed when a third of their time is left, so in the last sixth something prevents it.
pub fn status(not_before: Timestamp, not_after: Timestamp, now: Timestamp) -> CertificateStatus {
    let (lifetime, left) = (not_after.since(not_before), not_after.since(now));
    match left {
        Duration::ZERO => CertificateStatus::Expired(now.since(not_after)),
        left if left <= lifetime / 6 => CertificateStatus::ExpiresSoon(left),
        _ => CertificateStatus::Valid,
    }
}

/// Formats a length of time in the largest unit that fits: `3 days`, `50 minutes`.
pub fn roughly(length: Duration) -> String {
    let seconds = length.as_secs();
    let units = [(86_400, "days"), (3_600, "hours"), (60, "minutes")];
    let fits = units.iter().find(|(length, _)| seconds >= 2 * length);
    let (length, unit) = fits.copied().unwrap_or((1, "seconds"));
    format!("{} {unit}", seconds / length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_sixth_is_soon() {
        let time = Timestamp::from_millis;
        let at = |now| status(time(100), time(700), time(now));
        let ms = Duration::from_millis;
        assert_eq!([at(0), at(100), at(599)], [CertificateStatus::Valid; 3]);
        assert_eq!(
            [at(600), at(699)],
            [CertificateStatus::ExpiresSoon(ms(100)), CertificateStatus::ExpiresSoon(ms(1))]
        );
        assert_eq!(
            [at(700), at(705)],
            [CertificateStatus::Expired(ms(0)), CertificateStatus::Expired(ms(5))]
        );
        let lengths = [0, 90_000, 7_300_000, 86_400_000 * 3].map(|length| roughly(ms(length)));
        assert_eq!(lengths, ["0 seconds", "90 seconds", "2 hours", "3 days"]);
    }

    proptest! {
        #[test]
        fn any_times_are_answered(before: u64, after: u64, now: u64) {
            let [before, after, now] = [before, after, now].map(Timestamp::from_millis);
            let expired = matches!(status(before, after, now), CertificateStatus::Expired(_));
            prop_assert_eq!(expired, now >= after);
        }
    }
}
