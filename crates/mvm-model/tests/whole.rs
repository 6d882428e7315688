//! Planner, sleep policy, quotas, addresses and claims together, as a node carries them out:
//! several pools of one tenant, and any sequence of commands, failures, memory pressure and time.

mod support;

use mvm_model::action::Action;
use mvm_model::admission::{admit_counts, admit_instance, admit_state};
use mvm_model::choose::choose;
use mvm_model::lease::Purpose;
use mvm_model::network::TenantNetwork;
use mvm_model::plan::{Failures, plan, ready};
use mvm_model::policy;
use mvm_model::runtime_policy::RuntimePolicy;
use mvm_model::state::Intent;
use mvm_model::{
    Counts, Digest, Instance, InstanceId, Mib, Pool, Quotas, Recycle, State, Timestamp, Usage,
};
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Clone, Debug)]
enum Event {
    /// The reconcile loop runs once, with or without memory pressure.
    Tick {
        slots: usize,
        pressed: bool,
    },
    /// One step under way ends, with success or failure.
    Step(Index, bool),
    /// All that is under way is completed with success.
    Finish,
    Wait(Duration),
    Create(Index),
    Claim(Index),
    /// A lease ends, by its pool's rule.
    Release(Index),
    /// A user takes an instance and brings it to a state, or destroys it.
    Take(Index, State),
    Scale(Index, Counts),
    Build(Index, u8),
    Policy(Index, RuntimePolicy),
    Quotas(Quotas),
}

fn counts(most: u32) -> impl Strategy<Value = Counts> {
    (0..=most, 0..=most, 0..=most).prop_map(|(running, warm, sleeping)| Counts {
        running,
        warm,
        sleeping,
    })
}

fn policies() -> impl Strategy<Value = RuntimePolicy> {
    (0u64..400, 0u64..400, prop::option::weighted(0.3, 60u64..600), 0u32..3).prop_map(
        |(warm_after_s, sleep_after_s, max_age_s, max_jobs)| RuntimePolicy {
            warm_after_s,
            sleep_after_s,
            max_age_s: max_age_s.unwrap_or(0),
            max_jobs,
            ..RuntimePolicy::default()
        },
    )
}

fn tight() -> impl Strategy<Value = Quotas> {
    (2u64..40, 1u64..12, 1u64..8, 2u64..20, 5u64..100).prop_map(
        |(max_vcpus, max_running, max_warm, max_instances_per_pool, max_disk_gib)| Quotas {
            max_vcpus,
            max_mem_mib: max_vcpus * Mib(2048),
            max_running,
            max_warm,
            max_pools: 3,
            max_instances_per_pool,
            max_disk_gib,
            max_queued_jobs: 1,
        },
    )
}

fn ample() -> Quotas {
    let most = 1 << 40;
    Quotas {
        max_vcpus: most,
        max_mem_mib: Mib(most),
        max_running: most,
        max_warm: most,
        max_pools: 3,
        max_instances_per_pool: most,
        max_disk_gib: most,
        max_queued_jobs: most,
    }
}

fn events(quotas_change: bool) -> impl Strategy<Value = Vec<Event>> {
    let index = any::<Index>;
    let target = prop::sample::select(vec![
        State::Running,
        State::Warm,
        State::Sleeping,
        State::Stopped,
        State::Destroyed,
    ]);
    let tick = (0usize..6, prop::bool::weighted(0.1));
    let one = prop_oneof![
        12 => tick.prop_map(|(slots, pressed)| Event::Tick { slots, pressed }),
        8 => (index(), prop::bool::weighted(0.8)).prop_map(|(i, well)| Event::Step(i, well)),
        3 => Just(Event::Finish),
        3 => (0u64..120_000).prop_map(|ms| Event::Wait(Duration::from_millis(ms))),
        2 => index().prop_map(Event::Create),
        4 => index().prop_map(Event::Claim),
        3 => index().prop_map(Event::Release),
        3 => (index(), target).prop_map(|(i, to)| Event::Take(i, to)),
        2 => (index(), counts(5)).prop_map(|(i, counts)| Event::Scale(i, counts)),
        1 => (index(), 1u8..4).prop_map(|(i, image)| Event::Build(i, image)),
        1 => (index(), policies()).prop_map(|(i, policy)| Event::Policy(i, policy)),
        1 => tight().prop_map(move |q| Event::Quotas(if quotas_change { q } else { ample() })),
    ];
    prop::collection::vec(one, 1..150)
}

