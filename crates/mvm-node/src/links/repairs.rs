//! The metrics of repairs.

use crate::labels::Labels;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// The counts of repairs.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    pub rules: Counter,
    pub links: Family<Labels, Counter>,
}

impl Repairs {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let what = "Times that the firewall rules were gone or changed by somebody, and put back";
        registry.register("walls_restored", what, self.rules.clone());
        let what =
            "Links, addresses and forwarding that somebody had taken away, and that were put back";
        registry.register("links_restored", what, self.links.clone());
    }
}
