//! Requests and replies of fleets: between a coordinator and its nodes, and between a coordinator
//! and its users.

use mvm_model::fleet::{Duty, FleetState, NodeStatus, Unplaced};
use mvm_model::{AnyCode, Counts, DesiredState, InstanceRef, Millis, Name, PoolRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whose word it is: a node obeys the leader with the highest epoch that it has heard of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Leader {
    /// The fleet.
    pub fleet_id: Name,
    /// Higher than that of every leader before.
    pub epoch: u64,
}

/// `PUT /v1/node/document`: what the node is to hold for its fleet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeDocument {
    /// Who says so.
    pub leader: Leader,
    /// Tells documents apart; the node's status repeats it.
    pub digest: String,
    /// The document. It stays in force until there is another; what earlier ones of the fleet named
    /// and this one does not is removed, and nothing else.
    pub document: DesiredState,
}

/// `PUT /v1/node/claims/{id}`: an instance for a claim. Repeated with the same id it gives the same
/// instance. The lease has that id.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeClaim {
    /// Who says so.
    pub leader: Leader,
    /// Of which pool.
    pub pool: PoolRef,
    /// For whom.
    pub holder: String,
    /// Longest length of the lease in seconds.
    #[serde(default)]
    pub lease_s: Option<u64>,
}

/// `PUT /v1/node/claims`: the clients of these claims are there. A node ends a claim of which it has not
/// heard for half a minute. Gives those that have no lease there.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewClaims {
    /// Who says so.
    pub leader: Leader,
    /// Their ids.
    pub claims: Vec<String>,
}

/// A claim that a node holds a lease for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeldClaim {
    /// Its id.
    pub id: String,
    /// On what.
    pub instance: InstanceRef,
    /// When the lease ends unless extended.
    pub expires_at: Millis,
}

/// `PUT /v1/fleet`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyFleet {
    /// The document; its paths are absolute, as every node reaches them.
    pub document: FleetState,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a document comes to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FleetPlan {
    /// The document's digest: [`FleetStatus::document`] once it is in force.
    pub document: String,
    /// What changes on which node, as far as anything does.
    pub changes: Vec<NodeChange>,
    /// What is on no node.
    pub unplaced: Vec<Unplaced>,
    /// It was only asked for.
    pub dry_run: bool,
}

/// What a node is to hold of a pool, where that changes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeChange {
    /// The node.
    pub node_id: Name,
    /// The pool.
    pub pool: PoolRef,
    /// Until now; none: it had no such pool.
    pub from: Option<Counts>,
    /// From now on; none: it gives the pool up.
    pub to: Option<Counts>,
}

/// `GET /v1/fleet/status`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FleetStatus {
    /// The fleet.
    pub fleet_id: Name,
    /// The address of the coordinator that leads, if any does.
    pub leader: Option<String>,
    /// Nodes in reach.
    pub nodes_alive: usize,
    /// Nodes out of reach.
    pub nodes_lost: usize,
    /// The digest of the document in force, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Whether every pool holds its counts; where the coordinator leads, also whether every node in
    /// reach has done all of the document in force.
    pub converged: bool,
    /// Claims that wait; of the leader only.
    pub claims_waiting: usize,
    /// Its pools.
    pub pools: Vec<FleetPoolView>,
    /// What is on no node.
    pub unplaced: Vec<Unplaced>,
}

/// A pool of the fleet.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FleetPoolView {
    /// Which one.
    pub pool: PoolRef,
    /// What it keeps ready.
    pub desired_counts: Counts,
    /// What is ready.
    pub ready_counts: Counts,
    /// Leased instances.
    pub leased: u32,
    /// On how many nodes it is.
    pub nodes: usize,
    /// Why it is not converging on some node, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// The code of that failure, where the node's document is the one in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_code: Option<AnyCode>,
}

/// `POST /v1/nodes`: a node that belongs to the fleet. Repeated with another address: it has moved.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterNode {
    /// Its name.
    pub node_id: Name,
    /// Where its agent serves: `HOST:PORT`, or `unix:PATH` on this machine.
    pub address: String,
}

/// `POST /v1/nodes/{node}/duty`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetDuty {
    /// What it is there for from now on.
    pub duty: Duty,
}

/// A node as the coordinator shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    /// Its name.
    pub node_id: Name,
    /// Where its agent serves.
    pub address: String,
    /// What it is there for.
    pub duty: Duty,
    /// Whether any coordinator reaches it.
    pub alive: bool,
    /// Since when it is out of reach, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_since: Option<Millis>,
    /// Its unleased instances.
    pub ready_counts: Counts,
    /// Its leased instances.
    pub leased: u32,
    /// Whether it holds what it was told last, as far as this coordinator knows.
    pub up_to_date: bool,
    /// Why its document was not taken, if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What it said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeStatus>,
}

/// `GET /v1/coordinator`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CoordinatorInfo {
    /// Version of its binary.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The fleet.
    pub fleet_id: Name,
    /// Where others reach it.
    pub address: String,
    /// Whether it leads.
    pub leads: bool,
    /// The address of the leader, if there is one.
    pub leader: Option<String>,
    /// `sqlite` or `etcd`.
    pub store: String,
    /// When it started.
    pub started_at: Millis,
}
