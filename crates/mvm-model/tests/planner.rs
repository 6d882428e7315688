//! The reconciler's plan, carried out in a simulated model: clients take machines and give them
//! back, users put some aside, images are built, and steps fail. Once they stop failing, the pool
//! gets its desired counts, and then there is nothing left to do.

mod support;

use mvm_model::action::Action;
use mvm_model::choose::choose;
use mvm_model::lease::Purpose;
use mvm_model::plan::{Failures, plan, ready};
use mvm_model::state::Intent;
use mvm_model::{Counts, Digest, Instance, InstanceId, Pool, Recycle, State, Timestamp};
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeSet;
use std::time::Duration;

/// Whether the quotas let a leased instance run. If not, the instance keeps its state, under its
/// lease.
type Admitted = bool;

#[derive(Clone, Debug)]
enum Event {
    /// The reconciler runs.
    Tick {
        slots: usize,
    },
    /// A step under way ends, with success or failure.
    Finish(Index, bool),
    /// All steps under way end with success.
    FinishAll,
    Wait(Duration),
    /// A job takes the instance that is ready soonest.
    Claim,
    /// A job ends.
    Release(Index),
    /// A user makes an instance, takes one, puts it aside, or lets the lease expire.
    Make,
    Take(Index, Admitted),
    PutAside(Index, State),
    Expire(Index),
    Scale(Counts),
    Build(u8),
}

fn counts() -> impl Strategy<Value = Counts> {
    (0u32..4, 0u32..5, 0u32..5).prop_map(|(running, warm, sleeping)| Counts {
        running,
        warm,
        sleeping,
    })
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let index = any::<Index>;
    let aside = prop::sample::select(vec![State::Warm, State::Sleeping, State::Stopped]);
    prop::collection::vec(
        prop_oneof![
            10 => (0usize..5).prop_map(|slots| Event::Tick { slots }),
            6 => (index(), prop::bool::weighted(0.7)).prop_map(|(i, ok)| Event::Finish(i, ok)),
            2 => Just(Event::FinishAll),
            3 => (0u64..20_000).prop_map(|ms| Event::Wait(Duration::from_millis(ms))),
            3 => Just(Event::Claim),
            2 => index().prop_map(Event::Release),
            1 => Just(Event::Make),
            2 => (index(), any::<Admitted>()).prop_map(|(i, run)| Event::Take(i, run)),
            2 => (index(), aside).prop_map(|(i, to)| Event::PutAside(i, to)),
            1 => index().prop_map(Event::Expire),
            1 => counts().prop_map(Event::Scale),
            1 => (1u8..4).prop_map(Event::Build),
        ],
        1..120,
    )
}

fn pools() -> impl Strategy<Value = Pool> {
    let recycle = prop::sample::select(vec![Recycle::Reset, Recycle::Sleep, Recycle::Keep]);
    (recycle, prop::option::weighted(0.9, counts())).prop_map(|(recycle, desired)| Pool {
        desired,
        recycle,
        ..base()
    })
}

struct SimulatedPool {
    pool: Pool,
    instances: Vec<Instance>,
    failures: Failures,
    now: Timestamp,
    made: u32,
}

impl SimulatedPool {
    fn new(pool: Pool) -> SimulatedPool {
        SimulatedPool {
            pool,
            instances: Vec::new(),
            failures: Failures::default(),
            now: Timestamp::from_millis(1000),
            made: 0,
        }
    }

    fn plan(&self, slots: usize) -> Vec<Action> {
        let all: Vec<&Instance> = self.instances.iter().collect();
        plan(&self.pool, &all, self.failures, slots, self.now)
    }

    fn find(&self, id: InstanceId) -> &Instance {
        self.instances.iter().find(|i| i.id == id).expect("an instance that is there")
    }

    fn make(&mut self, goal: Option<State>) {
        self.made += 1;
        let mut instance = support::instance(self.made, State::Created);
        instance.revision = self.pool.current_revision().expect("built").digest;
        instance.created_at = self.now;
        instance.goal = goal;
        self.instances.push(instance);
    }

    /// Returns whether the instance is a spare in its present state, or will be in the state that
    /// it goes to.
    fn is_spare(&self, instance: &Instance) -> bool {
        let current = self.pool.current_revision().expect("built").digest;
        instance.lease.is_none()
            && instance.counts_as().temperature().is_some()
            && instance.revision == current
            && (self.pool.recycle != Recycle::Reset || instance.leases_served == 0)
    }

