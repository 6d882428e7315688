//! The sleep policy: what becomes of instances that nobody uses.
//!
//! Counts say what stands ready, and the planner keeps them; the policy cools what no count asks
//! for, that is, instances of pools that were never scaled. In pools that were scaled it replaces
//! instances that have grown old; and under memory pressure it puts warm ones of any pool to sleep.

use crate::action::Action;
use crate::id::InstanceId;
use crate::instance::Instance;
use crate::pool::Pool;
use crate::runtime_policy::RuntimePolicy;
use crate::state::State;
use crate::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the policy does next with an instance, and when, if nothing happens to the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Next {
    /// The instance's next state.
    pub to: State,
    /// When the policy acts; ms since the Unix epoch.
    pub at: Timestamp,
    /// Why the policy acts, for a person.
    pub why: String,
}

/// Guest CPU below this share of one host CPU is idle, in percent: a guest that does nothing takes
/// one to three under emulation.
const IDLE_CPU_PERCENT: u128 = 8;
/// Traffic below this rate is idle: what neighbours ask each other, in bytes a second.
const IDLE_NET_RATE: u128 = 1024;

/// What was measured of an instance at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Timestamp,
    /// CPU time of its hypervisor's process, in ms.
    pub cpu_ms: u64,
    /// Bytes through its tap, both ways.
    pub net_bytes: u64,
    /// Open sessions.
    pub sessions: usize,
}

/// For how long an instance has been idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Since when it has been idle: the time of its last busy sample, or of its first.
    pub since: Timestamp,
    /// The last sample.
    pub last: Sample,
}

impl Idle {
    /// Begins to watch an instance with its first sample.
    pub fn begin(sample: Sample) -> Idle {
        Idle { since: sample.at, last: sample }
    }

    /// Returns the idleness after one more sample. Above either limit, or with an open session, the
    /// instance is busy, and idle anew from this sample on.
    pub fn after(self, sample: Sample) -> Idle {
        let elapsed = sample.at.since(self.last.at).as_millis().max(1);
        let cpu = u128::from(sample.cpu_ms.saturating_sub(self.last.cpu_ms)) * 100 / elapsed;
        let rate =
            u128::from(sample.net_bytes.saturating_sub(self.last.net_bytes)) * 1000 / elapsed;
        let busy = sample.sessions > 0 || cpu >= IDLE_CPU_PERCENT || rate >= IDLE_NET_RATE;
        Idle { since: if busy { sample.at } else { self.since }, last: sample }
    }
}

/// Returns what the policy of `pool` will do next with one instance, which has been idle since
/// `idle_since` if it is running. Leased instances, and those with something under way, are left
/// alone.
pub fn next(pool: &Pool, instance: &Instance, idle_since: Option<Timestamp>) -> Option<Next> {
    if instance.lease.is_some() || instance.is_busy() {
        return None;
    }
    match pool.desired {
        None => cooler(pool, instance, idle_since),
        Some(_) => too_old(pool, instance),
    }
}

fn cooler(pool: &Pool, instance: &Instance, idle_since: Option<Timestamp>) -> Option<Next> {
    let policy = &pool.runtime_policy;
    let (to, since, after, least) = match instance.state {
        State::Running => (State::Warm, idle_since?, policy.warm_after_s, policy.min_running_s),
        State::Warm => {
            (State::Sleeping, instance.state_since, policy.sleep_after_s, policy.min_warm_s)
        }
        _ => return None,
    };
    if after == 0 {
        return None;
    }
    let at = later(since, after).max(later(instance.state_since, least));
    let what = if to == State::Warm { "idle" } else { "warm" };
    Some(Next { to, at, why: format!("{what} for {after} s") })
}

fn too_old(pool: &Pool, instance: &Instance) -> Option<Next> {
    let policy = &pool.runtime_policy;
    instance.state.temperature()?;
    let to = State::Destroyed;
    if policy.max_jobs > 0 && instance.leases_served >= policy.max_jobs {
        let why = format!("it has served {} leases", instance.leases_served);
        return Some(Next { to, at: instance.state_since, why });
    }
    let at = later(instance.created_at, policy.max_age_s);
    (policy.max_age_s > 0).then(|| Next { to, at, why: format!("{} s old", policy.max_age_s) })
}

