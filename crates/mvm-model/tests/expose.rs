//! A front, under any sequence of connections, wakes and ends.

mod support;

use mvm_model::expose::{Expose, Front, Limits, MAX_WAITING};
use mvm_model::lease::Purpose;
use mvm_model::pool::RevisionEntry;
use mvm_model::{Digest, Instance, InstanceId, Pool, Recycle, State, Timestamp};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

#[derive(Clone, Debug)]
enum Step {
    Connect,
    GiveUp,
    Close(usize),
    WakeDone,
    WakeFails,
    EndDone,
    Lose(usize),
    Time(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Connect),
        1 => Just(Step::GiveUp),
        6 => any::<usize>().prop_map(Step::Close),
        5 => Just(Step::WakeDone),
        1 => Just(Step::WakeFails),
        3 => Just(Step::EndDone),
        1 => any::<usize>().prop_map(Step::Lose),
        4 => (0u64..40_000).prop_map(|ms| Step::Time(Duration::from_millis(ms))),
    ]
}

/// A front, and a model that does what the front decides.
struct SimulatedFront {
    front: Front,
    limits: Limits,
    now: Timestamp,
    next: u32,
    /// The number of connections of each instance.
    up: BTreeMap<InstanceId, u32>,
    ending: Vec<InstanceId>,
    waking: u32,
    waiting: u32,
    /// Since when each instance has had no connection.
    idle: BTreeMap<InstanceId, Timestamp>,
}

impl SimulatedFront {
    fn step(&mut self, step: Step) {
        let nth = |map: &BTreeMap<InstanceId, u32>, n: usize| {
            (!map.is_empty()).then(|| *map.keys().nth(n % map.len()).expect("there"))
        };
        match step {
            Step::Connect => {
                let admitted = self.front.arrive();
                assert_eq!(admitted, self.waiting < MAX_WAITING);
                self.waiting += u32::from(admitted);
            }
            Step::GiveUp if self.waiting > 0 => {
                self.front.leave();
                self.waiting -= 1;
            }
            Step::Close(n) => {
                let busy: BTreeMap<_, _> =
                    self.up.iter().filter(|(_, c)| **c > 0).map(|(i, c)| (*i, *c)).collect();
                if let Some(id) = nth(&busy, n) {
                    self.front.close(id, self.now);
                    *self.up.get_mut(&id).expect("up") -= 1;
                    self.idle.insert(id, self.now);
                }
            }
            Step::WakeDone if self.waking > 0 => {
                self.waking -= 1;
                self.next += 1;
                let id = InstanceId::from_number(self.next);
                self.front.woken(id, self.now);
                self.up.insert(id, 0);
                self.idle.insert(id, self.now);
            }
            Step::WakeFails if self.waking > 0 => {
                self.waking -= 1;
                let others = self.waking > 0 || !self.up.is_empty();
                assert_eq!(self.front.failed(self.now), others);
                while !others && self.waiting > 0 {
                    self.front.leave();
                    self.waiting -= 1;
                }
            }
            Step::EndDone => {
                if let Some(id) = self.ending.pop() {
                    self.front.ended(id);
                }
            }
            Step::Lose(n) => {
                if let Some(id) = nth(&self.up, n) {
                    self.front.lose(id);
                    self.up.remove(&id);
                }
            }
            Step::Time(by) => self.now += by,
            _ => {}
        }
        self.act();
    }

    /// Does what the agent does after every event.
    fn act(&mut self) {
        while let Some(id) = self.front.assign(&self.limits) {
            let most = self.up.values().filter(|c| **c < self.limits.max_connections).max();
            assert_eq!(most, self.up.get(&id), "it goes to the fullest with room");
            *self.up.get_mut(&id).expect("it is up") += 1;
            self.waiting -= 1;
        }
        while self.front.wake(&self.limits, self.now) {
            self.waking += 1;
        }
        for id in self.front.end(&self.limits, self.now) {
            assert_eq!(self.up.remove(&id), Some(0), "nobody is connected");
            assert!(self.now >= self.idle[&id] + Duration::from_secs(self.limits.idle_s));
            self.ending.push(id);
        }
        self.check();
    }

    fn check(&self) {
        let servers: BTreeMap<_, _> = self.front.servers().collect();
        assert_eq!(servers, self.up);
        assert_eq!((self.front.waiting(), self.front.waking()), (self.waiting, self.waking));
        let full = |connections: &u32| *connections == self.limits.max_connections;
        assert!(self.waiting == 0 || self.up.values().all(full), "nobody waits beside room");
        let up = self.up.len() as u32 + self.waking;
        assert!(self.limits.max_instances == 0 || up <= self.limits.max_instances);
    }
}