    fn spares(&self) -> Counts {
        let count = |state: State| {
            let all = self.instances.iter().filter(|i| self.is_spare(i));
            all.filter(|i| i.counts_as() == state).count() as u32
        };
        Counts {
            running: count(State::Running),
            warm: count(State::Warm),
            sleeping: count(State::Sleeping),
        }
    }

    /// Checks the invariants of every plan, whatever the state of the model.
    fn check(&self, actions: &[Action], slots: usize) -> Result<(), TestCaseError> {
        let mut touched = BTreeSet::new();
        let (mut builds, mut wasted) = (0, 0);
        for action in actions {
            if let Action::Move { id, .. } | Action::Destroy { id } = action {
                let instance = self.find(*id);
                prop_assert!(touched.insert(*id), "{} twice in {:?}", id, actions);
                prop_assert!(instance.lease.is_none(), "{:?} of a leased one", action);
                prop_assert!(!instance.is_busy(), "{:?} of a busy one", action);
                prop_assert!(instance.state != State::Failed, "{:?} of a failed one", action);
                wasted +=
                    u64::from(matches!(action, Action::Destroy { .. }) && self.is_spare(instance));
            }
            builds += usize::from(!matches!(action, Action::Destroy { .. }));
            if let Action::Move { id, to } = action {
                let mut arrived = self.find(*id).clone();
                let way = arrived.state.allows(*to)
                    || (arrived.state.allows(State::Running) && State::Running.allows(*to));
                prop_assert!(way && arrived.state != *to, "{:?} from {}", action, arrived.state);
                arrived.state = *to;
                prop_assert!(self.is_spare(&arrived), "{:?} for nothing: {:?}", action, arrived);
            }
        }
        prop_assert!(builds <= slots);
        prop_assert!(builds == 0 || self.now >= self.failures.retry_at(), "no back-off");
        let Some(desired) = self.pool.desired else {
            prop_assert!(actions.is_empty(), "a pool that was never scaled is left alone");
            return Ok(());
        };
        // No more useful instances are destroyed than there are too many.
        let too_much = self.spares().total().saturating_sub(desired.total());
        prop_assert!(
            wasted <= too_much,
            "{} destroyed, {} too many: {:?}",
            wasted,
            too_much,
            actions
        );
        Ok(())
    }

    fn tick(&mut self, slots: usize) -> Result<Vec<Action>, TestCaseError> {
        let in_flight = self.instances.iter().filter(|i| i.goal.is_some()).count();
        let slots = slots.saturating_sub(in_flight);
        let actions = self.plan(slots);
        prop_assert_eq!(&actions, &self.plan(slots), "the same model, another plan");
        self.check(&actions, slots)?;
        for action in &actions {
            match *action {
                Action::Create { to } => self.make(Some(to)),
                Action::Move { id, to } => self.set_goal(id, to),
                Action::Destroy { id } => self.set_goal(id, State::Destroyed),
            }
        }
        // A failed spare is discarded.
        self.instances.retain(|i| i.state != State::Failed || !i.is_clean() || i.is_busy());
        Ok(actions)
    }

    fn set_goal(&mut self, id: InstanceId, to: State) {
        let instance = self.instances.iter_mut().find(|i| i.id == id).expect("there");
        instance.goal = Some(to);
    }

    /// Ends the step under way of the instance at this index.
    fn finish(&mut self, place: usize, well: bool) {
        let now = self.now;
        let instance = &mut self.instances[place];
        if !instance.is_busy() {
            return;
        }
        let (by_plan, to) = (instance.goal.is_some(), instance.counts_as());
        (instance.goal, instance.intent) = (None, None);
        match (well, to) {
            (_, State::Destroyed) => {
                self.instances.remove(place);
                return;
            }
            (true, to) => (instance.state, instance.state_since) = (to, now),
            // The machine has not run, so the instance remains asleep.
            (false, _) if instance.state == State::Sleeping => {}
            (false, _) => instance.state = State::Failed,
        }
        if by_plan {
            let count = if well { 0 } else { self.failures.count + 1 };
            self.failures = Failures { count, last: now };
        }
    }

    fn finish_all(&mut self) {
        for place in (0..self.instances.len()).rev() {
            self.finish(place, true);
        }
    }

