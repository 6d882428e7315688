//! The health of templates, as the starts of their clones show it.

use crate::labels::Labels;
use mvm_model::template::TemplateHealth;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::sync::{Arc, Mutex as Lock};

/// The suffix of the note that a template is to be renewed.
pub(super) const NOTE: &str = ".anew";
/// The file in a renewed template's directory that says why the template was renewed.
pub(crate) const RENEWED: &str = "renewal.json";

/// The health of templates, in memory only, and the metrics of renewals.
#[derive(Default)]
pub(super) struct Renewals {
    pub healths: Lock<HashMap<String, TemplateHealth>>,
    /// Held while a template's note is written or removed, so that the note and the template change
    /// together.
    pub turn: Arc<Lock<()>>,
    pub given_up: Family<Labels, Counter>,
    /// Instances that were booted because their pool's template was given up.
    pub booted: Family<Labels, Counter>,
}

impl Renewals {
    /// Registers the metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let what = "Templates that were given up and are made anew";
        registry.register("templates_given_up", what, self.given_up.clone());
        let what = "Instances that were booted for want of a template that was given up";
        registry.register("booted_without_template", what, self.booted.clone());
    }
}