struct Node {
    quotas: Quotas,
    network: TenantNetwork,
    pools: Vec<Pool>,
    failures: Vec<Failures>,
    instances: BTreeMap<InstanceId, Instance>,
    now: Timestamp,
    made: u32,
    /// The number of steps that the loop has begun.
    begun: usize,
}

type Checked<T = ()> = Result<T, TestCaseError>;

impl Node {
    fn new(quotas: Quotas, rules: &[Recycle]) -> Node {
        let pools: Vec<Pool> = (0u32..).zip(rules).map(|(n, rule)| pool(n, *rule)).collect();
        let subnet = "10.240.0.0/16".parse().expect("a subnet");
        Node {
            quotas,
            network: TenantNetwork {
                tenant_net_id: 1,
                ipv4_subnet: subnet,
                allow_public_subnet: false,
            },
            failures: vec![Failures::default(); pools.len()],
            pools,
            instances: BTreeMap::new(),
            now: Timestamp::from_millis(1_000_000),
            made: 0,
            begun: 0,
        }
    }

    fn usage(&self) -> Usage {
        Usage::count(self.pools.len() as u64, self.instances.values())
    }

    fn of(&self, pool: usize) -> Vec<&Instance> {
        let reference = &self.pools[pool].reference;
        self.instances.values().filter(|i| i.pool == *reference).collect()
    }

    fn pool_of(&self, id: InstanceId) -> usize {
        let of = &self.instances[&id].pool;
        self.pools.iter().position(|pool| pool.reference == *of).expect("its pool")
    }

    /// Creates an instance as the node does: checks the quotas, then takes a free address.
    fn create(&mut self, pool: usize, goal: Option<State>) -> Option<InstanceId> {
        let record = &self.pools[pool];
        let in_pool = self.of(pool).len() as u64;
        let tenant = &record.reference.tenant;
        admit_instance(tenant, &self.quotas, &self.usage(), record, in_pool).ok()?;
        let taken: BTreeSet<_> = self.instances.values().map(|i| i.address).collect();
        let address = self.network.allocate(&taken).ok()?;
        self.made += 1;
        let mut made = support::instance(self.made, State::Created);
        made.pool = record.reference.clone();
        made.resources = record.resources;
        made.revision = record.current_revision().expect("built").digest;
        (made.created_at, made.state_since) = (self.now, self.now);
        (made.address, made.goal) = (address, goal);
        self.instances.insert(made.id, made.clone());
        Some(made.id)
    }

    /// Begins the first step from one state to another, through `running` where there is no direct
    /// one.
    fn begin(&mut self, id: InstanceId, to: State) -> bool {
        let instance = &self.instances[&id];
        let step = if instance.state.allows(to) { to } else { State::Running };
        let tenant = &instance.pool.tenant;
        let admitted = instance.state.allows(step)
            && admit_state(tenant, &self.quotas, &self.usage(), instance, step).is_ok();
        let (from, since) = (instance.state, self.now);
        if admitted && let Some(instance) = self.instances.get_mut(&id) {
            instance.intent = Some(Intent { from, to: step, since });
        }
        admitted
    }

    /// Ends the present step of an instance, and begins the next one.
    fn step(&mut self, id: InstanceId, well: bool) {
        let pool = self.pool_of(id);
        let now = self.now;
        let instance = self.instances.get_mut(&id).expect("there");
        let goal = instance.goal;
        if let Some(intent) = instance.intent {
            match (well, intent.to) {
                (_, State::Destroyed) => return drop(self.instances.remove(&id)),
                (true, to) => instance.reach(to, now),
                // The machine has not run, so the instance remains asleep.
                (false, _) if instance.state == State::Sleeping => instance.intent = None,
                (false, _) => instance.reach(State::Failed, now),
            }
            if !well && goal.is_some() {
                instance.goal = None;
                return self.failed(pool);
            }
        }
        let state = instance.state;
        match goal {
            Some(goal) if goal == state => {
                instance.goal = None;
                self.failures[pool] = Failures::default();
            }
            Some(goal) if !self.begin(id, goal) => {
                self.instances.get_mut(&id).expect("there").goal = None;
                self.failed(pool);
            }
            _ => {}
        }
    }

    fn failed(&mut self, pool: usize) {
        let count = self.failures[pool].count + 1;
        self.failures[pool] = Failures { count, last: self.now };
    }

