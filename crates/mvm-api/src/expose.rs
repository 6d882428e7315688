//! Pools behind a TCP port.

use mvm_model::expose::Limits;
use mvm_model::{InstanceRef, Millis, Name};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// `POST …/expose`: listens, or changes the limits of a front that does.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExposePool {
    /// Where to listen; port 0 is a free one.
    pub listen: SocketAddr,
    /// The port of the guest's loopback.
    pub to: u16,
    /// What is chosen.
    #[serde(default)]
    pub limits: Limits,
}

/// `POST …/unexpose`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnexposePool {
    /// Which front; all of the pool's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

/// A front as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExposeView {
    /// Its tenant.
    pub tenant_id: Name,
    /// Its pool.
    pub pool_id: Name,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The port of the guest's loopback.
    pub to: u16,
    /// What was chosen.
    pub limits: Limits,
    /// Why it does not listen, if it does not; it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Connections that are served.
    pub connections: u32,
    /// Connections that wait for an instance.
    pub waiting: u32,
    /// Instances that serve.
    pub serving: Vec<ServingView>,
    /// When it was made.
    pub created_at: Millis,
}

/// An instance that serves a front.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ServingView {
    /// Which one.
    pub instance: InstanceRef,
    /// How many connections it has.
    pub connections: u32,
}
