//! The paths of the API.

use mvm_model::{Digest, InstanceRef, LeaseId, Name, PoolRef};

/// The agent itself.
pub const AGENT: &str = "/v1/agent";
/// Tries KVM again.
pub const AGENT_PROBE: &str = "/v1/agent/probe";
/// Ends the agent; no VM is touched.
pub const AGENT_STOP: &str = "/v1/agent/stop";
/// Replaces the agent's list of revoked certificates by a newer one.
pub const AGENT_CRL: &str = "/v1/agent/crl";
/// Makes the holder of a join token a node.
pub const CA_JOIN: &str = "/v1/ca/join";
/// Signs a new certificate for the caller's own identity.
pub const CA_RENEW: &str = "/v1/ca/renew";
/// The list of revoked certificates.
pub const CA_CRL: &str = "/v1/ca/crl";
/// Makes a join token.
pub const CA_INVITES: &str = "/v1/ca/invites";
/// Lists the identities that have certificates.
pub const CA_IDENTITIES: &str = "/v1/ca/identities";
/// Revokes an identity's certificates.
pub const CA_REVOKE: &str = "/v1/ca/revoke";
/// The desired state: what the node is to hold.
pub const DESIRED: &str = "/v1/desired";
/// The progress towards the document in force.
pub const DESIRED_STATUS: &str = "/v1/desired/status";
/// The kernel's view of the node's network, compared with the records.
pub const NETWORK: &str = "/v1/network";
/// All tenants.
pub const TENANTS: &str = "/v1/tenants";
/// The pools of all tenants.
pub const POOLS: &str = "/v1/pools";
/// The instances of all pools.
pub const INSTANCES: &str = "/v1/instances";
/// The events so far.
pub const EVENTS: &str = "/v1/events";
/// The stream of events (server-sent events).
pub const EVENTS_STREAM: &str = "/v1/events/stream";
/// The audit logs.
pub const AUDIT: &str = "/v1/audit";
/// Metrics, in the OpenMetrics text format.
pub const METRICS: &str = "/metrics";
/// The fronts of all pools.
pub const EXPOSES: &str = "/v1/exposes";
/// The leases.
pub const LEASES: &str = "/v1/leases";
/// The kernels.
pub const KERNELS: &str = "/v1/kernels";
/// Imports a kernel from a file on the node.
pub const KERNEL_IMPORT: &str = "/v1/kernels/import";
/// Fetches the distribution's kernel (server-sent events).
pub const KERNEL_FETCH: &str = "/v1/kernels/fetch";
/// Removes images that nothing uses.
pub const IMAGES_GC: &str = "/v1/images/gc";
/// Returns the path of one kernel, by its name or digest.
pub fn kernel(name: &str) -> String {
    // The user's text becomes one segment of the path, whatever it contains.
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-~+".contains(&c);
    let escaped = name.bytes().map(|byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    format!("{KERNELS}/{}", escaped.collect::<String>())
}

/// The images.
pub const IMAGES: &str = "/v1/images";
/// Receives an image from another node.
pub const IMAGES_FETCH: &str = "/v1/images/fetch";

/// Returns the path of an image's manifest, which a receiving node needs first.
pub fn image_manifest(digest: &str) -> String {
    format!("{IMAGES}/{digest}/manifest")
}

/// Returns the path of a part's bytes, from byte `offset` on.
pub fn image_part(digest: Digest, part: &str, offset: u64) -> String {
    format!("{IMAGES}/{digest}/parts/{part}?offset={offset}")
}

/// A node's status, which its coordinators read.
pub const NODE_STATUS: &str = "/v1/node/status";
/// The stream of a node's status: at every change and at least every two seconds (server-sent
/// events).
pub const NODE_WATCH: &str = "/v1/node/watch";
/// The document that a fleet has sent to a node.
pub const NODE_DOCUMENT: &str = "/v1/node/document";
/// Introduces a leader to a node; returns the claims that the node holds.
pub const NODE_LEADER: &str = "/v1/node/leader";
/// The claims of a fleet on a node.
pub const NODE_CLAIMS: &str = "/v1/node/claims";
/// The coordinator itself.
pub const COORDINATOR: &str = "/v1/coordinator";
/// The fleet's document.
pub const FLEET: &str = "/v1/fleet";
/// The fleet's progress towards its document.
pub const FLEET_STATUS: &str = "/v1/fleet/status";
/// The fleet's progress as the leader sees it.
pub const FLEET_STATUS_OF_LEADER: &str = "/v1/fleet/status?leader=true";
/// The nodes of a fleet.
pub const NODES: &str = "/v1/nodes";

/// Returns the path of one claim of a fleet on a node.
pub fn node_claim(id: LeaseId) -> String {
    format!("{NODE_CLAIMS}/{id}")
}

/// Returns the path that ends a claim.
pub fn node_claim_end(id: LeaseId) -> String {
    format!("{NODE_CLAIMS}/{id}/end")
}

/// Returns the path of a node's duty.
pub fn node_duty(name: &Name) -> String {
    format!("{}/duty", node(name))
}

/// Returns the path of one node of a fleet.
pub fn node(node: &Name) -> String {
    format!("{NODES}/{node}")
}

/// Returns the path of one audit log. With `follow`, the response goes on with new records.
pub fn audit(log: &str, follow: bool) -> String {
    format!("{AUDIT}/{log}{}", if follow { "?follow=true" } else { "" })
}

/// Returns the path of one tenant.
pub fn tenant(name: &Name) -> String {
    format!("{TENANTS}/{name}")
}

/// Returns the path of one tenant's pools.
pub fn pools(tenant: &Name) -> String {
    format!("{TENANTS}/{tenant}/pools")
}

/// Returns the path of one pool.
pub fn pool(pool: &PoolRef) -> String {
    format!("{TENANTS}/{}/pools/{}", pool.tenant, pool.pool)
}

/// Returns the path of a verb or part of a pool: `build`, `scale`, `expose`, `unexpose`,
/// `revisions`, `rollback`, `claims`, `instances`.
pub fn pool_part(reference: &PoolRef, part: &str) -> String {
    format!("{}/{part}", pool(reference))
}

/// Returns the path of one instance.
pub fn instance(instance: &InstanceRef) -> String {
    format!("{}/instances/{}", pool(&instance.pool), instance.id)
}

/// Returns the path of a verb or part of an instance: `start`, `stop`, `warm`, `sleep`, `wake`,
/// `stream`, `logs`, `stats`, `ssh`.
pub fn instance_part(reference: &InstanceRef, part: &str) -> String {
    format!("{}/{part}", instance(reference))
}
