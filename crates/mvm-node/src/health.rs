//! What the agent remembers of pools' failures, in memory only: for the back-off, and for people.

use crate::locks::locked;
use crate::now;
use mvm_api::Problem;
use mvm_model::PoolRef;
use mvm_model::plan::Failures;
use std::collections::BTreeMap;
use std::sync::Mutex as Lock;

/// What is remembered of one pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct PoolHealth {
    /// For the back-off.
    pub failures: Failures,
    /// What failed last.
    pub last_failure: Option<String>,
}

/// The health of all pools.
#[derive(Debug, Default)]
pub(crate) struct Health(Lock<BTreeMap<PoolRef, PoolHealth>>);

impl Health {
    /// What is remembered of a pool; nothing is held against one that is not known.
    pub fn of(&self, pool: &PoolRef) -> PoolHealth {
        locked(&self.0).get(pool).cloned().unwrap_or_default()
    }

    /// Bringing up an instance of the pool worked.
    pub fn succeeded(&self, pool: &PoolRef) {
        locked(&self.0).remove(pool);
    }

    /// Bringing up an instance of the pool failed.
    pub fn failed(&self, pool: &PoolRef, why: &Problem) {
        tracing::warn!(pool = %pool, code = %why.code, "{why}");
        let mut health = locked(&self.0);
        let entry = health.entry(pool.clone()).or_default();
        entry.failures.count += 1;
        entry.failures.last = now();
        entry.last_failure = Some(why.to_string());
    }
}
