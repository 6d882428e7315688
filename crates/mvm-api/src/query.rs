//! Query parameters.

use crate::position::Position;
use mvm_model::Name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Query of `GET /v1/instances`: which instances to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceFilter {
    /// Only instances of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
}

/// Query of `GET /v1/leases`: which leases to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseFilter {
    /// Only leases of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
}

/// Query of `GET /v1/events` and `GET /v1/events/stream`: which events to send.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventFilter {
    /// Only events after this one.
    #[serde(default)]
    pub since: Position,
    /// Only events of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
}

/// Query of responses that can grow while they are read.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Follow {
    /// Whether the response goes on with what is added.
    #[serde(default)]
    pub follow: bool,
}

/// Query of `GET /v1/jobs/{id}/log`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogOptions {
    /// Whether the response goes on with what is added.
    #[serde(default)]
    pub follow: bool,
    /// How many bytes of the log the client has; the response begins after them.
    #[serde(default)]
    pub from: u64,
}

/// Query of `POST /v1/jobs/{id}/attach`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachOptions {
    /// How many bytes of the job's output, as frames, the client has, where it attaches again.
    #[serde(default)]
    pub from: u64,
}

/// Query of `POST …/instances/{id}/stream`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Length of the lease that the stream takes, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_s: Option<u64>,
}

/// Query of `POST …/instances/{id}/sleep`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SleepOptions {
    /// False: the hypervisor's process ends at once, whatever the pool's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linger: Option<bool>,
}

/// Query of `GET /v1/fleet/status`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StatusOptions {
    /// True: any coordinator returns the status as the leader sees it.
    #[serde(default)]
    pub leader: bool,
}

/// Query of `GET /v1/jobs/{id}/wait`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WaitOptions {
    /// The longest time to wait, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
}

/// Query of `GET /v1/images/{digest}/parts/{part}`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartRange {
    /// The first byte to send.
    #[serde(default)]
    pub offset: u64,
}
