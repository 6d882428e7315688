//! The sleep policy over any sequence of events.

mod support;

use mvm_model::action::Action;
use mvm_model::policy::{Idle, LINGERING_MOST, Pressure, Sample, act, next, overstayed, relieve};
use mvm_model::runtime_policy::RuntimePolicy;
use mvm_model::{Counts, Instance, Pool, State, Timestamp};
use proptest::prelude::*;
use std::time::Duration;

fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn pool(runtime_policy: RuntimePolicy, desired: Option<Counts>) -> Pool {
    Pool { runtime_policy, desired, ..support::pool() }
}

fn policies() -> impl Strategy<Value = RuntimePolicy> {
    (0u64..100, 0u64..100, 0u64..50, 0u64..50, 0u64..300, 0u32..4).prop_map(
        |(warm_after_s, sleep_after_s, min_running_s, min_warm_s, max_age_s, max_jobs)| {
            RuntimePolicy {
                warm_after_s,
                sleep_after_s,
                min_running_s,
                min_warm_s,
                max_age_s,
                max_jobs,
                ..RuntimePolicy::default()
            }
        },
    )
}

fn instances() -> impl Strategy<Value = Vec<Instance>> {
    let state = prop::sample::select(State::ALL.to_vec());
    let one = (state, any::<bool>(), any::<bool>(), 0u64..200_000, 0u64..200_000, 0u32..5);
    prop::collection::vec(one, 0..2000).prop_map(|all| {
        let made =
            all.into_iter().enumerate().map(|(number, (state, leased, busy, a, b, served))| {
                let mut instance = support::instance(number as u32, state);
                instance.lease = leased.then(|| support::lease(mvm_model::lease::Purpose::Manual));
                instance.goal = busy.then_some(State::Warm);
                (instance.created_at, instance.state_since) = (time(a.min(b)), time(b));
                instance.leases_served = served;
                instance
            });
        made.collect()
    })
}

proptest! {
    #![proptest_config(support::cases(300))]

    #[test]
    fn it_acts_when_it_said_and_touches_nothing_that_is_used(
        policy in policies(), instances in instances(), scaled: bool, now in 0u64..400_000,
    ) {
        let pool = pool(policy, scaled.then(Counts::default));
        let (idle, now) = (|_| Some(time(0)), time(now));
        let actions = act(&pool, &instances, idle, now);
        let mut destroyed = 0;
        for action in &actions {
            let (id, to) = match action {
                Action::Move { id, to } => (*id, *to),
                Action::Destroy { id } => (*id, State::Destroyed),
                Action::Create { .. } => return Err(TestCaseError::fail("it creates nothing")),
            };
            let instance = instances.iter().find(|i| i.id == id).unwrap();
            prop_assert!(instance.lease.is_none() && !instance.is_busy());
            let told = next(&pool, instance, Some(time(0))).unwrap();
            prop_assert!(told.to == to && told.at <= now);
            // No faster than the policy allows.
            let least = match instance.state {
                State::Running => policy.min_running_s,
                _ => policy.min_warm_s,
            };
            if to == State::Destroyed {
                destroyed += 1;
                prop_assert!(scaled, "a pool that was never scaled is not replaced");
            } else {
                prop_assert!(!scaled, "counts say how warm these are");
                prop_assert!(instance.state.allows(to) && now >= instance.state_since + Duration::from_secs(least));
            }
        }
        prop_assert!(destroyed <= 1);
        if instances.iter().any(Instance::is_busy) {
            prop_assert_eq!(destroyed, 0, "one after another");
        }
        // Every instance whose cooling was due was acted on.
        let due = instances.iter().filter(|i| {
            next(&pool, i, Some(time(0))).is_some_and(|n| n.at <= now && n.to != State::Destroyed)
        });
        prop_assert_eq!(actions.len() - destroyed, due.count());
    }

    /// An instance that is left alone goes to sleep, in two steps at most, and stays asleep.
    #[test]
    fn what_is_left_alone_falls_asleep(policy in policies(), state in prop::sample::select(vec![State::Running, State::Warm])) {
        let pool = pool(policy, None);
        let mut instance = support::instance(1, state);
        let mut steps = Vec::new();
        for now in (0..1_000_000).step_by(1000).map(time) {
            let idle = (instance.state == State::Running).then_some(instance.state_since);
            if let [Action::Move { to, .. }] = act(&pool, [&instance], |_| idle, now)[..] {
                steps.push(to);
                instance.reach(to, now);
            }
        }
        let mut expected = Vec::new();
        if state == State::Running && policy.warm_after_s > 0 {
            expected.push(State::Warm);
        }
        if policy.sleep_after_s > 0 && (state == State::Warm || policy.warm_after_s > 0) {
            expected.push(State::Sleeping);
        }
        prop_assert_eq!(steps, expected);
    }

    #[test]
    fn any_text_is_read_as_pressure(text in ".{0,200}") {
        let pressure = Pressure::parse(&text);
        prop_assert!(pressure.some.is_finite() && pressure.full.is_finite());
    }
}

