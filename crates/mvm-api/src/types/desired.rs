//! Requests and responses about the desired state.

use mvm_model::desired::{DesiredState, Step};
use mvm_model::{AnyCode, Millis};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `PUT /v1/desired`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyDesired {
    /// The document; its paths are absolute.
    pub document: DesiredState,
    /// Remove what it does not name.
    #[serde(default)]
    pub prune: bool,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What is to be done for a document.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DesiredPlan {
    /// In this order.
    pub steps: Vec<Step>,
    /// It was only asked for.
    pub dry_run: bool,
}

/// `GET /v1/desired/status`: how far the document in force is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DesiredStatus {
    /// The file that the agent watches, if any.
    pub file: Option<String>,
    /// Why its newest version is not in force.
    pub refused: Option<String>,
    /// Whether a document is in force.
    pub in_force: bool,
    /// What is still to be done.
    pub pending: Vec<Step>,
    /// What failed last.
    pub last_failure: Option<String>,
    /// The code of that failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_code: Option<AnyCode>,
    /// When it is tried again.
    pub retry_at: Option<Millis>,
}