    fn idle(&self, index: &Index, holds: impl Fn(&Instance) -> bool) -> Option<usize> {
        let places: Vec<usize> = (0..self.instances.len())
            .filter(|place| !self.instances[*place].is_busy() && holds(&self.instances[*place]))
            .collect();
        (!places.is_empty()).then(|| places[index.index(places.len())])
    }

    fn begin(&mut self, place: usize, to: State) {
        let instance = &mut self.instances[place];
        if instance.state != to && instance.state.allows(to) {
            instance.intent = Some(Intent { from: instance.state, to, since: self.now });
        }
    }

    fn lease(&mut self, place: usize, purpose: Purpose, admitted: Admitted) {
        let instance = &mut self.instances[place];
        instance.lease = Some(support::lease(purpose));
        instance.leases_served += 1;
        if admitted {
            self.begin(place, State::Running);
        }
    }

    fn claim(&mut self) -> Result<(), TestCaseError> {
        let current = self.pool.current_revision().expect("built").digest;
        let chosen = choose(self.pool.recycle, Some(current), &self.instances).map(|i| i.id);
        let place = match chosen {
            Some(id) => {
                let chosen = self.find(id);
                prop_assert!(chosen.lease.is_none() && !chosen.is_busy());
                prop_assert!(self.pool.recycle != Recycle::Reset || chosen.leases_served == 0);
                self.instances.iter().position(|i| i.id == id).expect("there")
            }
            None => {
                self.make(None);
                self.instances.len() - 1
            }
        };
        self.lease(place, Purpose::Run, true);
        Ok(())
    }

    /// Ends a job's lease. The pool's rule says what happens to the instance.
    fn release(&mut self, place: usize) {
        let gone = matches!(self.instances[place].state, State::Failed | State::Created);
        match self.pool.recycle {
            _ if gone => drop(self.instances.remove(place)),
            Recycle::Reset => drop(self.instances.remove(place)),
            Recycle::Sleep => {
                self.instances[place].state = State::Sleeping;
                self.instances[place].lease = None;
            }
            Recycle::Keep => self.instances[place].lease = None,
        }
    }

    fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        let held = |purpose: Purpose| {
            move |i: &Instance| i.lease.as_ref().is_some_and(|lease| lease.purpose == purpose)
        };
        match event {
            Event::Tick { slots } => drop(self.tick(*slots)?),
            Event::Finish(_, _) if self.instances.is_empty() => {}
            Event::Finish(index, well) => self.finish(index.index(self.instances.len()), *well),
            Event::FinishAll => self.finish_all(),
            Event::Wait(time) => self.now += *time,
            Event::Claim => self.claim()?,
            Event::Release(index) => {
                if let Some(place) = self.idle(index, held(Purpose::Run)) {
                    self.release(place);
                }
            }
            Event::Make => self.make(None),
            Event::Take(index, admitted) => {
                if let Some(place) = self.idle(index, |i| i.lease.is_none()) {
                    self.lease(place, Purpose::Manual, *admitted);
                }
            }
            Event::PutAside(index, to) => {
                if let Some(place) = self.idle(index, held(Purpose::Manual)) {
                    self.instances[place].lease = None;
                    self.begin(place, *to);
                }
            }
            Event::Expire(index) => {
                if let Some(place) = self.idle(index, held(Purpose::Manual)) {
                    self.instances[place].lease = None;
                }
            }
            Event::Scale(counts) => self.pool.desired = self.pool.desired.map(|_| *counts),
            Event::Build(digest) => {
                self.pool.record_build(Digest::of(format!("r{digest}")), self.now);
            }
        }
        Ok(())
    }

    /// Carries out the plan without failures until it is empty. Returns the number of steps.
    fn settle(&mut self, slots: usize) -> Result<usize, TestCaseError> {
        let mut steps = 0;
        for _ in 0..300 {
            self.finish_all();
            self.now = self.now.max(self.failures.retry_at());
            let actions = self.tick(slots)?;
            if actions.is_empty() && !self.instances.iter().any(Instance::is_busy) {
                return Ok(steps);
            }
            steps += actions.len();
        }
        Err(TestCaseError::fail(format!("no end of it: {:?}", self.plan(slots))))
    }
}

