//! Requests and replies. Memory and disks are MiB, times are milliseconds since the Unix epoch,
//! durations say their unit in their name.

pub use crate::identity::wire::*;
use mvm_model::desired::{DesiredState, Step};
use mvm_model::network::TenantNetwork;
use mvm_model::policy::{Next, RuntimePolicy};
use mvm_model::pool::RevisionEntry;
use mvm_model::{
    Cache, CacheDisk, Counts, InstanceRef, Lease, Millis, Name, PoolRef, Quotas, Recycle,
    Resources, State, Usage,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// An empty object: done, and nothing to say.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// `GET /v1/agent`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentInfo {
    /// Version of the agent's binary.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its state directory.
    pub root: String,
    /// Four hexadecimal digits in the names of this root's links and firewall tables.
    pub root_id: String,
    /// The driver: `qemu`.
    pub hypervisor: String,
    /// The hypervisor's version.
    pub hypervisor_version: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why that accelerator.
    pub accelerator_reason: String,
    /// Whether the machines are simulated.
    pub simulated: bool,
    /// The network namespace that everything is in, if one was named.
    pub netns: Option<String>,
    /// When it started.
    pub started_at: Millis,
    /// Instances that it knows.
    pub instances: usize,
    /// What its document of desired state comes to.
    pub desired: DesiredStatus,
}

/// `PUT /v1/desired`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyDesired {
    /// The document; its paths are absolute.
    pub document: DesiredState,
    /// Remove what it does not name.
    #[serde(default)]
    pub prune: bool,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What is to be done for a document.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DesiredPlan {
    /// In this order.
    pub steps: Vec<Step>,
    /// It was only asked for.
    pub dry_run: bool,
}

/// `GET /v1/desired/status`: how far the document in force is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DesiredStatus {
    /// The file that the agent watches, if any.
    pub file: Option<String>,
    /// Why its newest version is not in force.
    pub refused: Option<String>,
    /// Whether a document is in force.
    pub in_force: bool,
    /// What is still to be done.
    pub pending: Vec<Step>,
    /// What failed last.
    pub last_failure: Option<String>,
    /// When it is tried again.
    pub retry_at: Option<Millis>,
}

/// `POST /v1/tenants`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Its name.
    pub name: Name,
    /// Its network.
    pub network: TenantNetwork,
    /// Its quotas.
    #[serde(default)]
    pub quotas: Quotas,
}

/// `PATCH /v1/tenants/{tenant}`: only what is given changes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct QuotaPatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vcpus: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_mem_mib: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_warm: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pools: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_instances_per_pool: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_disk_gib: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_queued_jobs: Option<u64>,
}

impl QuotaPatch {
    /// The quotas with what is given replaced.
    pub fn apply(&self, to: Quotas) -> Quotas {
        Quotas {
            max_vcpus: self.max_vcpus.unwrap_or(to.max_vcpus),
            max_mem_mib: self.max_mem_mib.unwrap_or(to.max_mem_mib),
            max_running: self.max_running.unwrap_or(to.max_running),
            max_warm: self.max_warm.unwrap_or(to.max_warm),
            max_pools: self.max_pools.unwrap_or(to.max_pools),
            max_instances_per_pool: self
                .max_instances_per_pool
                .unwrap_or(to.max_instances_per_pool),
            max_disk_gib: self.max_disk_gib.unwrap_or(to.max_disk_gib),
            max_queued_jobs: self.max_queued_jobs.unwrap_or(to.max_queued_jobs),
        }
    }
}

/// The patch that makes any quotas these.
impl From<Quotas> for QuotaPatch {
    fn from(quotas: Quotas) -> Self {
        QuotaPatch {
            max_vcpus: Some(quotas.max_vcpus),
            max_mem_mib: Some(quotas.max_mem_mib),
            max_running: Some(quotas.max_running),
            max_warm: Some(quotas.max_warm),
            max_pools: Some(quotas.max_pools),
            max_instances_per_pool: Some(quotas.max_instances_per_pool),
            max_disk_gib: Some(quotas.max_disk_gib),
            max_queued_jobs: Some(quotas.max_queued_jobs),
        }
    }
}

