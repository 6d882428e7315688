//! The failures of pools, in memory only: for the back-off, and for people.

use crate::Error;
use crate::locks::locked;
use mvm_clock::Clock;
use mvm_model::PoolRef;
use mvm_model::plan::Failures;
use std::collections::BTreeMap;
use std::sync::Mutex as Lock;

/// The failures of one pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct PoolHealth {
    /// The count for the back-off.
    pub failures: Failures,
    /// The last failure.
    pub last_failure: Option<String>,
}

/// The health of all pools.
#[derive(Debug)]
pub(crate) struct Health {
    clock: Clock,
    pools: Lock<BTreeMap<PoolRef, PoolHealth>>,
}

impl Health {
    /// Makes the health of pools that have not failed.
    pub fn new(clock: Clock) -> Health {
        Health { clock, pools: Lock::default() }
    }

    /// Returns the failures of a pool; an unknown pool has none.
    pub fn of(&self, pool: &PoolRef) -> PoolHealth {
        locked(&self.pools).get(pool).cloned().unwrap_or_default()
    }

    /// Notes that an instance of the pool was brought up.
    pub fn succeeded(&self, pool: &PoolRef) {
        locked(&self.pools).remove(pool);
    }

    /// Notes that bringing up an instance of the pool failed.
    pub fn failed(&self, pool: &PoolRef, why: &Error) {
        tracing::warn!(pool = %pool, code = %why.code(), "{why}");
        let mut health = locked(&self.pools);
        let entry = health.entry(pool.clone()).or_default();
        entry.failures.count += 1;
        entry.failures.last = self.clock.now();
        entry.last_failure = Some(why.to_string());
    }
}
