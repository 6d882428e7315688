//! Requests and responses about the desired state.

use mvm_model::desired::{DesiredState, Step};
use mvm_model::{AnyCode, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Request of `PUT /v1/desired`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyDesired {
    /// The document. Its paths are absolute.
    pub document: DesiredState,
    /// Whether to remove what the document does not name.
    #[serde(default)]
    pub prune: bool,
    /// Only return what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// The steps that a document needs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DesiredPlan {
    /// The steps, in the order in which they are taken.
    pub steps: Vec<Step>,
    /// Whether the plan was only asked for, and nothing was done.
    pub dry_run: bool,
}

/// Response of `GET /v1/desired/status`: the progress towards the document in force.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DesiredStatus {
    /// The file that the agent watches; absent where it watches none.
    pub file: Option<String>,
    /// Why the file's newest version is not in force; absent where it is.
    pub refused: Option<String>,
    /// Whether a document is in force.
    pub in_force: bool,
    /// The steps that remain.
    pub pending: Vec<Step>,
    /// The error of the last step that failed; absent where none did.
    pub last_failure: Option<String>,
    /// The code of that failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_code: Option<AnyCode>,
    /// When the failed step is tried again; ms since the Unix epoch.
    pub retry_at: Option<Timestamp>,
}