proptest! {
    #![proptest_config(support::cases(300))]
    #[test]
    fn everybody_is_served_by_no_more_than_needed(
        steps in prop::collection::vec(step(), 1..120),
        max_connections in 1..5u32,
        max_instances in 0..4u32,
    ) {
        let limits = Limits { max_connections, max_instances, idle_s: 20, wake_timeout_s: 60 };
        let mut model = SimulatedFront {
            front: Front::default(), limits, now: time(1_000_000), next: 0, up: BTreeMap::new(),
            ending: Vec::new(), waking: 0, waiting: 0, idle: BTreeMap::new(),
        };
        for step in steps {
            let waited = model.waiting;
            let connects = matches!(step, Step::Connect);
            let before = model.waking;
            model.step(step);
            // One connection wakes at most one instance, and no more instances are waking than the
            // waiting connections can fill.
            if connects && waited == 0 {
                prop_assert!(model.waking <= before + 1);
            }
        }
        // Without further events, all waiting connections are served, and then the pool goes back
        // to zero.
        for _ in 0..2000 {
            if model.waiting == 0 && model.up.is_empty() && model.waking == 0 && model.ending.is_empty() {
                break;
            }
            model.step(Step::Time(Duration::from_secs(1)));
            model.step(Step::EndDone);
            model.step(Step::WakeDone);
            model.step(Step::Close(0));
        }
        prop_assert_eq!((model.waiting, model.up.len(), model.ending.len()), (0, 0, 0));
    }
}

#[test]
fn a_burst_wakes_one() {
    let limits = Limits::default();
    let mut front = Front::default();
    let mut wakes = 0;
    for _ in 0..32 {
        assert!(front.arrive());
        wakes += u32::from(front.wake(&limits, time(0)));
    }
    assert_eq!(wakes, 1);
    assert!(front.arrive() && front.wake(&limits, time(0)), "one more than it can serve");
}

#[test]
fn what_goes_to_sleep_is_waited_for() {
    let (limits, id) = (Limits::default(), InstanceId::from_number(1));
    let mut front = Front::default();
    front.adopt(id, time(0));
    assert_eq!(front.end(&limits, time(limits.idle_s * 1000)), [id]);
    assert!(front.arrive() && front.assign(&limits).is_none());
    assert!(!front.wake(&limits, time(100_000)), "it is still falling asleep");
    front.ended(id);
    assert!(front.wake(&limits, time(100_000)));
}

fn built(recycle: Recycle) -> Pool {
    let entry = |number: u32| RevisionEntry {
        number,
        digest: Digest::of(format!("r{number}")),
        built_at: time(0),
    };
    Pool { recycle, revisions: vec![entry(1)], current: Some(1), ..support::pool() }
}

fn expose(instances: &[u32]) -> Expose {
    Expose {
        listen: "127.0.0.1:8080".parse().expect("address"),
        pool: "ci/runners".parse().expect("pool"),
        to: 80,
        limits: Limits::default(),
        instances: instances.iter().map(|n| InstanceId::from_number(*n)).collect(),
        created_at: time(0),
    }
}

#[test]
fn it_wakes_its_own_before_others_and_never_anothers_used_one() {
    let used = |n, state| Instance { leases_served: 1, ..support::instance(n, state) };
    let front = expose(&[3]);
    let all =
        [support::instance(1, State::Warm), used(2, State::Running), used(3, State::Sleeping)];
    let chosen = |pool: &Pool, all: &[Instance]| front.choose(pool, all).map(|i| i.id);
    let number = |n| Some(InstanceId::from_number(n));
    assert_eq!(chosen(&built(Recycle::Reset), &all), number(3));
    assert_eq!(chosen(&built(Recycle::Reset), &all[..2]), number(1));
    assert_eq!(chosen(&built(Recycle::Reset), &all[1..2]), None);
    assert_eq!(chosen(&built(Recycle::Sleep), &all[1..2]), number(2));
    assert_eq!(chosen(&support::pool(), &all), None, "never built");
}

#[test]
fn what_it_kept_of_an_old_revision_goes() {
    let old = |n| Instance {
        revision: Digest::of("r0"),
        leases_served: 1,
        ..support::instance(n, State::Sleeping)
    };
    let leased = Instance { lease: Some(support::lease(Purpose::Expose)), ..old(3) };
    let all = [old(1), old(2), leased];
    let front = expose(&[1, 3]);
    assert_eq!(front.outdated(&built(Recycle::Reset), &all), [InstanceId::from_number(1)]);
    assert!(front.outdated(&built(Recycle::Sleep), &all).is_empty(), "the planner does");
}

#[test]
fn limits_have_ranges() {
    assert!(Limits::default().validate().is_ok());
    for limits in [
        Limits { max_connections: 0, ..Limits::default() },
        Limits { max_connections: 101, ..Limits::default() },
        Limits { idle_s: 0, ..Limits::default() },
        Limits { wake_timeout_s: 1 << 40, ..Limits::default() },
    ] {
        assert_eq!(limits.validate().expect_err("refused").code.as_str(), "invalid_value");
    }
}
