//! The report on the node's network.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `GET /v1/network`: what the kernel has, against what it should have.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NetworkReport {
    /// Bridges that should be there, one a tenant.
    pub bridges: u32,
    /// Taps that should be there: of machines that live.
    pub taps: u32,
    /// What is not as it should be; empty where all is.
    pub differences: Vec<NetworkDifference>,
}

/// Something in the kernel that is not as it should be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NetworkDifference {
    /// What kind of thing.
    pub kind: DifferenceKind,
    /// Its name: a link's, or the firewall table's.
    pub what: String,
    /// How it differs.
    pub detail: String,
}

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// A link that is missing, down, elsewhere or too many.
    Link,
    /// A bridge's addresses.
    Address,
    /// Whether the kernel passes packets on (net.ipv4.ip_forward).
    Forwarding,
    /// The firewall's rules.
    Rules,
}
