//! The state of a certificate, decided with the time as an argument.

use crate::Millis;

/// Whether a certificate is still valid, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateStatus {
    /// Valid for long enough.
    Valid,
    /// It expires soon, in this many ms: its renewal has been failing for a while.
    ExpiresSoon(Millis),
    /// It expired this many ms ago.
    Expired(Millis),
}

/// Returns the state of a certificate that is valid from `not_before` to `not_after`. Certificates
/// are renewed when a third of their time is left, so in the last sixth something prevents it.
pub fn status(not_before: Millis, not_after: Millis, now: Millis) -> CertificateStatus {
    let (lifetime, left) = (not_after.saturating_sub(not_before), not_after.saturating_sub(now));
    match left {
        0 => CertificateStatus::Expired(now - not_after),
        left if left <= lifetime / 6 => CertificateStatus::ExpiresSoon(left),
        _ => CertificateStatus::Valid,
    }
}

/// Formats a length of time in the largest unit that fits: `3 days`, `50 minutes`.
pub fn roughly(ms: Millis) -> String {
    let seconds = ms / 1000;
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
        let at = |now| status(100, 700, now);
        assert_eq!([at(0), at(100), at(599)], [CertificateStatus::Valid; 3]);
        assert_eq!(
            [at(600), at(699)],
            [CertificateStatus::ExpiresSoon(100), CertificateStatus::ExpiresSoon(1)]
        );
        assert_eq!(
            [at(700), at(705)],
            [CertificateStatus::Expired(0), CertificateStatus::Expired(5)]
        );
        let lengths = [0, 90_000, 7_300_000, 86_400_000 * 3].map(roughly);
        assert_eq!(lengths, ["0 seconds", "90 seconds", "2 hours", "3 days"]);
    }

    proptest! {
        #[test]
        fn any_times_are_answered(before: u64, after: u64, now: u64) {
            let expired = matches!(status(before, after, now), CertificateStatus::Expired(_));
            prop_assert_eq!(expired, now >= after);
        }
    }
}
