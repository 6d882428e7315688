//! The audit logs on the wire. The records themselves are lines of `mvm_model::audit`.

use mvm_model::Millis;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One of `GET /v1/audit`; its text is at `GET /v1/audit/{log}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditLogView {
    /// The tenant; `_node` for what concerns none; `tenant@time` where the tenant is gone.
    pub log: String,
    /// When the tenant was destroyed, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Millis>,
    /// Size in bytes.
    pub bytes: u64,
}

/// `POST /v1/audit`: removes old records; what is left still verifies.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneAudit {
    /// Records that were written before go; ms since the Unix epoch.
    pub before: Millis,
    /// Of this log alone, as `GET /v1/audit` names it; of all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// What was removed from the beginning of one log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrunedView {
    /// The log, as `GET /v1/audit` names it.
    pub log: String,
    /// How many records were removed.
    pub records: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// The number of the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    /// The digest of the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
}

/// The logs that `POST /v1/audit` has looked through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PruneResult {
    /// One for each log, also where nothing was old enough.
    pub logs: Vec<PrunedView>,
}
