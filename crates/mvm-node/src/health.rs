//! The failures of pools, in memory only: for the back-off, and for people.

use crate::Error;
use crate::locks::locked;
use crate::now;
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
#[derive(Debug, Default)]
pub(crate) struct Health(Lock<BTreeMap<PoolRef, PoolHealth>>);

impl Health {
    /// Returns the failures of a pool; an unknown pool has none.
    pub fn of(&self, pool: &PoolRef) -> PoolHealth {
        locked(&self.0).get(pool).cloned().unwrap_or_default()
    }

    /// Notes that an instance of the pool was brought up.
    pub fn succeeded(&self, pool: &PoolRef) {
        locked(&self.0).remove(pool);
    }

    /// Notes that bringing up an instance of the pool failed.
    pub fn failed(&self, pool: &PoolRef, why: &Error) {
        tracing::warn!(pool = %pool, code = %why.code(), "{why}");
        let mut health = locked(&self.0);
        let entry = health.entry(pool.clone()).or_default();
        entry.failures.count += 1;
        entry.failures.last = now();
        entry.last_failure = Some(why.to_string());
    }
}
