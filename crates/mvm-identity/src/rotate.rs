//! Decides when a certificate is renewed. All functions are pure.

use mvm_api::identity::Validity;
use mvm_model::Millis;

/// The shortest and the longest pause between two attempts to renew, in ms.
const RETRY_MS: (Millis, Millis) = (1_000, 600_000);

/// Returns when renewal is due: after two thirds of the lifetime.
pub fn due_at(validity: Validity) -> Millis {
    let lifetime = validity.not_after.saturating_sub(validity.not_before);
    validity.not_before.saturating_add(lifetime / 3 * 2)
}

/// Returns whether renewal is due at `now`. An expired certificate is not renewed, since no signer
/// would accept it.
pub fn due(validity: Validity, now: Millis) -> bool {
    due_at(validity) <= now && now < validity.not_after
}

/// Returns when to try again after an attempt at `now` failed: after a tenth of the time that is
/// left, so that many attempts fit even in a short lifetime.
pub fn retry_at(validity: Validity, now: Millis) -> Millis {
    let left = validity.not_after.saturating_sub(now);
    now.saturating_add((left / 10).clamp(RETRY_MS.0, RETRY_MS.1))
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
            let validity = Validity { not_before, not_after: not_before + lifetime };
            let at = due_at(validity);
            prop_assert!(not_before < at && at < validity.not_after);
            prop_assert!(!due(validity, not_before) && !due(validity, at - 1));
            prop_assert!(due(validity, at) && due(validity, validity.not_after - 1));
            prop_assert!(!due(validity, validity.not_after));
        }

        #[test]
        fn attempts_go_on_and_come_neither_too_fast_nor_too_late(
            not_after in 0u64..1 << 45,
            now in 0u64..1 << 45,
        ) {
            let next = retry_at(Validity { not_before: 0, not_after }, now);
            prop_assert!((RETRY_MS.0..=RETRY_MS.1).contains(&(next - now)));
        }
    }
}
