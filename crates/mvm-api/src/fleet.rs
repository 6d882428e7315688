//! Requests and replies of fleets: between a coordinator and its nodes, and between a coordinator
//! and its users.

use mvm_model::fleet::{Duty, FleetState, NodeStatus, Unplaced};
use mvm_model::{AnyCode, Counts, DesiredState, InstanceRef, LeaseId, Name, PoolRef, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The leader that sends a request. A node obeys the leader with the highest epoch that it has
/// heard of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Leader {
    /// The fleet's name.
    pub fleet_id: Name,
    /// The leader's epoch: higher than that of every earlier leader.
    pub epoch: u64,
}

/// Request of `PUT /v1/node/document`: what the node is to hold for its fleet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeDocument {
    /// The leader that sends the document.
    pub leader: Leader,
    /// The document's digest; the node's status repeats it.
    pub digest: String,
    /// The document. It stays in force until another replaces it. What the fleet's earlier
    /// documents named and this one does not is removed, and nothing else.
    pub document: DesiredState,
}

/// Request of `PUT /v1/node/claims/{id}`: an instance for a claim. A repetition with the same id
/// gives the same instance. The lease has that id.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeClaim {
    /// The leader that sends the request.
    pub leader: Leader,
    /// The pool to take an instance from.
    pub pool: PoolRef,
    /// The lease's holder.
    pub holder: String,
    /// Longest length of the lease in seconds; as long as its holder lives where absent.
    #[serde(default)]
    pub lease_s: Option<u64>,
}

/// Request of `PUT /v1/node/claims`: the clients of these claims are still connected. A node ends a
/// claim that was not renewed for half a minute. The response lists those that have no lease on the
/// node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewClaims {
    /// The leader that sends the request.
    pub leader: Leader,
    /// The ids of the claims.
    pub claims: Vec<LeaseId>,
}

/// A claim for which a node holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeldClaim {
    /// The claim's id, which is the lease's id.
    pub id: LeaseId,
    /// The leased instance.
    pub instance: InstanceRef,
    /// When the lease ends unless it is extended; ms since the Unix epoch.
    pub expires_at: Timestamp,
}

/// Request of `PUT /v1/fleet`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyFleet {
    /// The document. Its paths are absolute, and the same on every node.
    pub document: FleetState,
    /// Only return what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// The effect of a document.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FleetPlan {
    /// The document's digest: [`FleetStatus::document`] once the document is in force.
    pub document: String,
    /// The changes on each node; nodes without a change are absent.
    pub changes: Vec<NodeChange>,
    /// The instances that no node has room for.
    pub unplaced: Vec<Unplaced>,
    /// Whether the plan was only asked for, and nothing was done.
    pub dry_run: bool,
}

/// The change of one pool on one node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeChange {
    /// The node's name.
    pub node_id: Name,
    /// The pool.
    pub pool: PoolRef,
    /// The counts until now; absent where the node had no such pool.
    pub from: Option<Counts>,
    /// The counts from now on; absent where the node gives the pool up.
    pub to: Option<Counts>,
}

/// Response of `GET /v1/fleet/status`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FleetStatus {
    /// The fleet's name.
    pub fleet_id: Name,
    /// The address of the coordinator that leads; absent where none does.
    pub leader: Option<String>,
    /// Number of nodes in reach.
    pub nodes_alive: usize,
    /// Number of nodes out of reach.
    pub nodes_lost: usize,
    /// The digest of the document in force; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Whether every pool holds its counts. Where the coordinator leads, also whether every node in
    /// reach has carried out the whole document in force.
    pub converged: bool,
    /// Number of claims that wait; known to the leader only.
    pub claims_waiting: usize,
    /// The fleet's pools.
    pub pools: Vec<FleetPoolView>,
    /// The instances that no node has room for.
    pub unplaced: Vec<Unplaced>,
}

/// A pool of the fleet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FleetPoolView {
    /// The pool.
    pub pool: PoolRef,
    /// The instances that the pool is to keep ready.
    pub desired_counts: Counts,
    /// The instances that are ready.
    pub ready_counts: Counts,
    /// Number of leased instances.
    pub leased: u32,
    /// Number of nodes that hold the pool.
    pub nodes: usize,
    /// Why the pool does not converge on some node; absent where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// The code of that failure, where the node's document is the one in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_code: Option<AnyCode>,
}

/// Request of `POST /v1/nodes`: adds a node to the fleet. A repetition with another address changes
/// the node's address.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterNode {
    /// The node's name.
    pub node_id: Name,
    /// The address of the node's agent: `HOST:PORT`, or `unix:PATH` on this machine.
    pub address: String,
}

/// Request of `POST /v1/nodes/{node}/duty`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetDuty {
    /// The node's duty from now on.
    pub duty: Duty,
}

/// A node as the coordinator shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    /// The node's name.
    pub node_id: Name,
    /// The address of the node's agent.
    pub address: String,
    /// The node's duty.
    pub duty: Duty,
    /// Whether some coordinator reaches the node.
    pub alive: bool,
    /// Since when the node is out of reach, ms since the Unix epoch; absent while it is in reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_since: Option<Timestamp>,
    /// The node's unleased instances.
    pub ready_counts: Counts,
    /// Number of leased instances.
    pub leased: u32,
    /// Whether the node holds the document that was last sent to it, as far as this coordinator
    /// knows.
    pub up_to_date: bool,
    /// Why the node refused its document; absent where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The node's last status; absent where it has sent none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeStatus>,
}

/// Response of `GET /v1/coordinator`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CoordinatorInfo {
    /// Version of the coordinator's binary.
    pub version: String,
    /// The coordinator's process id.
    pub pid: u32,
    /// The fleet's name.
    pub fleet_id: Name,
    /// The address under which others reach the coordinator.
    pub address: String,
    /// Whether the coordinator leads.
    pub leads: bool,
    /// The address of the leader; absent where there is none.
    pub leader: Option<String>,
    /// The store: `sqlite` or `etcd`.
    pub store: String,
    /// When the coordinator started; ms since the Unix epoch.
    pub started_at: Timestamp,
}
