//! Requests and responses about instances, their leases and claims.

use mvm_model::footprint::Footprint;
use mvm_model::halt::Paused;
use mvm_model::policy::Next;
use mvm_model::{
    Accelerator, Digest, InstanceRef, JobId, Lease, Mac, Name, Resources, State, Timestamp, WayUp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;

/// An instance as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InstanceView {
    /// The instance's full name: `tenant/pool/id`.
    pub reference: InstanceRef,
    /// The tenant's name.
    pub tenant_id: Name,
    /// The pool's name.
    pub pool_id: Name,
    /// The instance's id within the pool.
    pub instance_id: String,
    /// The instance's state.
    pub state: State,
    /// The state that a transition under way leads to; absent where none is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub going_to: Option<State>,
    /// Why the instance failed, or why its guest ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why the hypervisor has paused a machine that should run; absent where it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
    /// The instance's IPv4 address.
    pub address: Ipv4Addr,
    /// The instance's MAC address.
    pub mac: Mac,
    /// The instance's vCPUs, memory and disk.
    pub instance_resources: Resources,
    /// Digest of the instance's image.
    pub revision: Digest,
    /// The lease on the instance; absent where it is not leased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// Number of leases that the instance has served.
    pub leases_served: u32,
    /// How the instance started to run the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_up: Option<WayUp>,
    /// What executes the instructions of the instance's machine; absent where the instance has no
    /// memory of its own, or is simulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// The model of the machine's CPU, in QEMU's words; absent where the accelerator is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// Process id of the hypervisor; absent where none runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Whether the machine is simulated.
    pub simulated: bool,
    /// The node that the instance is on, where a coordinator shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<Name>,
    /// When the instance was created; ms since the Unix epoch.
    pub created_at: Timestamp,
    /// When the instance reached its state; ms since the Unix epoch.
    pub state_since: Timestamp,
    /// When the hypervisor's process of a sleeping instance ends, where it still runs; ms since the
    /// Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lingers_until: Option<Timestamp>,
    /// What the pool's policy does next with the instance, if nothing else happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
}

/// A lease as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LeaseView {
    /// The lease itself.
    #[serde(flatten)]
    pub lease: Lease,
    /// The leased instance.
    pub instance: InstanceRef,
    /// Seconds until the lease ends, unless it is extended or its holder shows that it lives.
    #[serde(default)]
    pub left_s: u64,
    /// What renews the lease now; absent where nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<HeldBy>,
    /// The node that the instance is on, where a coordinator shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<Name>,
}

/// What renews a lease for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeldBy {
    /// The job with this id.
    Job(JobId),
    /// The connection of a claim.
    Claim,
    /// An open session: a program, SSH, or a copy.
    Session,
}

impl fmt::Display for HeldBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeldBy::Job(id) => write!(f, "job {id}"),
            HeldBy::Claim => f.write_str("claim"),
            HeldBy::Session => f.write_str("session"),
        }
    }
}

/// Request of `POST /v1/leases/{id}/extend`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendLease {
    /// The lease's length from now on, in seconds.
    pub lease_s: u64,
}

/// Request of `POST …/instances/{id}/{verb}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveInstance {
    /// Length of the lease that `start` and `wake` take, in seconds.
    #[serde(default)]
    pub lease_s: Option<u64>,
}

/// The result of a verb.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Moved {
    /// The instance afterwards.
    pub instance: InstanceView,
    /// The state before.
    pub from: State,
    /// How long the transition took in ms.
    pub took_ms: f64,
}

/// Request of `POST …/instances`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInstance {
    /// Whether to start the instance at once.
    #[serde(default)]
    pub start: bool,
}

/// Request of `POST …/claims`. The connection is upgraded; the first line that the agent sends is a
/// [`Claim`] or a problem document. The lease ends when the client closes the connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Longest length of the lease in seconds; as long as its holder lives where absent.
    #[serde(default)]
    pub lease_s: Option<u64>,
    /// True: only the claim that was made with this idempotency key at an earlier leader of the
    /// fleet. Where that claim has ended, the answer is `claim_ended` and no instance is claimed.
    #[serde(default)]
    pub again: bool,
}

/// An instance claimed for a job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    /// The instance, which runs.
    pub reference: InstanceRef,
    /// The instance's state before: `warm`, `sleeping`, `created` …
    pub from: State,
    /// How the instance started to run; absent where it ran already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_up: Option<WayUp>,
    /// How long the claim took in ms.
    pub took_ms: f64,
    /// The lease.
    pub lease: Lease,
}

/// What OpenSSH needs to reach an instance.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SshAccess {
    /// The user to log in as.
    pub user: String,
    /// Path on the node of the tenant's private key.
    pub identity_file: String,
    /// Path on the node of a known_hosts file that pins the instance's host key.
    pub known_hosts_file: String,
    /// The name under which the host key is pinned.
    pub host_key_alias: String,
    /// The instance's IPv4 address.
    pub address: Ipv4Addr,
    /// The contents of the two files, for a caller on another machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<SshFiles>,
}

/// The contents of the files that OpenSSH needs. The private key is a secret.
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

/// Response of `GET …/instances/{id}/stats`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InstanceStats {
    /// The instance's state.
    pub state: State,
    /// CPU time of the hypervisor's process in ms.
    pub cpu_time_ms: u64,
    /// Resident memory of the hypervisor's process in KiB.
    pub resident_kib: u64,
    /// Proportional share of the memory of the hypervisor's process in KiB (PSS).
    pub proportional_kib: u64,
    /// The memory of the hypervisor's process by what it is for; absent where there is no process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footprint: Option<Footprint>,
    /// Bytes that the guest has sent.
    pub net_sent_bytes: u64,
    /// Bytes that the guest has received.
    pub net_received_bytes: u64,
    /// Disk space that the instance's files really take, in KiB.
    pub disk_kib: u64,
    /// The guest agent's own statistics, where it runs; `does not answer` where it does not reply
    /// in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<serde_json::Value>,
}
