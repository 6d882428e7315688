//! What is known of templates by their clones.

use crate::labels::Labels;
use mvm_model::template::Standing;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::sync::Mutex as Lock;

/// What ends the name of the note that a template is to be made anew.
pub(super) const NOTE: &str = ".anew";
/// The note of a template that was made anew, in its directory.
pub(crate) const RENEWED: &str = "renewal.json";

/// What is known of templates by their clones, in memory only.
#[derive(Default)]
pub(super) struct Renewals {
    pub standings: Lock<HashMap<String, Standing>>,
    pub given_up: Family<Labels, Counter>,
    /// Instances that were booted although their pool has a template that ought to be there.
    pub booted: Family<Labels, Counter>,
}

impl Renewals {
    /// Registers what is counted.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let what = "Templates that were given up and are made anew";
        registry.register("templates_given_up", what, self.given_up.clone());
        let what = "Instances that were booted for want of a template that was given up";
        registry.register("booted_without_template", what, self.booted.clone());
    }
}
