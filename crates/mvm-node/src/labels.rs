//! The labels of metrics.

use mvm_model::PoolRef;

/// The label names and values that distinguish the series of a metric.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// Returns the labels of a pool.
pub(crate) fn of_pool(pool: &PoolRef) -> Labels {
    vec![("tenant", pool.tenant.to_string()), ("pool", pool.pool.to_string())]
}
