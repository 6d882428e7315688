//! Decides when a certificate is renewed. All functions are pure.

use mvm_api::identity::Validity;
use mvm_model::Timestamp;
use std::time::Duration;

/// The shortest and the longest pause between two attempts to renew.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// Returns when renewal is due: after two thirds of the lifetime.
pub fn due_at(validity: Validity) -> Timestamp {
    let lifetime = validity.not_after.since(validity.not_before);
    validity.not_before + lifetime / 3 * 2
}

/// Returns whether renewal is due at `now`. An expired certificate is not renewed, since no signer
/// would accept it.
pub fn due(validity: Validity, now: Timestamp) -> bool {
    due_at(validity) <= now && now < validity.not_after
}

/// Returns when to try again after an attempt at `now` failed: after a tenth of the time that is
/// left, so that many attempts fit even in a short lifetime.
pub fn retry_at(validity: Validity, now: Timestamp) -> Timestamp {
    let left = validity.not_after.since(now);
    now + (left / 10).clamp(RETRY.0, RETRY.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_due_before_it_runs_out_and_not_at_once(
            not_before in 0u64..1 << 45,
            lifetime in 3u64..1 << 40,
        ) {
            let (not_before, ms) = (Timestamp::from_millis(not_before), Duration::from_millis(1));
            let not_after = not_before + Duration::from_millis(lifetime);
            let validity = Validity { not_before, not_after };
            let at = due_at(validity);
            prop_assert!(not_before < at && at < validity.not_after);
            prop_assert!(!due(validity, not_before) && !due(validity, at - ms));
            prop_assert!(due(validity, at) && due(validity, validity.not_after - ms));
            prop_assert!(!due(validity, validity.not_after));
        }

        #[test]
        fn attempts_go_on_and_come_neither_too_fast_nor_too_late(
            not_after in 0u64..1 << 45,
            now in 0u64..1 << 45,
        ) {
            let [not_after, now] = [not_after, now].map(Timestamp::from_millis);
            let validity = Validity { not_before: Timestamp::EPOCH, not_after };
            let next = retry_at(validity, now);
            prop_assert!((RETRY.0..=RETRY.1).contains(&next.since(now)));
        }
    }
}