/// A tenant as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TenantView {
    /// Its name.
    pub tenant_id: Name,
    /// Its network.
    pub network: TenantNetwork,
    /// The gateway's address.
    pub gateway: Ipv4Addr,
    /// The name of its bridge.
    pub bridge: String,
    /// What it may use.
    pub quotas: Quotas,
    /// What it uses.
    pub usage: Usage,
    /// When it was made.
    pub created_at: Millis,
}

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
}

impl PolicyPatch {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == PolicyPatch::default()
    }

    /// The policy with what is given replaced.
    pub fn apply(&self, to: RuntimePolicy) -> RuntimePolicy {
        RuntimePolicy {
            warm_after_s: self.warm_after_s.unwrap_or(to.warm_after_s),
            sleep_after_s: self.sleep_after_s.unwrap_or(to.sleep_after_s),
            min_running_s: self.min_running_s.unwrap_or(to.min_running_s),
            min_warm_s: self.min_warm_s.unwrap_or(to.min_warm_s),
            max_age_s: self.max_age_s.unwrap_or(to.max_age_s),
            max_jobs: self.max_jobs.unwrap_or(to.max_jobs),
        }
    }
}

/// The patch that makes any policy this one.
impl From<RuntimePolicy> for PolicyPatch {
    fn from(policy: RuntimePolicy) -> Self {
        PolicyPatch {
            warm_after_s: Some(policy.warm_after_s),
            sleep_after_s: Some(policy.sleep_after_s),
            min_running_s: Some(policy.min_running_s),
            min_warm_s: Some(policy.min_warm_s),
            max_age_s: Some(policy.max_age_s),
            max_jobs: Some(policy.max_jobs),
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
    /// Whether new instances are clones: the template of this revision and shape is there.
    pub template_ready: bool,
    /// The revision in use.
    pub revision: Option<RevisionEntry>,
    /// Whether flake, profile or inputs have changed since it was built.
    pub stale: bool,
    /// Why the pool is not converging, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// When it was made.
    pub created_at: Millis,
}

/// `POST …/build` (server-sent events: `progress`, then `result` or `problem`).
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildPool {
    /// Flake inputs to override, remembered by the pool. Empty: those of the last build.
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

/// Exactly these counts.
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

/// An instance as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InstanceView {
    /// `tenant/pool/id`.
    pub reference: InstanceRef,
    /// Its tenant.
    pub tenant_id: Name,
    /// Its pool.
    pub pool_id: Name,
    /// Its id.
    pub instance_id: String,
    /// Its state.
    pub state: State,
    /// Where it is going, if a transition is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub going_to: Option<State>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its MAC address.
    pub mac: String,
    /// Its shape.
    pub instance_resources: Resources,
    /// Digest of its image.
    pub revision: String,
    /// The lease on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// How many leases it has served.
    pub leases_served: u32,
    /// The hypervisor's process, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Whether the machine is simulated.
    pub simulated: bool,
    /// The node that it is on, where a coordinator shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<Name>,
    /// When it was made.
    pub created_at: Millis,
    /// When it reached its state.
    pub state_since: Millis,
    /// What the policy will do next with it, if nothing happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
}

/// A lease as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LeaseView {
    /// The lease.
    #[serde(flatten)]
    pub lease: Lease,
    /// On what.
    pub instance: InstanceRef,
}

/// `POST /v1/leases/{id}/extend`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendLease {
    /// Its length from now on, in seconds.
    pub lease_s: u64,
}

/// `POST …/instances/{id}/{verb}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveInstance {
    /// Length of the lease that `start` and `wake` take, in seconds.
    #[serde(default)]
    pub lease_s: Option<u64>,
}

/// What a verb came to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Moved {
    /// The instance afterwards.
    pub instance: InstanceView,
    /// The state before.
    pub from: State,
    /// How long it took in ms.
    pub took_ms: f64,
}

/// `POST …/instances`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInstance {
    /// Start it at once.
    #[serde(default)]
    pub start: bool,
}

