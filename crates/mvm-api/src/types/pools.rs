//! Requests and responses about pools: their settings, builds and scale.

use mvm_model::host::Shortfall;
use mvm_model::pool::RevisionEntry;
pub use mvm_model::pool_patch::{PolicyPatch, UpdatePool};
use mvm_model::runtime_policy::RuntimePolicy;
use mvm_model::template::Renewal;
use mvm_model::{
    Accelerator, Cache, CacheDisk, Counts, CpuModel, Egress, Name, Recycle, Resources, Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Request of `POST /v1/tenants/{tenant}/pools`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePool {
    /// The pool's name inside the tenant.
    pub name: Name,
    /// The flake's reference; a path is absolute.
    pub flake_ref: String,
    /// The flake's attribute.
    pub profile: String,
    /// The vCPUs, memory and disk of an instance.
    pub resources: Resources,
    /// Disks whose contents jobs pass on to later jobs.
    #[serde(default)]
    pub caches: Vec<Cache>,
    /// What happens to an instance after a job.
    #[serde(default)]
    pub recycle: Recycle,
    /// The CPU model of the pool's machines: `host`, or a name that QEMU knows.
    #[serde(default)]
    pub cpu_model: CpuModel,
    /// A shell command that the template's guest runs before its snapshot is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prewarm: Option<String>,
    /// What happens to instances that nobody uses.
    #[serde(default)]
    pub runtime_policy: RuntimePolicy,
    /// The outside addresses that instances may reach. By default all but those that are always
    /// closed.
    #[serde(default)]
    pub egress: Egress,
    /// Flake inputs that every build overrides.
    #[serde(default)]
    pub override_inputs: BTreeMap<String, String>,
    /// Digest (or its beginning) of a kernel; the default kernel where absent.
    #[serde(default)]
    pub kernel: Option<String>,
}

/// A pool as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PoolView {
    /// The tenant's name.
    pub tenant_id: Name,
    /// The pool's name inside the tenant.
    pub pool_id: Name,
    /// The flake's reference.
    pub flake_ref: String,
    /// The flake's attribute.
    pub profile: String,
    /// Flake inputs that every build overrides.
    pub override_inputs: BTreeMap<String, String>,
    /// The vCPUs, memory and disk of an instance.
    pub instance_resources: Resources,
    /// The pool's caches, and the version of each cache's contents.
    pub caches: Vec<CacheDisk>,
    /// The instances to keep ready; null until the pool is scaled.
    pub desired_counts: Option<Counts>,
    /// Since when the pool's image is being built, ms since the Unix epoch; absent where no build
    /// runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub building_since: Option<Timestamp>,
    /// Number of unleased instances by temperature.
    pub ready_counts: Counts,
    /// Number of leased instances.
    pub leased: u32,
    /// Number of failed instances.
    pub failed: u32,
    /// Number of all instances.
    pub instances: u32,
    /// What happens to an instance after a job.
    pub recycle: Recycle,
    /// The CPU model of the pool's machines: `host`, or a name that QEMU knows.
    #[serde(default)]
    pub cpu_model: CpuModel,
    /// A shell command that the template's guest runs before its snapshot is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prewarm: Option<String>,
    /// What happens to instances that nobody uses.
    pub runtime_policy: RuntimePolicy,
    /// The outside addresses that instances may reach.
    #[serde(default)]
    pub egress: Egress,
    /// Whether new instances are clones, because the template of this revision and these resources
    /// exists.
    pub template_ready: bool,
    /// What executes the instructions of new instances' machines; absent where they are simulated,
    /// and where a coordinator shows the pool, whose nodes may differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Why the template was last discarded to be made again; absent where it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_renewal: Option<Renewal>,
    /// The revision in use; absent until the first build.
    pub revision: Option<RevisionEntry>,
    /// Whether the flake, attribute or inputs have changed since the revision was built.
    pub stale: bool,
    /// Why the pool does not converge; absent where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// What the host lacks for the pool's settings, although the pool works. A coordinator reports
    /// none; each node does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortfalls: Vec<Shortfall>,
    /// When the pool was created; ms since the Unix epoch.
    pub created_at: Timestamp,
}

/// Request of `POST …/build` (server-sent events: `progress`, then `result` or `problem`).
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildPool {
    /// Flake inputs to override. The pool keeps them once the build has succeeded. Empty: the
    /// inputs that the pool has kept.
    #[serde(default)]
    pub override_inputs: BTreeMap<String, String>,
}

/// The result of a build.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BuildResult {
    /// The revision, which is now current.
    pub revision: RevisionEntry,
    /// Size of the root file system in bytes.
    pub size_bytes: u64,
    /// How long the build took in ms.
    pub took_ms: u64,
    /// Why there is no template yet; absent where there is one. Without a template, instances are
    /// booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_failure: Option<String>,
}

/// Progress of an operation that takes long.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProgressEvent {
    /// `stage`: a new stage began; `line`: output of the tool at work.
    pub kind: String,
    /// The stage's name, or the line.
    pub text: String,
}

/// Request of `POST …/scale`. Absent counts stay as they are.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ScalePool {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleeping: Option<u32>,
}

/// Makes a request for exactly these counts.
impl From<Counts> for ScalePool {
    fn from(counts: Counts) -> Self {
        ScalePool {
            running: Some(counts.running),
            warm: Some(counts.warm),
            sleeping: Some(counts.sleeping),
        }
    }
}

/// One revision of a pool.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RevisionView {
    /// The revision's number, digest and time.
    #[serde(flatten)]
    pub entry: RevisionEntry,
    /// Whether new instances boot from the revision.
    pub current: bool,
    /// Whether the revision's image is still on disk.
    pub present: bool,
    /// Number of instances that boot from the revision.
    pub instances: u32,
}

/// Request of `POST …/rollback`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The revision's number; the one before the current where absent.
    #[serde(default)]
    pub to: Option<u32>,
}
