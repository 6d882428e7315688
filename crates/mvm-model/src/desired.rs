//! The desired-state document, `schema_version` 1.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a node should hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DesiredState {
    /// Always 1.
    pub schema_version: u32,
}
