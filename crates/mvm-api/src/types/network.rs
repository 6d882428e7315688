//! The report on the node's network.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Response of `GET /v1/network`: the kernel's network compared with the records.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NetworkReport {
    /// Number of bridges that the records call for: one per tenant.
    pub bridges: u32,
    /// Number of taps that the records call for: those of machines that are up.
    pub taps: u32,
    /// The differences; empty where the kernel agrees with the records.
    pub differences: Vec<NetworkDifference>,
}

/// A part of the kernel's network that differs from the records.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NetworkDifference {
    /// The kind of the part.
    pub kind: DifferenceKind,
    /// The name of the link or of the firewall table.
    pub what: String,
    /// How it differs from the records.
    pub detail: String,
}

/// A kind of difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// A link that is missing, down, attached to another bridge, or superfluous.
    Link,
    /// A bridge's addresses.
    Address,
    /// Whether the kernel forwards packets (net.ipv4.ip_forward).
    Forwarding,
    /// The firewall's rules.
    Rules,
}