    /// Completes all that is under way. Each instance has three steps at most.
    fn finish(&mut self) -> Checked {
        for _ in 0..6 {
            let busy: Vec<InstanceId> =
                self.instances.values().filter(|i| i.is_busy()).map(|i| i.id).collect();
            if busy.is_empty() {
                return Ok(());
            }
            busy.into_iter().for_each(|id| self.step(id, true));
        }
        Err(TestCaseError::fail("something has no end"))
    }

    /// Runs one pass of the reconcile loop over all pools. Returns the number of steps that it has
    /// begun.
    fn tick(&mut self, slots: usize, pressed: bool) -> Checked<usize> {
        let before = self.begun;
        if pressed && let Some(id) = policy::relieve(self.instances.values()) {
            self.touch(id)?.goal = Some(State::Sleeping);
        }
        for pool in 0..self.pools.len() {
            let record = &self.pools[pool];
            let under_way = self.instances.values().filter(|i| i.goal.is_some()).count();
            let slots = if pressed { 0 } else { slots.saturating_sub(under_way) };
            let all = self.of(pool);
            let mut actions = plan(record, &all, self.failures[pool], slots, self.now);
            if actions.is_empty() {
                // Nothing happens in the instances, so they are idle since they reached their
                // state.
                let idle = |id: InstanceId| Some(self.instances[&id].state_since);
                actions = policy::act(record, all, idle, self.now);
            }
            for action in actions {
                self.begun += 1;
                match action {
                    Action::Create { to } => {
                        if self.create(pool, Some(to)).is_none() {
                            self.failed(pool);
                        }
                    }
                    Action::Move { id, to } => self.touch(id)?.goal = Some(to),
                    Action::Destroy { id } => self.touch(id)?.goal = Some(State::Destroyed),
                }
            }
            self.discard_failed(pool);
        }
        Ok(self.begun - before)
    }

    /// Returns an instance that the loop decides about. The instance must be neither leased nor
    /// busy.
    fn touch(&mut self, id: InstanceId) -> Checked<&mut Instance> {
        let instance = self.instances.get_mut(&id).expect("one that is there");
        prop_assert!(instance.lease.is_none(), "{instance:?} is leased");
        prop_assert!(!instance.is_busy(), "{instance:?} is busy");
        Ok(instance)
    }

    /// Discards the spares that have failed.
    fn discard_failed(&mut self, pool: usize) {
        let reference = self.pools[pool].reference.clone();
        let scaled = self.pools[pool].desired.is_some();
        self.instances.retain(|_, i| {
            let spare = i.pool == reference && i.state == State::Failed;
            !(scaled && spare && i.is_clean() && !i.is_busy())
        });
    }

    fn pick(&self, index: &Index, holds: impl Fn(&Instance) -> bool) -> Option<InstanceId> {
        let fitting: Vec<InstanceId> =
            self.instances.values().filter(|i| holds(i)).map(|i| i.id).collect();
        (!fitting.is_empty()).then(|| *index.get(&fitting))
    }

    fn lease(&mut self, id: InstanceId, purpose: Purpose) {
        let instance = self.instances.get_mut(&id).expect("there");
        instance.lease = Some(support::lease(purpose));
        instance.leases_served += 1;
        if instance.state != State::Running {
            self.begin(id, State::Running);
        }
    }

    fn claim(&mut self, pool: usize) -> Checked {
        let record = &self.pools[pool];
        let revision = record.current_revision().map(|revision| revision.digest);
        let chosen = choose(record.recycle, revision, self.of(pool)).map(|i| i.id);
        if let Some(id) = chosen {
            self.touch(id)?;
        }
        if let Some(id) = chosen.or_else(|| self.create(pool, None)) {
            self.lease(id, Purpose::Run);
        }
        Ok(())
    }

    fn release(&mut self, id: InstanceId) {
        let rule = self.pools[self.pool_of(id)].recycle;
        let instance = self.instances.get_mut(&id).expect("there");
        let worthless = matches!(instance.state, State::Failed | State::Created);
        match rule {
            _ if worthless => drop(self.instances.remove(&id)),
            Recycle::Reset => drop(self.instances.remove(&id)),
            Recycle::Sleep => {
                instance.lease = None;
                if instance.state != State::Sleeping && !self.begin(id, State::Sleeping) {
                    self.instances.remove(&id);
                }
            }
            Recycle::Keep => instance.lease = None,
        }
    }

