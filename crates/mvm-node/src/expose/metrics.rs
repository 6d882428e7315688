//! The metrics of fronts.

use crate::labels::{Labels, of_pool};
use mvm_model::PoolRef;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

/// Upper bounds of the histogram, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0];

/// The metrics. Clones share the counters.
#[derive(Clone)]
pub struct Metrics {
    wakes: Family<Labels, Counter>,
    connections: Family<Labels, Gauge>,
    first_byte: Family<Labels, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            wakes: Family::default(),
            connections: Family::default(),
            first_byte: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
        }
    }
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let what = "Instances woken for connections, by outcome";
        registry.register("expose_wakes", what, self.wakes.clone());
        let what = "Open connections through fronts";
        registry.register("expose_connections", what, self.connections.clone());
        let what = "Time from a connection to the first byte that is passed";
        registry.register("expose_first_byte_seconds", what, self.first_byte.clone());
    }

    /// Counts an instance that was woken, or could not be.
    pub fn count_wake(&self, pool: &PoolRef, worked: bool) {
        let mut labels = of_pool(pool);
        labels.push(("outcome", if worked { "ok" } else { "failed" }.to_owned()));
        self.wakes.get_or_create(&labels).inc();
    }

    /// Counts an open connection until the guard is dropped.
    pub fn open(&self, pool: &PoolRef) -> Open {
        let gauge = self.connections.get_or_create(&of_pool(pool)).clone();
        gauge.inc();
        Open(gauge)
    }

    /// Observes the time from a connection's arrival to its first byte.
    pub fn first_byte(&self, pool: &PoolRef, took: Duration) {
        self.first_byte.get_or_create(&of_pool(pool)).observe(took.as_secs_f64());
    }
}

/// An open connection.
pub struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
