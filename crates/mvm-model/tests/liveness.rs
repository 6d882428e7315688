//! A guest that answers is never taken for dead, however late it answers and however it is watched;
//! a silent one is found dead in time.

use mvm_model::Timestamp;
use mvm_model::liveness::{HELD_UP, Liveness, Next};
use proptest::prelude::*;
use std::time::Duration;

fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// Watches a guest from time 0 on, with these pauses between the checks, in ms. The guest answers
/// each question after the next number of ms, or never where there is none. Returns when the guest
/// was taken for dead.
fn watch(timeout_s: u64, pauses: &[u64], answers: &mut dyn FnMut() -> Option<u64>) -> Option<u64> {
    let (mut liveness, mut now) = (Liveness::begin(time(0)), 0);
    let (mut heard, mut coming) = (0, Vec::new());
    for pause in pauses {
        now += pause;
        coming.retain(|at| {
            let came = *at <= now;
            if came {
                heard = heard.max(*at);
            }
            !came
        });
        match liveness.look(timeout_s, time(heard), time(now)) {
            Next::Wait => {}
            Next::Ask => coming.extend(answers().map(|after| now + after)),
            Next::Dead(silent) => {
                assert!(silent >= Duration::from_secs(timeout_s), "{silent:?} of {timeout_s} s");
                return Some(now);
            }
        }
    }
    None
}

proptest! {
    #[test]
    fn a_guest_that_answers_in_time_is_never_taken_for_dead(
        timeout_s in 1..100u64,
        pauses in prop::collection::vec(1..20_000u64, 1..200),
        delays in prop::collection::vec(0..1000u64, 1..20),
    ) {
        // Delays are shares of the timeout.
        let mut delays = delays.iter().cycle().map(|share| share * timeout_s);
        prop_assert_eq!(watch(timeout_s, &pauses, &mut || delays.next()), None);
    }

    #[test]
    fn a_guest_that_never_answers_is_found_dead_within_the_timeout_and_a_half(
        timeout_s in 3..100u64,
        pauses in prop::collection::vec(1..=1000u64, 1..50),
    ) {
        let pauses: Vec<u64> = pauses.iter().copied().cycle().take(400_000).collect();
        let dead = watch(timeout_s, &pauses, &mut || None);
        let latest = timeout_s * 1000 * 4 / 3 + 3000;
        prop_assert!(dead.is_some_and(|at| at <= latest), "{dead:?}, {latest}");
    }

    #[test]
    fn a_pool_without_a_timeout_never_loses_a_guest(
        pauses in prop::collection::vec(1..1_000_000u64, 1..200),
    ) {
        prop_assert_eq!(watch(0, &pauses, &mut || None), None);
    }
}

#[test]
fn a_watcher_that_was_held_up_asks_anew() {
    let mut liveness = Liveness::begin(time(0));
    assert_eq!(liveness.look(30, time(0), time(4000)), Next::Wait);
    assert_eq!(liveness.look(30, time(0), time(8000)), Next::Wait);
    assert_eq!(liveness.look(30, time(0), time(12_000)), Next::Ask);
    // For an hour nothing was there to receive the answer.
    assert_eq!(liveness.look(30, time(0), time(3_612_000)), Next::Ask);
    for second in 1..30 {
        let next = liveness.look(30, time(0), time(3_612_000 + second * 1000));
        assert_ne!(next, Next::Dead(Duration::from_secs(second)), "{HELD_UP:?}");
    }
    assert_eq!(liveness.look(30, time(0), time(3_642_000)), Next::Dead(Duration::from_secs(30)));
}