/// Returns what the policy does now with the instances of a pool. Those that are to be replaced go
/// one at a time, when nothing else is under way in the pool, so that it never falls to nothing.
pub fn act<'a>(
    pool: &Pool,
    instances: impl IntoIterator<Item = &'a Instance>,
    idle_since: impl Fn(InstanceId) -> Option<Timestamp>,
    now: Timestamp,
) -> Vec<Action> {
    let (mut actions, mut old, mut busy) = (Vec::new(), Vec::new(), false);
    for instance in instances {
        busy |= instance.is_busy();
        let Some(next) = next(pool, instance, idle_since(instance.id)) else { continue };
        if next.at > now {
            continue;
        }
        match next.to {
            State::Destroyed => old.push((next.at, instance.id)),
            to => actions.push(Action::Move { id: instance.id, to }),
        }
    }
    if let Some((_, id)) = old.into_iter().min().filter(|_| !busy) {
        actions.push(Action::Destroy { id });
    }
    actions
}

/// How much the host waits for memory: `/proc/pressure/memory` (proc(5), PSI), in percent of the
/// last ten seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Something waited.
    pub some: f64,
    /// Everything waited.
    pub full: f64,
}

impl Pressure {
    /// Reads the text of the file. A line that is missing or malformed counts as no pressure.
    pub fn parse(text: &str) -> Pressure {
        let of = |kind: &str| -> Option<f64> {
            let line = text.lines().find(|line| line.split(' ').next() == Some(kind))?;
            let value: f64 =
                line.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
            value.is_finite().then_some(value)
        };
        Pressure { some: of("some").unwrap_or(0.0), full: of("full").unwrap_or(0.0) }
    }

    /// Returns whether memory is to be given back before the kernel begins to kill.
    pub fn is_high(self) -> bool {
        self.some >= 10.0 || self.full >= 5.0
    }
}

/// How many processes of sleeping instances a node keeps at most: each takes about 30 MiB.
pub const LINGERING_MOST: usize = 32;

/// Returns until when the process of a sleeping instance is kept, by the policy of its pool.
pub fn lingers_until(policy: &RuntimePolicy, instance: &Instance) -> Timestamp {
    later(instance.state_since, policy.linger_s)
}

/// Returns the sleeping instances whose process ends now. Each candidate comes with the time until
/// which it may linger. Chosen are those whose time is over, all where memory is short, and the
/// longest asleep where there are more than [`LINGERING_MOST`].
pub fn overstayed<'a>(
    lingering: impl IntoIterator<Item = (&'a Instance, Timestamp)>,
    pressed: bool,
    now: Timestamp,
) -> Vec<InstanceId> {
    let over = |until: Timestamp| pressed || until <= now;
    let (mut gone, mut kept) = (Vec::new(), Vec::new());
    for (instance, until) in lingering.into_iter().filter(|(instance, _)| !instance.is_busy()) {
        match over(until) {
            true => gone.push(instance.id),
            false => kept.push((instance.state_since, instance.id)),
        }
    }
    kept.sort_unstable();
    let too_many = kept.len().saturating_sub(LINGERING_MOST);
    gone.extend(kept.into_iter().take(too_many).map(|(_, id)| id));
    gone
}

/// Returns the unleased warm instance that has been warm for the longest time, to be put to sleep
/// under memory pressure.
pub fn relieve<'a>(instances: impl IntoIterator<Item = &'a Instance>) -> Option<InstanceId> {
    instances
        .into_iter()
        .filter(|i| i.state == State::Warm && i.lease.is_none() && !i.is_busy())
        .min_by_key(|i| (i.state_since, i.id))
        .map(|i| i.id)
}

/// Returns the time that is `seconds` after `from`; a policy may name any number of seconds.
fn later(from: Timestamp, seconds: u64) -> Timestamp {
    from + Duration::from_secs(seconds)
}
