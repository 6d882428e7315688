//! The document's types.

use crate::admission::Quotas;
use crate::cache::Cache;
use crate::cpu_model::CpuModel;
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

/// The desired state of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DesiredState {
    /// Always 1.
    #[schemars(extend("const" = 1))]
    pub schema_version: u32,
    /// The node that the document is meant for; an agent refuses another node's document.
    pub node_id: Name,
    /// The tenants, each with its pools.
    pub tenants: Vec<DesiredTenant>,
}

/// One tenant of the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DesiredTenant {
    /// The tenant's name, unique in the document.
    pub tenant_id: Name,
    /// The tenant's net id and subnet, unique in the document.
    pub network: TenantNetwork,
    /// The tenant's quotas. Quotas left out have their default values.
    #[serde(default)]
    pub quotas: Quotas,
    /// The tenant's pools.
    #[serde(default)]
    pub pools: Vec<DesiredPool>,
}

/// One pool of the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DesiredPool {
    /// The pool's name, unique in the tenant.
    pub pool_id: Name,
    /// The flake that the pool's image is built from; a relative path starts at the document's
    /// folder.
    #[schemars(length(min = 1, max = 4096))]
    pub flake_ref: String,
    /// The flake's attribute.
    #[schemars(length(min = 1, max = 255))]
    pub profile: String,
    /// Flake inputs to override, as in `nix build --override-input`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub override_inputs: BTreeMap<String, String>,
    /// Digest of the image to use, which the node must have; nothing is built then. Where absent,
    /// the flake is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub revision: Option<String>,
    /// The nodes from which to receive that image where this node does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_from: Option<ImageSource>,
    /// The vCPUs, memory and disks of an instance.
    pub instance_resources: Resources,
    /// Disks whose contents jobs pass on to later jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub caches: Vec<Cache>,
    /// What happens to an instance after a job.
    #[serde(default)]
    pub recycle: Recycle,
    /// The CPU model of the pool's machines: `host`, or a name that QEMU knows.
    #[serde(default, skip_serializing_if = "CpuModel::is_host")]
    pub cpu_model: CpuModel,
    /// A shell command that the template's guest runs before its snapshot is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub prewarm: Option<String>,
    /// What happens to instances that nobody uses.
    #[serde(default)]
    pub runtime_policy: RuntimePolicy,
    /// The outside addresses that instances may reach. By default all but those that are always
    /// closed.
    #[serde(default)]
    pub egress: Egress,
    /// How many unleased instances of each temperature to keep ready.
    #[serde(default)]
    pub desired_counts: Counts,
}

/// The nodes that have an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageSource {
    /// The expected digest of the image's bytes: `content` in `mvm image list -o json`.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub content: String,
    /// `HOST:PORT` of nodes that have the image.
    #[schemars(length(min = 1, max = 64))]
    pub nodes: Vec<String>,
}