    fn happen(&mut self, event: &Event) -> Checked {
        let which = |index: &Index| index.index(self.pools.len());
        let idle = |i: &Instance| !i.is_busy();
        match event {
            Event::Tick { slots, pressed } => drop(self.tick(*slots, *pressed)?),
            Event::Step(index, well) => {
                if let Some(id) = self.pick(index, Instance::is_busy) {
                    self.step(id, *well);
                }
            }
            Event::Finish => self.finish()?,
            Event::Wait(time) => self.now += *time,
            Event::Create(pool) => drop(self.create(which(pool), None)),
            Event::Claim(pool) => self.claim(which(pool))?,
            Event::Release(index) => {
                if let Some(id) = self.pick(index, |i| idle(i) && i.lease.is_some()) {
                    self.release(id);
                }
            }
            Event::Take(index, to) => {
                let Some(id) = self.pick(index, |i| idle(i) && i.lease.is_none()) else {
                    return Ok(());
                };
                match to {
                    State::Running => self.lease(id, Purpose::Manual),
                    to if self.instances[&id].state != *to => drop(self.begin(id, *to)),
                    _ => {}
                }
            }
            Event::Scale(index, counts) => {
                let pool = which(index);
                let record = &self.pools[pool];
                let tenant = &record.reference.tenant;
                if admit_counts(tenant, &self.quotas, &record.resources, &record.caches, counts)
                    .is_ok()
                {
                    self.pools[pool].desired = Some(*counts);
                    self.failures[pool] = Failures::default();
                }
            }
            Event::Build(index, image) => {
                let (pool, now) = (which(index), self.now);
                self.pools[pool].record_build(Digest::of(format!("r{image}")), now);
            }
            Event::Policy(index, policy) => {
                let pool = which(index);
                self.pools[pool].runtime_policy = *policy;
            }
            Event::Quotas(quotas) => self.quotas = *quotas,
        }
        Ok(())
    }

    /// Checks that quotas are kept, except by what was there before they were lowered, and that
    /// addresses are unique and in the subnet.
    fn check(&self, before: &Usage) -> Checked {
        let (now, quotas) = (self.usage(), &self.quotas);
        for (what, limit, before, now) in [
            ("vcpus", quotas.max_vcpus, before.vcpus, now.vcpus),
            ("mem", quotas.max_mem_mib.0, before.mem_mib.0, now.mem_mib.0),
            ("running", quotas.max_running, before.running, now.running),
            ("warm", quotas.max_warm, before.warm, now.warm),
            ("disk", quotas.max_disk_gib << 10, before.disk_mib.0, now.disk_mib.0),
        ] {
            prop_assert!(now <= limit.max(before), "{what}: {now} of {limit}, before {before}");
        }
        let addresses: BTreeSet<_> = self.instances.values().map(|i| i.address).collect();
        prop_assert_eq!(addresses.len(), self.instances.len());
        prop_assert!(addresses.iter().all(|a| self.network.ipv4_subnet.contains(a)));
        Ok(())
    }

