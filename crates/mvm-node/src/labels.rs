//! Labels of metrics.

use mvm_model::PoolRef;

/// The names and values that tell one series of a metric from another.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// The labels of a pool.
pub(crate) fn of_pool(pool: &PoolRef) -> Labels {
    vec![("tenant", pool.tenant.to_string()), ("pool", pool.pool.to_string())]
}
