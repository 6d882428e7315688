//! The paths of the API.

use mvm_model::{InstanceRef, Name, PoolRef};

/// The agent itself.
pub const AGENT: &str = "/v1/agent";
/// Ends the agent; no VM is touched.
pub const AGENT_STOP: &str = "/v1/agent/stop";
/// Takes a newer list of revoked certificates.
pub const AGENT_CRL: &str = "/v1/agent/crl";
/// Makes the holder of a join token a node.
pub const CA_JOIN: &str = "/v1/ca/join";
/// Signs anew for the caller's own identity.
pub const CA_RENEW: &str = "/v1/ca/renew";
/// The list of revoked certificates.
pub const CA_CRL: &str = "/v1/ca/crl";
/// Makes a join token.
pub const CA_INVITES: &str = "/v1/ca/invites";
/// Who has certificates.
pub const CA_IDENTITIES: &str = "/v1/ca/identities";
/// Revokes an identity's certificates.
pub const CA_REVOKE: &str = "/v1/ca/revoke";
/// The desired state: what the node holds, and the way to have it hold something else.
pub const DESIRED: &str = "/v1/desired";
/// How far the document in force is.
pub const DESIRED_STATUS: &str = "/v1/desired/status";
/// What the kernel has of the node's network, against what it should have.
pub const NETWORK: &str = "/v1/network";
/// All tenants.
pub const TENANTS: &str = "/v1/tenants";
/// The pools of all tenants.
pub const POOLS: &str = "/v1/pools";
/// The instances of all pools.
pub const INSTANCES: &str = "/v1/instances";
/// What has happened.
pub const EVENTS: &str = "/v1/events";
/// What happens (server-sent events).
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
/// Imports a kernel from a file of the node.
pub const KERNEL_IMPORT: &str = "/v1/kernels/import";
/// Fetches the distribution's kernel (server-sent events).
pub const KERNEL_FETCH: &str = "/v1/kernels/fetch";
/// Collects images that nothing uses.
pub const IMAGES_GC: &str = "/v1/images/gc";
/// One kernel, by its name or digest.
pub fn kernel(name: &str) -> String {
    // Whatever somebody writes is one part of the path.
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

/// What a node that receives an image has to know of it.
pub fn image_manifest(digest: &str) -> String {
    format!("{IMAGES}/{digest}/manifest")
}

/// The bytes of one of its parts, from `offset` on.
pub fn image_part(digest: &str, part: &str, offset: u64) -> String {
    format!("{IMAGES}/{digest}/parts/{part}?offset={offset}")
}

/// What a node says of itself to its coordinators, and the stream of it.
pub const NODE_STATUS: &str = "/v1/node/status";
/// The same, at every change and at least every two seconds (server-sent events).
pub const NODE_WATCH: &str = "/v1/node/watch";
/// The fleet's document for a node.
pub const NODE_DOCUMENT: &str = "/v1/node/document";
/// Takes the leader's word; gives the claims that the node holds.
pub const NODE_LEADER: &str = "/v1/node/leader";
/// The claims of a fleet on a node.
pub const NODE_CLAIMS: &str = "/v1/node/claims";
/// The coordinator itself.
pub const COORDINATOR: &str = "/v1/coordinator";
/// The fleet's document.
pub const FLEET: &str = "/v1/fleet";
/// How far the fleet is.
pub const FLEET_STATUS: &str = "/v1/fleet/status";
/// The same as its leader sees it.
pub const FLEET_STATUS_OF_LEADER: &str = "/v1/fleet/status?leader=true";
/// The nodes of a fleet.
pub const NODES: &str = "/v1/nodes";

/// One claim of a fleet on a node.
pub fn node_claim(id: &str) -> String {
    format!("{NODE_CLAIMS}/{id}")
}

/// Ends it.
pub fn node_claim_end(id: &str) -> String {
    format!("{NODE_CLAIMS}/{id}/end")
}

/// What a node of a fleet is there for.
pub fn node_duty(name: &Name) -> String {
    format!("{}/duty", node(name))
}

/// One node of a fleet.
pub fn node(node: &Name) -> String {
    format!("{NODES}/{node}")
}

/// One audit log; `follow` goes on with what is added.
pub fn audit(log: &str, follow: bool) -> String {
    format!("{AUDIT}/{log}{}", if follow { "?follow=true" } else { "" })
}

/// One tenant.
pub fn tenant(name: &Name) -> String {
    format!("{TENANTS}/{name}")
}

/// The pools of one tenant.
pub fn pools(tenant: &Name) -> String {
    format!("{TENANTS}/{tenant}/pools")
}

/// One pool.
pub fn pool(pool: &PoolRef) -> String {
    format!("{TENANTS}/{}/pools/{}", pool.tenant, pool.pool)
}

/// A verb or part of a pool: `build`, `scale`, `expose`, `unexpose`, `revisions`, `rollback`, `claims`, `instances`.
pub fn pool_part(reference: &PoolRef, part: &str) -> String {
    format!("{}/{part}", pool(reference))
}

/// One instance.
pub fn instance(instance: &InstanceRef) -> String {
    format!("{}/instances/{}", pool(&instance.pool), instance.id)
}

/// A verb or part of an instance: `start`, `stop`, `warm`, `sleep`, `wake`, `stream`, `logs`,
/// `stats`, `ssh`.
pub fn instance_part(reference: &InstanceRef, part: &str) -> String {
    format!("{}/{part}", instance(reference))
}
