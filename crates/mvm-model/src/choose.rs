//! Chooses the instance for a claim.

use crate::digest::Digest;
use crate::instance::Instance;
use crate::pool::Recycle;
use crate::state::State;

/// Returns the instance of a pool that a new claim should get, the readiest first: running, then
/// warm, then sleeping, then stopped or created; `None` if there is none. Leased, failed and moving
/// instances are never chosen. In a pool that recycles by `reset`, an instance that has been used
/// is never chosen; in one that recycles by `sleep`, a used one is preferred for the caches in its
/// memory. Of sleeping instances the last to fall asleep comes first: its process may still exist,
/// and its memory may be in the host's.
pub fn choose<'a>(
    recycle: Recycle,
    revision: Option<Digest>,
    instances: impl IntoIterator<Item = &'a Instance>,
) -> Option<&'a Instance> {
    instances
        .into_iter()
        .filter(|instance| instance.lease.is_none() && !instance.is_busy())
        .filter(|instance| recycle != Recycle::Reset || instance.is_clean())
        .filter(|instance| Some(instance.revision) == revision)
        .filter_map(|instance| readiness(instance.state).map(|rank| (rank, instance)))
        .min_by_key(|(rank, instance)| {
            let stale_cache = instance.leases_served == 0 && recycle != Recycle::Reset;
            let order = match instance.state {
                State::Sleeping => u64::MAX - instance.state_since.as_millis(),
                _ => instance.state_since.as_millis(),
            };
            (*rank, stale_cache, order, instance.id)
        })
        .map(|(_, instance)| instance)
}

fn readiness(state: State) -> Option<u8> {
    match state {
        // A running spare is ready at once and a warm one almost, both before any disk is read.
        State::Running => Some(0),
        State::Warm => Some(1),
        State::Sleeping => Some(2),
        State::Stopped => Some(3),
        State::Created => Some(4),
        State::Failed | State::Destroyed => None,
    }
}