proptest! {
    #![proptest_config(support::cases(3000))]

    #[test]
    fn the_pool_comes_to_hold_what_it_should(pool in pools(), events in events(), slots in 1usize..5) {
        let mut model = SimulatedPool::new(pool);
        for event in &events {
            model.happen(event)?;
        }
        let leased: Vec<InstanceId> =
            model.instances.iter().filter(|i| i.lease.is_some()).map(|i| i.id).collect();
        let before = model.instances.len();
        let steps = model.settle(slots)?;
        for id in leased {
            prop_assert!(model.find(id).lease.is_some(), "leased ones stay with their holders");
        }
        let Some(desired) = model.pool.desired else {
            prop_assert_eq!(steps, 0);
            return Ok(());
        };
        prop_assert_eq!(model.spares(), desired);
        prop_assert_eq!(ready(&model.pool, &model.instances), desired);
        // Each instance is touched a few times at most, so none is moved back and forth.
        let bound = 3 * (before + desired.total() as usize);
        prop_assert!(steps <= bound, "{} steps for {} instances", steps, before);
        // The instances beyond the spares belong to users: leased, put aside, or kept by hand.
        let current = model.pool.current_revision().unwrap().digest;
        for instance in model.instances.iter().filter(|i| !model.is_spare(i) && i.lease.is_none()) {
            let raw = matches!(instance.state, State::Created | State::Stopped | State::Failed);
            let aside = instance.leases_served > 0 && model.pool.recycle == Recycle::Reset;
            prop_assert!(raw || aside, "{:?} of {} at {}", instance, model.pool.recycle as u8, current);
        }
        prop_assert!(model.plan(100).is_empty());
    }

    /// Once the leases have ended too, a pool that recycles holds its spares and nothing else.
    #[test]
    fn jobs_leave_the_pool_as_it_was(
        mut pool in pools(),
        claims in prop::collection::vec(any::<Index>(), 1..20),
    ) {
        pool.desired = Some(pool.desired.unwrap_or_default());
        let mut model = SimulatedPool::new(pool);
        model.settle(2)?;
        let full = model.spares();
        for index in &claims {
            model.claim()?;
            if index.index(2) == 0 {
                model.tick(2)?;
            }
            model.finish_all();
            if let (0, Some(place)) = (index.index(3), model.idle(index, |i| i.lease.is_some())) {
                model.release(place);
            }
        }
        while let Some(place) = model.instances.iter().position(|i| i.lease.is_some()) {
            model.finish_all();
            model.release(place);
        }
        model.settle(2)?;
        prop_assert_eq!(model.spares(), full);
        prop_assert_eq!(model.instances.len() as u64, full.total());
    }

    #[test]
    fn back_off_grows_to_five_minutes(count: u32, last in 0u64..1 << 50) {
        let last = Timestamp::from_millis(last);
        let wait = Failures { count, last }.retry_at().since(last).as_millis();
        let expected = match count {
            0 => 0,
            1..=9 => 1000 << (count - 1),
            _ => 300_000,
        };
        prop_assert_eq!(wait, expected);
    }
}

/// A pool that is scaled to an enormous size is also built a few steps at a time.
#[test]
fn an_enormous_pool_is_planned_a_few_steps_at_a_time() {
    let mut pool = SimulatedPool::new(Pool {
        desired: Some(Counts { running: u32::MAX, warm: u32::MAX, sleeping: u32::MAX }),
        ..base()
    });
    pool.make(None);
    let actions = pool.plan(3);
    assert_eq!(actions.len(), 3);
    assert!(matches!(actions[0], Action::Move { to: State::Running, .. }));
    assert!(pool.plan(0).is_empty());
}

fn base() -> Pool {
    let mut pool = support::pool();
    pool.record_build(Digest::of("r1"), Timestamp::EPOCH);
    pool
}

#[test]
fn of_used_sleepers_the_last_to_fall_asleep_is_claimed() {
    let mut all: Vec<_> = (0..3).map(|n| support::instance(n, State::Sleeping)).collect();
    for (instance, (since, served)) in all.iter_mut().zip([(30, 0), (10, 1), (20, 2)]) {
        (instance.state_since, instance.leases_served) = (Timestamp::from_millis(since), served);
    }
    let chosen =
        |recycle, all: &[Instance]| choose(recycle, Some(all[0].revision), all).map(|i| i.id);
    assert_eq!(chosen(Recycle::Sleep, &all), Some(all[2].id), "for its process and its caches");
    assert_eq!(chosen(Recycle::Reset, &all), Some(all[0].id), "nobody has used it");
    all[1].state = State::Warm;
    assert_eq!(chosen(Recycle::Sleep, &all), Some(all[1].id), "what is warm comes first");
}
