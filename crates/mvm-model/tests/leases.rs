//! A job's lease lasts as long as its holder, and no longer.

mod support;

use mvm_model::lease::{HOLD, Holders, Lease, Purpose, RENEW};
use mvm_model::recycling::{Ending, ending};
use mvm_model::{Counts, LeaseId, Recycle, State, Timestamp};
use proptest::prelude::*;
use std::time::Duration;

const ID: LeaseId = LeaseId::from_number(1);
const BEGAN: Timestamp = Timestamp::from_millis(1_000_000);
const MS: Duration = Duration::from_millis(1);

/// Returns any length of time up to this one.
fn up_to(most: Duration) -> impl Strategy<Value = Duration> {
    (0..most.as_millis() as u64).prop_map(Duration::from_millis)
}

fn lease(purpose: Purpose, longest_until: Option<Timestamp>) -> Lease {
    let holder = "uid:0".to_owned();
    Lease { id: ID, holder, purpose, since: BEGAN, expires_at: BEGAN + MS * 5000, longest_until }
}

/// What may come between two signs of a living holder. It takes less time than a lease outlives the
/// last sign.
#[derive(Clone, Debug)]
enum Gap {
    /// The next sign comes in time.
    None,
    /// Another leader comes, or the connection is slow: the next sign is late.
    Late(Duration),
    /// The agent is replaced.
    Restart,
}

fn gap() -> impl Strategy<Value = Gap> {
    prop_oneof![
        4 => Just(Gap::None),
        1 => up_to(HOLD - RENEW).prop_map(Gap::Late),
        1 => Just(Gap::Restart),
    ]
}

proptest! {
    #[test]
    fn it_is_never_over_while_its_holder_shows_itself(
        gaps in prop::collection::vec(gap(), 0..60),
        look in up_to(RENEW),
    ) {
        let lease = lease(Purpose::Run, None);
        let (mut now, mut holders) = (BEGAN, Holders::begin(BEGAN - MS * 50_000));
        for gap in gaps {
            let late = if let Gap::Late(by) = gap { by } else { Duration::ZERO };
            // The lease is checked in between, and just before the next sign.
            for at in [now + look, now + RENEW + late - MS] {
                prop_assert!(lease.ends_at(holders.seen(ID, at)) > at);
            }
            now += RENEW + late;
            match gap {
                Gap::Restart => holders = Holders::begin(now),
                _ => holders.renew(ID, now),
            }
        }
    }

    #[test]
    fn it_is_over_soon_after_its_holder_has_gone(
        lasted in up_to(MS * 100_000_000),
        restarted in prop::option::of(up_to(HOLD)),
        open in any::<bool>(),
    ) {
        let lease = lease(Purpose::Run, None);
        let mut holders = Holders::begin(BEGAN);
        let gone = BEGAN + lasted;
        match open {
            true => {
                holders.hold(ID);
                prop_assert!(lease.ends_at(holders.seen(ID, gone)) == gone + HOLD);
                holders.let_go(ID, gone);
            }
            false => holders.renew(ID, gone),
        }
        let last = gone + restarted.unwrap_or_default();
        if restarted.is_some() {
            holders = Holders::begin(last);
        }
        prop_assert_eq!(lease.ends_at(holders.seen(ID, last + HOLD)), last + HOLD);
    }

    #[test]
    fn no_holder_keeps_it_beyond_its_longest_time(longest in up_to(MS * 99_999_999)) {
        let longest = longest + MS;
        let lease = lease(Purpose::Run, Some(BEGAN + longest));
        let mut holders = Holders::begin(BEGAN);
        holders.hold(ID);
        let at = BEGAN + longest;
        prop_assert_eq!(lease.ends_at(holders.seen(ID, at)), at);
    }

    #[test]
    fn other_leases_have_a_deadline_and_need_no_holder(now in BEGAN.as_millis()..u64::MAX / 2) {
        let now = Timestamp::from_millis(now);
        let mut holders = Holders::begin(BEGAN);
        for purpose in [Purpose::Manual, Purpose::Template, Purpose::Expose] {
            let lease = lease(purpose, None);
            prop_assert_eq!(lease.ends_at(holders.seen(ID, now)), lease.expires_at);
            holders.renew(ID, now);
            prop_assert_eq!(lease.ends_at(holders.seen(ID, now)), lease.expires_at);
        }
    }

    #[test]
    fn a_sign_that_comes_late_takes_nothing_back(early in up_to(MS * 1000), late in up_to(MS * 1000)) {
        let (early, late) = (BEGAN + early, BEGAN + late);
        let mut holders = Holders::begin(Timestamp::EPOCH);
        holders.renew(ID, early);
        holders.renew(ID, late);
        prop_assert_eq!(holders.seen(ID, BEGAN + MS * 2000), early.max(late));
    }
}

#[test]
fn what_is_held_is_not_forgotten() {
    let time = Timestamp::from_millis;
    let [held, gone, there] = [1, 2, 3].map(LeaseId::from_number);
    let mut holders = Holders::begin(Timestamp::EPOCH);
    holders.hold(held);
    holders.hold(held);
    holders.renew(gone, time(5));
    holders.renew(there, time(6));
    holders.retain(|lease| lease == there);
    assert!(holders.is_held(held) && !holders.is_held(there));
    assert_eq!((holders.seen(there, time(9)), holders.seen(gone, time(9))), (time(6), time(0)));
    holders.let_go(held, time(7));
    assert!(holders.is_held(held), "two held it");
    holders.let_go(held, time(8));
    assert_eq!(holders.seen(held, time(9)), time(8));
}

#[test]
fn what_becomes_of_an_instance_follows_its_lease_its_pool_and_its_state() {
    use Ending::{Destroy, Free, Sleep};
    let ended = |purpose, rule: Option<Recycle>, scaled: bool, state| {
        let mut instance = support::instance(1, state);
        instance.lease = Some(support::lease(purpose));
        let mut pool = support::pool();
        pool.recycle = rule.unwrap_or_default();
        pool.desired = scaled.then(Counts::default);
        ending(&instance, rule.is_some().then_some(&pool))
    };
    let rules = [(Recycle::Reset, Destroy), (Recycle::Sleep, Sleep), (Recycle::Keep, Free)];
    for (rule, usual) in rules {
        for state in State::ALL {
            let useless = matches!(state, State::Failed | State::Created);
            let of_job = if useless { Destroy } else { usual };
            let of_expose = if useless { Destroy } else { Sleep };
            assert_eq!(ended(Purpose::Run, Some(rule), false, state), Some(of_job));
            assert_eq!(ended(Purpose::Manual, Some(rule), true, state), Some(of_job));
            assert_eq!(ended(Purpose::Manual, Some(rule), false, state), Some(Free));
            assert_eq!(ended(Purpose::Expose, Some(rule), true, state), Some(of_expose));
            assert_eq!(ended(Purpose::Template, Some(rule), true, state), Some(Destroy));
        }
    }
    assert_eq!(
        ended(Purpose::Run, None, true, State::Running),
        Some(Destroy),
        "a pool that is gone"
    );
    assert_eq!(ending(&support::instance(1, State::Running), None), None, "nobody's");
}
