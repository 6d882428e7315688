//! The document's types.

use crate::admission::Quotas;
use crate::cache::Cache;
use crate::egress::Egress;
use crate::name::Name;
use crate::network::TenantNetwork;
use crate::pool::{Counts, Recycle};
use crate::resources::Resources;
use crate::runtime_policy::RuntimePolicy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the document that this build reads and writes.
pub const SCHEMA_VERSION: u32 = 1;

/// What a node should hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DesiredState {
    /// Always 1.
    #[schemars(extend("const" = 1))]
    pub schema_version: u32,
    /// The node that it is meant for; an agent refuses another node's document.
    pub node_id: Name,
    /// The tenants, each with its pools.
    pub tenants: Vec<DesiredTenant>,
}

/// One tenant of the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DesiredTenant {
    /// Its name, unique in the document.
    pub tenant_id: Name,
    /// Its net id and subnet, unique in the document.
    pub network: TenantNetwork,
    /// What it may use; quotas left out have the specification's numbers.
    #[serde(default)]
    pub quotas: Quotas,
    /// Its pools.
    #[serde(default)]
    pub pools: Vec<DesiredPool>,
}

/// One pool of the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DesiredPool {
    /// Its name, unique in the tenant.
    pub pool_id: Name,
    /// The flake that its image is built from; a relative path starts at the document.
    #[schemars(length(min = 1, max = 4096))]
    pub flake_ref: String,
    /// The attribute of the flake.
    #[schemars(length(min = 1, max = 255))]
    pub profile: String,
    /// Inputs of the flake to be replaced, as in `nix build --override-input`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub override_inputs: BTreeMap<String, String>,
    /// Digest of the image to use, which this node has: nothing is built. Where there is none the
    /// flake is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub revision: Option<String>,
    /// Nodes to receive that image from where this one does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_from: Option<ImageSource>,
    /// The shape of its instances.
    pub instance_resources: Resources,
    /// Disks whose content jobs hand on to later jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub caches: Vec<Cache>,
    /// What becomes of an instance after a job.
    #[serde(default)]
    pub recycle: Recycle,
    /// A command that the template's guest runs before it is snapshotted, by its `sh -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub prewarm: Option<String>,
    /// What becomes of instances that nobody uses.
    #[serde(default)]
    pub runtime_policy: RuntimePolicy,
    /// What of the outside its instances may reach; everything but what is closed where nothing is said.
    #[serde(default)]
    pub egress: Egress,
    /// How many unleased instances of each temperature are kept ready.
    #[serde(default)]
    pub desired_counts: Counts,
}

/// Where an image can be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageSource {
    /// What it has to be: its `content`, as `mvm image list -o json` shows.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub content: String,
    /// `HOST:PORT` of nodes that have it.
    #[schemars(length(min = 1, max = 64))]
    pub nodes: Vec<String>,
}
