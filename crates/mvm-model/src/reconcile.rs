//! One look of the reconciler at a pool: what it does next there.

use crate::action::Action;
use crate::id::InstanceId;
use crate::instance::Instance;
use crate::plan::{Failures, plan};
use crate::policy;
use crate::pool::Pool;
use crate::state::State;
use crate::timestamp::Timestamp;

/// Returns what the reconciler does next in `pool`, whose instances these are.
///
/// Counts come before policy: the policy has its turn only when the counts are met. `slots` bounds the steps that
/// build up. `idle_since` says since when an instance has been idle, if it is.
pub fn next(
    pool: &Pool,
    instances: &[&Instance],
    failures: Failures,
    slots: usize,
    idle_since: impl Fn(InstanceId) -> Option<Timestamp>,
    now: Timestamp,
) -> Vec<Action> {
    let actions = plan(pool, instances, failures, slots, now);
    if actions.is_empty() {
        return policy::act(pool, instances.iter().copied(), idle_since, now);
    }
    actions
}

/// Returns the spares of `pool` that have failed and are replaced: nobody has used them, and nothing is under way
/// with them. In a pool that was never scaled a failed instance is left for a person to look at.
pub fn failed_spares<'a>(
    pool: &Pool,
    instances: impl IntoIterator<Item = &'a Instance>,
) -> Vec<&'a Instance> {
    let scaled = pool.desired.is_some();
    let fails = |i: &&Instance| scaled && i.state == State::Failed && i.is_clean() && !i.is_busy();
    instances.into_iter().filter(fails).collect()
}
