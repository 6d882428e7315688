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
