//! The decisions about machines that their hypervisor has paused.

use mvm_model::Mib;
use mvm_model::halt::{Cause, Facts, IO_TRIES, ROOM, Step, step};
use proptest::prelude::*;
use std::time::Duration;

fn facts() -> impl Strategy<Value = Facts> {
    let cause = prop_oneof![
        Just(Cause::NoSpace),
        Just(Cause::IoError),
        Just(Cause::Crashed),
        Just(Cause::Outside)
    ];
    let limit = prop_oneof![Just(None), (0u64..1000).prop_map(Some)];
    (cause, 0u32..100, 0u64..2000, 0u64..2000, 0u64..200, limit).prop_map(
        |(cause, tries, since_try, paused_for, free, limit)| Facts {
            cause,
            tries,
            since_try: Duration::from_secs(since_try),
            paused_for: Duration::from_secs(paused_for),
            free: Mib(free),
            limit: limit.map(Duration::from_secs),
        },
    )
}

proptest! {
    #[test]
    fn a_machine_without_space_goes_on_with_room_and_only_then(facts in facts()) {
        let facts = Facts { cause: Cause::NoSpace, ..facts };
        let over = facts.limit.is_some_and(|limit| facts.paused_for >= limit);
        match step(&facts) {
            Step::Fail => prop_assert!(over, "nobody's job waits, and it is given up"),
            Step::Resume => prop_assert!(facts.free >= ROOM && !over),
            Step::Wait => prop_assert!(facts.free < ROOM || facts.since_try.as_secs() < 30),
        }
    }

    #[test]
    fn a_broken_disk_has_a_bounded_number_of_tries(facts in facts()) {
        let facts = Facts { cause: Cause::IoError, ..facts };
        match step(&facts) {
            Step::Fail => prop_assert!(facts.tries >= IO_TRIES),
            Step::Resume => prop_assert!(facts.tries < IO_TRIES),
            Step::Wait => prop_assert!(facts.since_try.as_secs() < 30),
        }
    }

    #[test]
    fn what_has_crashed_fails_and_what_others_paused_is_left_alone(facts in facts()) {
        prop_assert_eq!(step(&Facts { cause: Cause::Crashed, ..facts }), Step::Fail);
        prop_assert_eq!(step(&Facts { cause: Cause::Outside, ..facts }), Step::Wait);
    }
}

#[test]
fn the_first_try_is_at_once_and_later_ones_take_their_time() {
    let at = |tries, seconds| {
        step(&Facts {
            cause: Cause::NoSpace,
            tries,
            since_try: Duration::from_secs(seconds),
            paused_for: Duration::ZERO,
            free: ROOM,
            limit: Some(Duration::from_secs(600)),
        })
    };
    assert_eq!((at(0, 0), at(1, 0), at(1, 1)), (Step::Resume, Step::Wait, Step::Resume));
    assert_eq!((at(3, 3), at(3, 4)), (Step::Wait, Step::Resume));
    assert_eq!((at(99, 29), at(99, 30)), (Step::Wait, Step::Resume));
}
