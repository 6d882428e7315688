//! The metrics of the agent's own loops.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of the agent's own loops.
#[derive(Debug, Default)]
pub(crate) struct Passes {
    pub(crate) made: Counter,
    pub(crate) pressed: Gauge,
    pub(crate) sockets_restored: Counter,
}

impl Passes {
    /// Registers the metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let what = "Passes of the reconcile loop since the agent started";
        registry.register("reconcile_passes", what, self.made.clone());
        let what = "Whether memory is short: warm instances are put to sleep, none is brought up";
        registry.register("memory_pressed", what, self.pressed.clone());
        let what = "Times that the agent's socket was removed by somebody, and made anew";
        registry.register("sockets_restored", what, self.sockets_restored.clone());
    }
}
