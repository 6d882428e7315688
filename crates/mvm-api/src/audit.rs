//! The audit logs on the wire. The records themselves are lines of `mvm_model::audit`.

use mvm_model::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One audit log, as `GET /v1/audit` lists it. Its text is at `GET /v1/audit/{log}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditLogView {
    /// The log's name: the tenant's name; `_node` for what concerns no tenant; `TENANT@TIME` after
    /// the tenant was destroyed.
    pub log: String,
    /// When the tenant was destroyed; absent while it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Timestamp>,
    /// Size of the log in bytes.
    pub bytes: u64,
}

/// Request of `POST /v1/audit`: removes old records. The remaining records still verify.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneAudit {
    /// Records written before this time are removed; ms since the Unix epoch.
    pub before: Timestamp,
    /// The log to prune, as `GET /v1/audit` names it; all logs where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// The records that were removed from the beginning of one log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrunedView {
    /// The log, as `GET /v1/audit` names it.
    pub log: String,
    /// How many records were removed.
    pub records: u64,
    /// Size of the removed records in bytes.
    pub bytes: u64,
    /// The number of the last removed record; absent where none was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    /// The digest of the last removed record; absent where none was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
}

/// The logs that `POST /v1/audit` has examined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PruneResult {
    /// One entry per log, also where no record was old enough.
    pub logs: Vec<PrunedView>,
}
