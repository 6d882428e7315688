//! When a template is given up: it cannot be loaded, or its clones come up dead.

use crate::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A template is given up after this many clones in a row whose guests never answered.
pub const MOST_SILENT: u32 = 2;

/// What became of a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloneEnd {
    /// Its guest answered.
    Answered,
    /// Its guest never answered, or its machine died at once.
    Silent,
    /// The template could not be loaded.
    Unusable,
    /// Something else kept it from coming up, such as a full disk.
    Unrelated,
}

/// What is known of a template by its clones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TemplateHealth {
    /// When it was made: of two templates with one name each is judged by its own clones.
    made_at: Timestamp,
    silent: u32,
}

impl TemplateHealth {
    /// Takes a clone of the template that was made at `made_at` into account. Returns the health
    /// after it, and whether the template is to be given up.
    pub fn after(self, made_at: Timestamp, end: CloneEnd) -> (TemplateHealth, bool) {
        let before = if made_at == self.made_at { self.silent } else { 0 };
        let silent = match end {
            CloneEnd::Answered => 0,
            CloneEnd::Silent => before + 1,
            CloneEnd::Unusable | CloneEnd::Unrelated => before,
        };
        let given_up = end == CloneEnd::Unusable || silent >= MOST_SILENT;
        (TemplateHealth { made_at, silent }, given_up)
    }
}

/// Why and when a template was discarded, to be made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Renewal {
    /// When the template was discarded; ms since the Unix epoch.
    pub at: Timestamp,
    /// When the discarded template had been made; ms since the Unix epoch.
    pub made_at: Timestamp,
    /// Why the template was discarded, for a person.
    pub reason: String,
    /// Whether the new template exists. Until then, instances are booted.
    pub done: bool,
}
