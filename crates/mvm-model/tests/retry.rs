//! What a fleet's client does after each error.

use mvm_model::Code;
use mvm_model::retry::{Fate, Next, fate, pause, retry};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn each_documented_error_has_one_fate() {
    let of = |wanted: Fate| -> BTreeSet<Code> {
        Code::all().filter(|code| fate(*code) == wanted).collect()
    };
    assert_eq!(
        of(Fate::NotDone),
        BTreeSet::from([
            Code::AgentUnreachable,
            Code::CoordinatorUnreachable,
            Code::LeaderChanged,
            Code::NoLeader,
            Code::NodeUnreachable,
            Code::NotReady,
            Code::StoreUnreachable
        ])
    );
    assert_eq!(
        of(Fate::Unknown),
        BTreeSet::from([
            Code::AgentSilent,
            Code::ClaimUnderWay,
            Code::ConnectionBroken,
            Code::IdempotencyKeyInUse,
            Code::SessionLost,
            Code::StoreUnknown
        ])
    );
    // All other errors are final: a quota that is exceeded now is still exceeded a second later.
    assert!(of(Fate::Final).len() > 60, "{:?}", of(Fate::Final));
}

#[test]
fn what_was_not_carried_out_is_asked_again_whatever_it_is() {
    let zero = Duration::ZERO;
    for repeatable in [false, true] {
        assert_eq!(retry(Some(Code::NoLeader), repeatable, zero, PATIENCE), Next::Wait);
        assert_eq!(retry(Some(Code::QuotaExceeded), repeatable, zero, PATIENCE), Next::Fail);
    }
    // A request that may have been carried out is repeated only if that does no harm.
    assert_eq!(retry(Some(Code::ConnectionBroken), true, zero, PATIENCE), Next::Wait);
    assert_eq!(retry(Some(Code::ConnectionBroken), false, zero, PATIENCE), Next::Fail);
}

/// Returns any code; `None` stands for one of a later version.
fn some_code(index: &prop::sample::Index) -> Option<Code> {
    let codes: Vec<_> = Code::all().map(Some).chain([None]).collect();
    *index.get(&codes)
}

proptest! {
    #[test]
    fn patience_ends(index: prop::sample::Index, repeatable: bool, over in 0_u64..1_000_000) {
        let code = some_code(&index);
        let elapsed = PATIENCE + Duration::from_millis(over);
        prop_assert_eq!(retry(code, repeatable, elapsed, PATIENCE), Next::Fail);
        prop_assert_eq!(retry(code, repeatable, Duration::ZERO, Duration::ZERO), Next::Fail);
    }

    #[test]
    fn what_may_be_repeated_waits_at_least_where_the_other_does(index: prop::sample::Index) {
        let code = some_code(&index);
        if retry(code, false, Duration::ZERO, PATIENCE) == Next::Wait {
            prop_assert_eq!(retry(code, true, Duration::ZERO, PATIENCE), Next::Wait);
        }
    }

    #[test]
    fn pauses_grow_to_a_second(count: u32) {
        prop_assert!(pause(count) <= pause(count.saturating_add(1)));
        prop_assert!((100..=1000).contains(&(pause(count).as_millis() as u64)));
    }
}
