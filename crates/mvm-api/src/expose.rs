//! Pools behind a TCP port.

use mvm_model::expose::Limits;
use mvm_model::{InstanceRef, Name, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Request of `POST …/expose`: listens, or changes the limits of a front that listens already.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExposePool {
    /// The address to listen on; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The port on the guest's loopback.
    pub to: u16,
    /// The front's limits.
    #[serde(default)]
    pub limits: Limits,
}

/// Request of `POST …/unexpose`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnexposePool {
    /// The front's address; all fronts of the pool where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

/// A front as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExposeView {
    /// The tenant's name.
    pub tenant_id: Name,
    /// The pool's name.
    pub pool_id: Name,
    /// The address that the front listens on.
    pub listen: SocketAddr,
    /// The port on the guest's loopback.
    pub to: u16,
    /// The front's limits.
    pub limits: Limits,
    /// Why the front does not listen, where it does not; the agent tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Number of connections that are served.
    pub connections: u32,
    /// Number of connections that wait for an instance.
    pub waiting: u32,
    /// The instances that serve.
    pub serving: Vec<ServingView>,
    /// When the front was created; ms since the Unix epoch.
    pub created_at: Timestamp,
}

/// An instance that serves a front.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ServingView {
    /// The instance.
    pub instance: InstanceRef,
    /// Number of connections that the instance serves.
    pub connections: u32,
}
