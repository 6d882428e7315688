//! The desired-state document, `schema_version` 1: what a node should hold.
//!
//! A document is accepted whole or not at all: [`DesiredState::parse`] refuses it at its first
//! fault and returns the fault's JSON path. The JSON Schema with which users check their documents
//! is generated from these types, in `schema/desired-state.v1.json`.

pub(crate) mod check;
mod diff;
mod source;

pub use check::source;
pub use diff::{Step, diff};
pub(crate) use source::settled_all;
pub use source::{is_path, needs_a_person, rebase, settled};

use crate::admission::Quotas;
use crate::cache::Cache;
use crate::egress::Egress;
use crate::error::Fault;
use crate::name::Name;
use crate::network::TenantNetwork;
use crate::pool::{Counts, Recycle};
use crate::resources::Resources;
use crate::runtime_policy::RuntimePolicy;
use mvm_code::Code;
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

impl DesiredState {
    /// Reads and checks a document. A fault names its JSON path.
    pub fn parse(text: &[u8]) -> Result<Self, Fault> {
        let state: DesiredState = read(text)?;
        state.validate()?;
        Ok(state)
    }

    /// Checks what types cannot express: ranges, duplicate names, overlapping networks, counts
    /// above quotas or above what the subnet holds.
    pub fn validate(&self) -> Result<(), Fault> {
        check::version(self.schema_version)?;
        check::tenants(&self.tenants, check::Scope::Node)
    }

    /// Refuses pools of which the quotas admit not a single machine. This is not part of
    /// [`Self::validate`]: the document that a fleet gives a node has the node's part of the
    /// quotas, which may be less than a machine needs.
    pub fn admit_machines(&self) -> Result<(), Fault> {
        check::admit_machines(&self.tenants)
    }

    /// Returns the JSON Schema of the document.
    pub fn json_schema() -> serde_json::Value {
        let mut schema = schemars::schema_for!(DesiredState);
        schema.insert("title".into(), "The desired state of an mvm node".into());
        schema.to_value()
    }
}

/// Reads a document of this version from text; a fault names its JSON path.
pub(crate) fn read<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, Fault> {
    let value: serde_json::Value = serde_json::from_slice(text)
        .map_err(|e| Fault::new(Code::InvalidDocument, format!("this is not JSON: {e}")))?;
    let version = value.get("schema_version");
    if let Some(version) = version.filter(|v| **v != SCHEMA_VERSION) {
        let message = format!("schema_version is {version}");
        return Err(Fault::new(Code::UnsupportedVersion, message)
            .at("$.schema_version")
            .hint(format!("this mvm reads version {SCHEMA_VERSION}")));
    }
    // Read from the text again: only there can duplicate fields be noticed.
    let mut reader = serde_json::Deserializer::from_slice(text);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = path_of(error.path());
        let mut message = error.into_inner().to_string();
        if let Some(place) = message.rfind(" at line ") {
            message.truncate(place);
        }
        Fault::new(Code::InvalidDocument, message).at(path)
    })
}

/// Formats `tenants[0].quotas` as `$.tenants[0].quotas`.
fn path_of(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter().fold("$".to_owned(), |whole, segment| match segment {
        Segment::Seq { index } => format!("{whole}[{index}]"),
        Segment::Map { key } => format!("{whole}.{key}"),
        Segment::Enum { variant } => format!("{whole}.{variant}"),
        Segment::Unknown => whole,
    })
}
