//! The paths of the API.

use mvm_model::{InstanceRef, Name, PoolRef};

/// The agent itself.
pub const AGENT: &str = "/v1/agent";
/// Ends the agent; no VM is touched.
pub const AGENT_STOP: &str = "/v1/agent/stop";
/// The desired state: what the node holds, and the way to have it hold something else.
pub const DESIRED: &str = "/v1/desired";
/// How far the document in force is.
pub const DESIRED_STATUS: &str = "/v1/desired/status";
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
/// Metrics, in the OpenMetrics text format.
pub const METRICS: &str = "/metrics";
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

/// A verb or part of a pool: `build`, `scale`, `revisions`, `rollback`, `claims`, `instances`.
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