/// `POST …/claims`: upgraded; the first line the agent sends is a [`Claim`] or a problem document.
/// The lease ends when the client closes the connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Longest length of the lease in seconds.
    #[serde(default)]
    pub lease_s: Option<u64>,
}

/// An instance claimed for a job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    /// The instance, now running.
    pub reference: InstanceRef,
    /// What it was taken from: `warm`, `sleeping`, `created` …
    pub from: State,
    /// How long it took in ms.
    pub took_ms: f64,
    /// The lease.
    pub lease: Lease,
}

/// What OpenSSH needs to reach an instance.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SshAccess {
    /// The user to log in as.
    pub user: String,
    /// The tenant's private key: a file on the node.
    pub identity_file: String,
    /// A known_hosts file that pins the instance's host key.
    pub known_hosts_file: String,
    /// The name under which the host key is pinned.
    pub host_key_alias: String,
    /// The instance's address.
    pub address: Ipv4Addr,
    /// What is in the two files, for a caller on another machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<SshFiles>,
}

/// The contents of the files that OpenSSH needs. The key is a secret.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct SshFiles {
    /// The tenant's private key.
    pub identity: String,
    /// The line that pins the instance's host key.
    pub known_hosts: String,
}

impl std::fmt::Debug for SshFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshFiles").finish_non_exhaustive()
    }
}

/// `GET …/instances/{id}/stats`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InstanceStats {
    /// Its state.
    pub state: State,
    /// CPU time of the hypervisor's process in ms.
    pub cpu_time_ms: u64,
    /// Resident memory of the hypervisor's process in KiB.
    pub resident_kib: u64,
    /// Its share of it in KiB (PSS).
    pub proportional_kib: u64,
    /// Bytes the guest has sent.
    pub net_sent_bytes: u64,
    /// Bytes the guest has received.
    pub net_received_bytes: u64,
    /// Disk space that its files really take, in KiB.
    pub disk_kib: u64,
    /// What the guest's agent says, where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<serde_json::Value>,
}

/// `POST /v1/kernels/import`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportKernel {
    /// A file on the node: vmlinux or bzImage.
    pub file: String,
    /// A folder with the kernel's modules, where it needs some to boot.
    #[serde(default)]
    pub modules: Option<String>,
    /// A name to show.
    #[serde(default)]
    pub name: Option<String>,
}

/// A kernel as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KernelView {
    /// Its digest.
    pub digest: String,
    /// Its name.
    pub name: String,
    /// The version that it says of itself.
    pub version: String,
    /// `pci` or `mmio`.
    pub platform: String,
    /// Size of the kernel in bytes.
    pub size_bytes: u64,
    /// Whether pools that name none boot it.
    pub default: bool,
}

/// An image as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImageView {
    /// Its digest.
    pub digest: String,
    /// The flake that it was built from.
    pub flake_ref: String,
    /// The attribute.
    pub profile: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Digest of what it is, where `digest` is of what it was made of: by it another node checks
    /// what it receives. Empty for one that was built by a version that did not know this.
    #[serde(default)]
    pub content: String,
    /// Pools that have it among their revisions.
    pub pools: Vec<PoolRef>,
}

/// `POST /v1/images/fetch`: receive an image from a node that has it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FetchImage {
    /// Its digest.
    pub digest: String,
    /// What it has to be, where that is known; else the first source is believed.
    #[serde(default)]
    pub content: Option<String>,
    /// `HOST:PORT` of nodes that have it; each is tried in turn, and goes on where the one before
    /// was cut off.
    pub sources: Vec<String>,
}

/// What a fetch came to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FetchedImage {
    /// Its digest.
    pub digest: String,
    /// What it is.
    pub content: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes that came over the network this time; 0 where it was there already.
    pub received_bytes: u64,
    /// How long it took in ms.
    pub took_ms: u64,
}

/// What a collection of garbage removed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GcResult {
    /// Digests removed.
    pub removed: Vec<String>,
    /// Bytes freed.
    pub freed_bytes: u64,
    /// Whether it was only tried.
    pub dry_run: bool,
}

/// `POST /v1/images/gc`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gc {
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}