#[test]
fn idle_is_no_session_no_work_and_no_traffic() {
    let sample =
        |at, cpu_ms, net_bytes, sessions| Sample { at: time(at), cpu_ms, net_bytes, sessions };
    let idle = Idle::begin(sample(1000, 0, 0, 0));
    assert_eq!(idle.after(sample(11_000, 200, 500, 0)).since, time(1000), "a guest's own noise");
    assert_eq!(idle.after(sample(11_000, 5000, 0, 0)).since, time(11_000), "work");
    assert_eq!(idle.after(sample(11_000, 0, 1 << 20, 0)).since, time(11_000), "traffic");
    assert_eq!(idle.after(sample(11_000, 0, 0, 1)).since, time(11_000), "a session");
}

#[test]
fn under_pressure_the_longest_warm_goes_first() {
    let text = "some avg10=12.50 avg60=3.00 avg300=0.00 total=1\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=0\n";
    assert_eq!(Pressure::parse(text), Pressure { some: 12.5, full: 0.1 });
    assert!(Pressure::parse(text).is_high() && !Pressure::parse("").is_high());
    let mut all: Vec<Instance> = (0..4).map(|n| support::instance(n, State::Warm)).collect();
    for (instance, since) in all.iter_mut().zip([40, 10, 20, 30]) {
        instance.state_since = time(since);
    }
    all[1].lease = Some(support::lease(mvm_model::lease::Purpose::Manual));
    assert_eq!(relieve(&all), Some(all[2].id), "not the leased one");
}

proptest! {
    #![proptest_config(support::cases(200))]

    #[test]
    fn what_lingers_does_so_within_its_time_and_its_bound(
        all in prop::collection::vec((0u64..1000, 0u64..1000, prop::bool::weighted(0.1)), 0..200),
        pressed: bool, now in 0u64..1000,
    ) {
        let lingering: Vec<(Instance, Timestamp)> = (0..).zip(all).map(|(n, (since, until, busy))| {
            let mut instance = support::instance(n, State::Sleeping);
            instance.state_since = time(since);
            instance.goal = busy.then_some(State::Warm);
            (instance, time(until))
        }).collect();
        let now = time(now);
        let given = || lingering.iter().map(|(instance, until)| (instance, *until));
        let gone = overstayed(given(), pressed, now);
        prop_assert!(given().all(|(i, _)| !i.is_busy() || !gone.contains(&i.id)), "somebody is at it");
        let (over, kept): (Vec<_>, Vec<_>) =
            given().filter(|(i, _)| !i.is_busy()).partition(|(i, _)| gone.contains(&i.id));
        prop_assert!(kept.len() <= LINGERING_MOST && kept.iter().all(|(_, until)| *until > now && !pressed));
        // A process that ends before its time does so because there are too many, and those that
        // stay fell asleep later.
        for (early, until) in over.iter().filter(|(_, until)| *until > now && !pressed) {
            prop_assert!(kept.len() == LINGERING_MOST, "{early:?} could have stayed until {until:?}");
            prop_assert!(kept.iter().all(|(stays, _)| stays.state_since >= early.state_since));
        }
    }
}

#[test]
fn a_policy_may_name_any_number_of_seconds() {
    let mut pool = support::pool();
    pool.runtime_policy = RuntimePolicy {
        warm_after_s: u64::MAX,
        sleep_after_s: u64::MAX,
        min_running_s: u64::MAX,
        min_warm_s: u64::MAX,
        max_age_s: u64::MAX,
        linger_s: u64::MAX,
        ..RuntimePolicy::default()
    };
    for state in State::ALL {
        let instance = support::instance(1, state);
        let idle = |_| Some(time(1));
        assert_eq!(act(&pool, [&instance], idle, time(u64::MAX - 1)), [], "{state}");
    }
}
