//! Who may move an instance, by its lease.

mod support;

use mvm_model::Code;
use mvm_model::actor::may_take;
use mvm_model::lease::{Lease, Purpose};
use mvm_model::{Actor, LeaseId, State, Timestamp};
use support::instance;

const PURPOSES: [Purpose; 4] = [Purpose::Run, Purpose::Template, Purpose::Manual, Purpose::Expose];

fn lease(holder: &str, purpose: Purpose) -> Lease {
    let (id, holder) = (LeaseId::from_number(1), holder.to_owned());
    Lease {
        id,
        holder,
        purpose,
        since: Timestamp::EPOCH,
        expires_at: Timestamp::from_millis(1),
        longest_until: None,
    }
}

#[test]
fn nobody_moves_what_another_holds() {
    let mut held = instance(1, State::Running);
    let alice = Actor::Holder("alice".to_owned());
    let lost = Actor::Lease(LeaseId::from_number(2));
    for actor in [Actor::Agent, alice.clone(), Actor::Force] {
        assert_eq!(actor.check(&held), Ok(()), "{actor:?}: nobody holds it");
    }
    assert_eq!(lost.check(&held).expect_err("ended").code, Code::LeaseEnded);
    for purpose in PURPOSES {
        for holder in ["alice", "bob"] {
            held.lease = Some(lease(holder, purpose));
            let own = (holder, purpose) == ("alice", Purpose::Manual);
            assert_eq!(alice.check(&held).is_ok(), own, "{holder}, {purpose}");
            assert_eq!(may_take(&held, "alice").is_ok(), holder == "alice");
            for actor in [Actor::of(&held), Actor::Force] {
                assert_eq!(actor.check(&held), Ok(()), "{actor:?}");
            }
            for actor in [&Actor::Agent, &lost] {
                let fault = actor.check(&held).expect_err("refused");
                assert_eq!(fault.code, Code::Leased);
                for said in ["l-00000001", holder, &purpose.to_string()] {
                    assert!(fault.message.contains(said), "{fault}");
                }
            }
            for to in State::ALL {
                let aside = own && to != State::Running;
                assert_eq!(alice.gives_up(&held, to), aside, "{holder}, {purpose}, {to}");
                assert!(!Actor::of(&held).gives_up(&held, to) && !Actor::Force.gives_up(&held, to));
            }
        }
    }
}
