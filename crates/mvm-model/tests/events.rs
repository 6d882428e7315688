//! Every change of a state makes an event, and no other change does.

mod support;

use mvm_model::event::of_change;
use mvm_model::lease::Purpose;
use mvm_model::state::Intent;
use mvm_model::{State, Timestamp};

fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

#[test]
fn each_transition_is_told_with_its_cause_and_duration() {
    let mut before = support::instance(1, State::Sleeping);
    let made = of_change(None, Some(&before), 7, time(100)).unwrap();
    assert_eq!((made.id, made.from, made.to, made.took_ms), (7, None, State::Sleeping, None));
    assert_eq!(made.cause, "request");
    before.intent = Some(Intent { from: State::Sleeping, to: State::Running, since: time(100) });
    assert_eq!(
        of_change(Some(&support::instance(1, State::Sleeping)), Some(&before), 8, time(100)),
        None
    );
    for (goal, lease, cause) in [
        (Some(State::Running), None, "reconciler"),
        (None, Some(Purpose::Run), "job of "),
        (None, Some(Purpose::Manual), "lease of "),
        (None, Some(Purpose::Template), "template"),
    ] {
        (before.goal, before.lease) = (goal, lease.map(support::lease));
        let mut after = before.clone();
        after.reach(State::Running, time(350));
        let event = of_change(Some(&before), Some(&after), 9, time(350)).unwrap();
        assert_eq!((event.from, event.to), (Some(State::Sleeping), State::Running));
        assert_eq!(event.took_ms, Some(250));
        assert!(event.cause.starts_with(cause), "{event:?}");
    }
    let gone = of_change(Some(&before), None, 10, time(400)).unwrap();
    assert_eq!(gone.to, State::Destroyed);
    assert_eq!(of_change(None, None, 11, time(400)), None);
}
