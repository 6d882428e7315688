//! What had to be put back, as the metrics tell it.

use crate::labels::Labels;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// What somebody had taken away, and was put back.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    pub rules: Counter,
    pub links: Family<Labels, Counter>,
}

impl Repairs {
    /// Registers what is counted.
    pub fn register(&self, registry: &mut Registry) {
        let what = "Times that the firewall rules were gone or changed by somebody, and put back";
        registry.register("walls_restored", what, self.rules.clone());
        let what =
            "Links, addresses and forwarding that somebody had taken away, and that were put back";
        registry.register("links_restored", what, self.links.clone());
    }
}
