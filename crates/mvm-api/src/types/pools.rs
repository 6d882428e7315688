//! Requests and responses about pools: their settings, builds and scale.

use mvm_model::host::Shortfall;
use mvm_model::pool::RevisionEntry;
use mvm_model::runtime_policy::RuntimePolicy;
use mvm_model::template::Renewal;
use mvm_model::{Cache, CacheDisk, Counts, Egress, Millis, Name, Recycle, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `POST /v1/tenants/{tenant}/pools`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePool {
    /// Its name inside the tenant.
    pub name: Name,
    /// A flake reference; a path is absolute.
    pub flake_ref: String,
    /// The attribute.
    pub profile: String,
    /// The shape of its instances.
    pub resources: Resources,
    /// Disks whose content jobs hand on to later jobs.
    #[serde(default)]
    pub caches: Vec<Cache>,
    /// What becomes of an instance after a job.
    #[serde(default)]
    pub recycle: Recycle,
    /// A command that the template's guest runs before it is snapshotted, by its `sh -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prewarm: Option<String>,
    /// What becomes of instances that nobody uses.
    #[serde(default)]
    pub runtime_policy: RuntimePolicy,
    /// What of the outside its instances may reach; everything but what is closed where nothing is said.
    #[serde(default)]
    pub egress: Egress,
    /// Inputs of the flake to be replaced at every build.
    #[serde(default)]
    pub override_inputs: BTreeMap<String, String>,
    /// Digest (or its beginning) of a kernel; the default one where absent.
    #[serde(default)]
    pub kernel: Option<String>,
}

/// `PATCH /v1/tenants/{tenant}/pools/{pool}`: only what is given changes, for new instances.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct UpdatePool {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flake_ref: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_mib: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_disk_mib: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_disk_mib: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recycle: Option<Recycle>,
    /// These, and no others; those that are there keep what is in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caches: Option<Vec<Cache>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prewarm: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub override_inputs: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "PolicyPatch::is_empty")]
    pub runtime_policy: PolicyPatch,
    /// In place of the setting before, as a whole; in force for running instances at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
}

/// Changes of a pool's policy: only what is given changes. Seconds; 0 is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct PolicyPatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_after_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleep_after_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_running_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_warm_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_jobs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linger_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_timeout_s: Option<u64>,
}

impl PolicyPatch {
    /// Returns whether the patch changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == PolicyPatch::default()
    }

    /// Returns the policy with the given fields replaced.
    pub fn apply(&self, to: RuntimePolicy) -> RuntimePolicy {
        RuntimePolicy {
            warm_after_s: self.warm_after_s.unwrap_or(to.warm_after_s),
            sleep_after_s: self.sleep_after_s.unwrap_or(to.sleep_after_s),
            min_running_s: self.min_running_s.unwrap_or(to.min_running_s),
            min_warm_s: self.min_warm_s.unwrap_or(to.min_warm_s),
            max_age_s: self.max_age_s.unwrap_or(to.max_age_s),
            max_jobs: self.max_jobs.unwrap_or(to.max_jobs),
            linger_s: self.linger_s.unwrap_or(to.linger_s),
            guest_timeout_s: self.guest_timeout_s.unwrap_or(to.guest_timeout_s),
        }
    }
}

/// Makes the patch that turns any policy into this one.
impl From<RuntimePolicy> for PolicyPatch {
    fn from(policy: RuntimePolicy) -> Self {
        PolicyPatch {
            warm_after_s: Some(policy.warm_after_s),
            sleep_after_s: Some(policy.sleep_after_s),
            min_running_s: Some(policy.min_running_s),
            min_warm_s: Some(policy.min_warm_s),
            max_age_s: Some(policy.max_age_s),
            max_jobs: Some(policy.max_jobs),
            linger_s: Some(policy.linger_s),
            guest_timeout_s: Some(policy.guest_timeout_s),
        }
    }
}

/// A pool as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PoolView {
    /// Its tenant.
    pub tenant_id: Name,
    /// Its name inside the tenant.
    pub pool_id: Name,
    /// The flake.
    pub flake_ref: String,
    /// The attribute.
    pub profile: String,
    /// Flake inputs that every build overrides.
    pub override_inputs: BTreeMap<String, String>,
    /// The shape of its instances.
    pub instance_resources: Resources,
    /// Its caches, and which content they have.
    pub caches: Vec<CacheDisk>,
    /// What it keeps ready; null until it is scaled.
    pub desired_counts: Option<Counts>,
    /// Since when its image is being built; absent where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub building_since: Option<Millis>,
    /// Unleased instances by temperature.
    pub ready_counts: Counts,
    /// Leased instances.
    pub leased: u32,
    /// Instances that failed.
    pub failed: u32,
    /// All instances.
    pub instances: u32,
    /// What becomes of an instance after a job.
    pub recycle: Recycle,
    /// What the template's guest runs before it is snapshotted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prewarm: Option<String>,
    /// What becomes of instances that nobody uses.
    pub runtime_policy: RuntimePolicy,
    /// What of the outside its instances may reach.
    #[serde(default)]
    pub egress: Egress,
    /// Whether new instances are clones: the template of this revision and shape is there.
    pub template_ready: bool,
    /// Why the template was given up last and is made anew, if it ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_renewal: Option<Renewal>,
    /// The revision in use.
    pub revision: Option<RevisionEntry>,
    /// Whether flake, profile or inputs have changed since it was built.
    pub stale: bool,
    /// Why the pool is not converging, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// What it lacks on this host, although it works. A coordinator tells of none: each node does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortfalls: Vec<Shortfall>,
    /// When it was made.
    pub created_at: Millis,
}

/// `POST …/build` (server-sent events: `progress`, then `result` or `problem`).
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildPool {
    /// Flake inputs to override, remembered by the pool once the build has succeeded. Empty: those remembered.
    #[serde(default)]
    pub override_inputs: BTreeMap<String, String>,
}

/// What a build came to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BuildResult {
    /// The revision, now current.
    pub revision: RevisionEntry,
    /// Size of the root file system in bytes.
    pub size_bytes: u64,
    /// How long it took in ms.
    pub took_ms: u64,
    /// Why there is no template yet, if so: instances are booted meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_failure: Option<String>,
}

/// One piece of progress of something that takes long.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProgressEvent {
    /// `stage`: a new stage began; `line`: output of the tool at work.
    pub kind: String,
    /// What it says.
    pub text: String,
}

/// `POST …/scale`: only what is given changes.
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
    /// Number, digest and time.
    #[serde(flatten)]
    pub entry: RevisionEntry,
    /// Whether new instances boot from it.
    pub current: bool,
    /// Whether its image is still on disk.
    pub present: bool,
    /// Instances that boot from it.
    pub instances: u32,
}

/// `POST …/rollback`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The revision's number; the one before the current where absent.
    #[serde(default)]
    pub to: Option<u32>,
}
