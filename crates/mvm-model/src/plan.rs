//! The reconciler's decision: what to do next so that a pool holds what it should.

use crate::action::Action;
use crate::digest::Digest;
use crate::id::InstanceId;
use crate::instance::Instance;
use crate::pool::{Counts, Pool, Recycle};
use crate::state::State;
use crate::timestamp::Timestamp;
use std::time::Duration;

/// How often in a row bringing up instances of the pool has failed, for the back-off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// Failures since the last success.
    pub count: u32,
    /// When the last one happened.
    pub last: Timestamp,
}

impl Failures {
    /// Returns when the next attempt may be made; the Unix epoch is at once. After the last failure it is 1 s, 2
    /// s, 4 s … up to 5 minutes.
    pub fn retry_at(&self) -> Timestamp {
        if self.count == 0 {
            return Timestamp::EPOCH;
        }
        self.last + Duration::from_secs((1 << (self.count - 1).min(9)).min(300))
    }
}

/// Returns what `pool` needs next: at most `slots` steps that build up, and any number that tear
/// down.
///
/// Leased instances are neither counted nor touched, nor are those with a transition under way
/// touched (they count for where they head). A pool that was never scaled gets an empty plan.
pub fn plan(
    pool: &Pool,
    instances: &[&Instance],
    failures: Failures,
    slots: usize,
    now: Timestamp,
) -> Vec<Action> {
    let (Some(desired), Some(revision)) = (pool.desired, pool.current_revision()) else {
        return Vec::new();
    };
    let mut actions = Vec::new();
    let mut have = Ready { recycle: pool.recycle, ..Ready::default() };
    for &instance in instances {
        match role(pool, revision.digest, instance) {
            Role::Ignored => {}
            Role::Spent => actions.push(Action::Destroy { id: instance.id }),
            Role::Spare => have.add(instance),
        }
    }
    let wanted = [
        (State::Running, desired.running as usize),
        (State::Warm, desired.warm as usize),
        (State::Sleeping, desired.sleeping as usize),
    ];
    // What is too much of all three comes first, so that it serves where there is too little.
    for (state, count) in wanted {
        have.trim(state, count);
    }
    let mut build = Vec::new();
    for (state, count) in wanted {
        have.fill(state, count, slots, &mut build);
    }
    // What is still free after all three were served is surplus.
    actions.extend(have.surplus.iter().map(|instance| Action::Destroy { id: instance.id }));
    if now >= failures.retry_at() {
        actions.extend(build.into_iter().take(slots));
    }
    actions
}

/// Returns what stands ready in `pool`, by the rule of [`plan`]: once a plan has been carried out,
/// these are the desired counts. Used machines that somebody has put aside are not among them.
pub fn ready<'a>(pool: &Pool, instances: impl IntoIterator<Item = &'a Instance>) -> Counts {
    let mut counts = Counts::default();
    let Some(revision) = pool.current_revision() else { return counts };
    for instance in instances.into_iter().filter(|instance| !instance.is_busy()) {
        match (role(pool, revision.digest, instance), instance.state) {
            (Role::Spare, State::Running) => counts.running += 1,
            (Role::Spare, State::Warm) => counts.warm += 1,
            (Role::Spare, State::Sleeping) => counts.sleeping += 1,
            _ => {}
        }
    }
    counts
}

enum Role {
    /// Leased, failed, on its way out, or kept by a person: neither counted nor touched.
    Ignored,
    /// Of an old revision or shape, or used in a pool whose instances are used once.
    Spent,
    /// Counts towards the desired counts.
    Spare,
}

fn role(pool: &Pool, revision: Digest, instance: &Instance) -> Role {
    let counted = instance.counts_as();
    if instance.lease.is_some() || matches!(counted, State::Destroyed | State::Failed) {
        return Role::Ignored;
    }
    let outdated = instance.revision != revision || !pool.shapes(instance);
    let used_once = pool.recycle == Recycle::Reset && !instance.is_clean();
    if instance.is_busy() {
        // An instance on its way is left alone, and counted only if it will count when it arrives.
        let lasting = !used_once && !outdated;
        return if lasting { Role::Spare } else { Role::Ignored };
    }
    match instance.state {
        State::Running if used_once => Role::Spent,
        // Somebody put a used machine aside (`instance sleep`, `warm`, `stop`), or never got it to
        // boot: it is theirs.
        _ if used_once => Role::Ignored,
        // Raw material of an old revision or shape is left to its maker.
        State::Created | State::Stopped if outdated => Role::Ignored,
        _ if outdated => Role::Spent,
        _ => Role::Spare,
    }
}

/// The unleased instances by the temperature they are in, plus what could become one.
#[derive(Default)]
struct Ready<'a> {
    recycle: Recycle,
    running: Vec<&'a Instance>,
    warm: Vec<&'a Instance>,
    sleeping: Vec<&'a Instance>,
    /// `created` and `stopped`: raw material, taken before new ones are made; never surplus.
    material: Vec<&'a Instance>,
    surplus: Vec<&'a Instance>,
}

impl<'a> Ready<'a> {
    fn add(&mut self, instance: &'a Instance) {
        match instance.counts_as() {
            State::Running => self.running.push(instance),
            State::Warm => self.warm.push(instance),
            State::Sleeping => self.sleeping.push(instance),
            _ => self.material.push(instance),
        }
    }

    fn shelf(&mut self, state: State) -> &mut Vec<&'a Instance> {
        match state {
            State::Running => &mut self.running,
            State::Warm => &mut self.warm,
            _ => &mut self.sleeping,
        }
    }

    /// Keeps `count` of one temperature; the others that are idle are surplus.
    fn trim(&mut self, state: State, count: usize) {
        let recycle = self.recycle;
        let mut own = std::mem::take(self.shelf(state));
        // Keep the used ones where caches count, then the oldest, so that the plan is stable.
        let no_cache = |i: &Instance| recycle != Recycle::Reset && i.leases_served == 0;
        own.sort_by_key(|i| (no_cache(i), i.created_at, i.id));
        while own.len() > count {
            match own.iter().rposition(|i| !i.is_busy()) {
                Some(index) => self.surplus.push(own.remove(index)),
                None => break,
            }
        }
        *self.shelf(state) = own;
    }

    /// Fills one temperature, hottest first: from surplus, sleepers, material, then new instances.
    fn fill(&mut self, state: State, count: usize, slots: usize, build: &mut Vec<Action>) {
        for _ in self.shelf(state).len()..count {
            match self.take_for(state) {
                Some(id) => build.push(Action::Move { id, to: state }),
                // Every instance that is still missing would be a new one: a later plan makes it.
                None if build.len() >= slots => return,
                None => build.push(Action::Create { to: state }),
            }
        }
    }

    fn take_for(&mut self, state: State) -> Option<InstanceId> {
        let idle = |i: &&Instance| !i.is_busy() && can_become(i.state, state);
        let mut none = Vec::new();
        // A hotter temperature takes sleepers, too, even those that are wanted asleep.
        let sleepers = if state == State::Sleeping { &mut none } else { &mut self.sleeping };
        for shelf in [&mut self.surplus, sleepers, &mut self.material] {
            if let Some(index) = shelf.iter().position(idle) {
                return Some(shelf.remove(index).id);
            }
        }
        None
    }
}

/// Returns whether the reconciler can bring an instance from one state to the other, through
/// `running` where there is no direct transition.
fn can_become(from: State, to: State) -> bool {
    from.allows(to) || (from.allows(State::Running) && State::Running.allows(to))
}