    /// Runs passes without commands and failures. The node must come to rest within this number of
    /// passes.
    fn rest(&mut self, looks: usize) -> Checked {
        for _ in 0..looks {
            self.finish()?;
            let retry = self.failures.iter().map(Failures::retry_at).max();
            self.now = self.now.max(retry.unwrap_or_default());
            if self.tick(4, false)? == 0 && !self.instances.values().any(Instance::is_busy) {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("it does not come to rest"))
    }
}

fn pool(number: u32, recycle: Recycle) -> Pool {
    let mut pool = Pool { recycle, ..support::pool() };
    pool.reference = format!("ci/pool-{number}").parse().expect("a pool");
    pool.runtime_policy = RuntimePolicy { max_age_s: 0, ..RuntimePolicy::default() };
    pool.record_build(Digest::of("r1"), Timestamp::EPOCH);
    pool
}

fn rules() -> impl Strategy<Value = Vec<Recycle>> {
    let rule = prop::sample::select(vec![Recycle::Reset, Recycle::Sleep, Recycle::Keep]);
    prop::collection::vec(rule, 1..4)
}

proptest! {
    #![proptest_config(support::cases(400))]

    /// Under any commands and however tight the quotas, quotas are kept, leases are respected, and
    /// an instance disappears only if it is taken away.
    #[test]
    fn quotas_are_kept_and_nothing_is_lost(
        rules in rules(), quotas in tight(), events in events(true),
    ) {
        let mut node = Node::new(quotas, &rules);
        for event in &events {
            let (usage, before) = (node.usage(), node.instances.clone());
            node.happen(event)?;
            node.check(&usage)?;
            for (id, was) in before {
                let goes = was.counts_as() == State::Destroyed
                    || matches!(event, Event::Release(_))
                    || was.state == State::Failed;
                prop_assert!(goes || node.instances.contains_key(&id), "{was:?} is lost: {event:?}");
            }
        }
    }

    /// If the quotas allow it, every pool gets its desired counts in a bounded number of passes,
    /// and then the loop has nothing to do: planner and policy never undo each other's work.
    #[test]
    fn it_comes_to_rest_and_stays_there(rules in rules(), events in events(false)) {
        let mut node = Node::new(ample(), &rules);
        for event in &events {
            node.happen(event)?;
        }
        for pool in &mut node.pools {
            (pool.runtime_policy.max_age_s, pool.runtime_policy.max_jobs) = (0, 0);
        }
        let leased: Vec<_> = node.instances.values().filter(|i| i.lease.is_some()).cloned().collect();
        let much = node.instances.len() + node.pools.iter().filter_map(|p| p.desired).map(|d| d.total() as usize).sum::<usize>();
        node.rest(20 + 4 * much)?;
        for was in leased {
            let now = node.instances.get(&was.id);
            prop_assert!(now.is_some_and(|now| now.lease.is_some()), "{was:?} was taken away");
        }
        for (number, pool) in node.pools.iter().enumerate() {
            if let Some(desired) = pool.desired {
                prop_assert_eq!(ready(pool, node.of(number)), desired);
            }
        }
        // Pools that were never scaled cool down: each instance in two steps at most.
        let begun = node.begun;
        for _ in 0..200 {
            node.now += Duration::from_secs(60);
            node.tick(4, false)?;
            node.finish()?;
        }
        let loose = node.instances.values().filter(|i| {
            node.pools.iter().any(|p| p.reference == i.pool && p.desired.is_none())
        });
        prop_assert!(node.begun - begun <= 2 * loose.count(), "{} steps at rest", node.begun - begun);
    }

    /// Instances that have reached their maximum age are replaced one after another, and no faster
    /// than they age.
    #[test]
    fn what_grows_old_is_replaced_and_the_counts_are_kept(
        rule in rules(), counts in counts(6), max_age_s in 60u64..600, hours in 1u64..4,
    ) {
        let mut node = Node::new(ample(), &rule[..1]);
        node.pools[0].desired = Some(counts);
        node.pools[0].runtime_policy.max_age_s = max_age_s;
        node.rest(100)?;
        let (begun, began) = (node.begun, node.now);
        while node.now < began + Duration::from_secs(hours * 3600) {
            node.now += Duration::from_secs(10);
            node.tick(4, false)?;
            node.finish()?;
            let least = counts.total().saturating_sub(1);
            prop_assert!(ready(&node.pools[0], node.of(0)).total() >= least, "more than one is away");
        }
        let lives = hours * 3600 / max_age_s + 1;
        // Each instance is destroyed and made again, and a free place may be filled from another
        // one.
        let bound = 4 * lives * counts.total();
        prop_assert!((node.begun - begun) as u64 <= bound, "{} steps", node.begun - begun);
    }
}

/// Thousands of instances are scaled up, leased, given back and scaled away again.
#[test]
fn thousands_of_instances_come_and_go() {
    let most = Counts { running: 200, warm: 300, sleeping: 2500 };
    let mut node = Node::new(ample(), &[Recycle::Reset]);
    node.pools[0].desired = Some(most);
    let full = |node: &mut Node| {
        for _ in 0..200 {
            node.tick(64, false).expect("a tick");
            node.finish().expect("an end");
        }
        assert_eq!(ready(&node.pools[0], node.of(0)), node.pools[0].desired.expect("scaled"));
        assert_eq!(node.tick(64, false).expect("a tick"), 0, "nothing is left to do");
    };
    full(&mut node);
    for _ in 0..400 {
        node.claim(0).expect("a claim");
    }
    node.finish().expect("an end");
    full(&mut node);
    assert_eq!(node.instances.len(), 3400);
    let leased: Vec<_> =
        node.instances.values().filter(|i| i.lease.is_some()).map(|i| i.id).collect();
    leased.into_iter().for_each(|id| node.release(id));
    node.pools[0].desired = Some(Counts::default());
    full(&mut node);
    assert!(node.instances.is_empty());
}
