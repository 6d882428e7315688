//! Query parameters.

use crate::position::Position;
use mvm_model::Name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `GET /v1/instances`: which of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceFilter {
    /// Only those of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
}

/// `GET /v1/leases`: which of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseFilter {
    /// Only those of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
}

/// `GET /v1/events` and `GET /v1/events/stream`: which of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventFilter {
    /// Only those after this one.
    #[serde(default)]
    pub since: Position,
    /// Only those of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
}

/// What grows while it is read.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Follow {
    /// Go on with what is added.
    #[serde(default)]
    pub follow: bool,
}

/// `GET /v1/jobs/{id}/log`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogOptions {
    /// Go on with what is added.
    #[serde(default)]
    pub follow: bool,
    /// How many bytes of it are there already: what follows them is sent.
    #[serde(default)]
    pub from: u64,
}

/// `POST /v1/jobs/{id}/attach`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachOptions {
    /// Of a job that is taken up again: how many bytes of its output, as frames, are there already.
    #[serde(default)]
    pub from: u64,
}

/// `POST …/instances/{id}/stream`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Length of the lease that it takes, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_s: Option<u64>,
}

/// `POST …/instances/{id}/sleep`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SleepOptions {
    /// False: its process ends at once, whatever the pool's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linger: Option<bool>,
}

/// `GET /v1/fleet/status`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StatusOptions {
    /// True: as the coordinator that leads sees it, whichever is asked.
    #[serde(default)]
    pub leader: bool,
}

/// `GET /v1/jobs/{id}/wait`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WaitOptions {
    /// The longest time to wait, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
}

/// `GET /v1/images/{digest}/parts/{part}`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartRange {
    /// Where to begin, in bytes.
    #[serde(default)]
    pub offset: u64,
}
