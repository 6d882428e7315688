//! Requests and responses about instances, their leases and claims.

use mvm_model::halt::Paused;
use mvm_model::policy::Next;
use mvm_model::{InstanceRef, JobId, Lease, Millis, Name, Resources, State, WayUp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;

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
    /// Why it failed, or why its guest ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// It should run, and its hypervisor has paused it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
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
    /// How it came to run the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_up: Option<WayUp>,
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
    /// Until when the process of a sleeping instance is kept, where it still has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lingers_until: Option<Millis>,
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
    /// In so many seconds it ends, unless it is extended or its holder shows itself.
    #[serde(default)]
    pub left_s: u64,
    /// Who keeps a job's lease now. Absent: nobody does, or it is of another purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<HeldBy>,
    /// The node that it is on, where a coordinator shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<Name>,
}

/// Who keeps a lease for as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeldBy {
    /// The job of this id.
    Job(JobId),
    /// The connection of a claim.
    Claim,
    /// An open session: a program, SSH, a copy.
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
    /// True: only the claim that was made with this idempotency key, at a fleet's earlier leader;
    /// where it has ended, nothing is claimed anew (`claim_ended`).
    #[serde(default)]
    pub again: bool,
}

/// An instance claimed for a job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    /// The instance, now running.
    pub reference: InstanceRef,
    /// What it was taken from: `warm`, `sleeping`, `created` …
    pub from: State,
    /// How it came to run; absent where it ran already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_up: Option<WayUp>,
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
    /// What the guest's agent says, where it runs; `does not answer` where it says nothing in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<serde_json::Value>,
}
