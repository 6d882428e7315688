//! The table itself. A new route of a router gets a line here.

use super::{Route, Scope, Server};
use crate::identity::Role;

const AGENT: &[Server] = &[Server::Agent];
const COORDINATOR: &[Server] = &[Server::Coordinator];
const BOTH: &[Server] = &[Server::Agent, Server::Coordinator];
const SIGNER: &[Server] = &[Server::Signer, Server::Coordinator];

const OPERATOR: &[Role] = &[Role::Operator];
const FLEET: &[Role] = &[Role::Operator, Role::Coordinator];
/// What the fleet's leader says: no operator speaks for it by hand but on the node itself.
const LEADER: &[Role] = &[Role::Operator, Role::Coordinator];
const TENANT: &[Role] = &[Role::Operator, Role::Coordinator, Role::TenantOperator];
const MEMBER: &[Role] = &[Role::Node, Role::Coordinator, Role::Operator, Role::TenantOperator];
const NODES: &[Role] = &[Role::Node, Role::Coordinator, Role::Operator];
const PEER: &[Role] = &[Role::Node, Role::Coordinator, Role::Operator];
const JOINER: &[Role] = &[Role::Joiner];

const fn on(
    servers: &'static [Server],
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    roles: &'static [Role],
) -> Route {
    Route { method, path, summary, roles, scope: Scope::All, servers }
}

/// One about what the path's `{tenant}` owns.
const fn tenant(
    servers: &'static [Server],
    method: &'static str,
    path: &'static str,
    summary: &'static str,
) -> Route {
    Route { scope: Scope::Tenant, ..on(servers, method, path, summary, TENANT) }
}

/// One where the handler narrows down what a tenant operator sees.
const fn narrowed(
    servers: &'static [Server],
    method: &'static str,
    path: &'static str,
    summary: &'static str,
) -> Route {
    Route { scope: Scope::Narrowed, ..on(servers, method, path, summary, TENANT) }
}

/// All routes.
pub const ROUTES: &[Route] = &[
    on(AGENT, "GET", "/v1/agent", "Says what the agent is and runs on", FLEET),
    on(AGENT, "POST", "/v1/agent/stop", "Ends the agent; no VM is touched", OPERATOR),
    on(AGENT, "PUT", "/v1/agent/crl", "Takes a newer list of revoked certificates", FLEET),
    on(AGENT, "GET", "/v1/desired", "Shows what the node holds as a document", FLEET),
    on(AGENT, "PUT", "/v1/desired", "Puts a document of desired state in force", FLEET),
    on(AGENT, "GET", "/v1/desired/status", "Says how far the document in force is", FLEET),
    narrowed(BOTH, "GET", "/v1/tenants", "Lists the tenants"),
    on(AGENT, "POST", "/v1/tenants", "Makes a tenant", FLEET),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}", "Shows a tenant"),
    on(AGENT, "PATCH", "/v1/tenants/{tenant}", "Changes a tenant's quotas", FLEET),
    on(AGENT, "DELETE", "/v1/tenants/{tenant}", "Removes a tenant that holds nothing", FLEET),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}/pools", "Lists a tenant's pools"),
    // Whoever chooses a flake runs programs on the node and puts its files into images: not a
    // tenant's business.
    on(AGENT, "POST", "/v1/tenants/{tenant}/pools", "Makes a pool", FLEET),
    narrowed(BOTH, "GET", "/v1/pools", "Lists the pools"),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}/pools/{pool}", "Shows a pool"),
    on(AGENT, "PATCH", "/v1/tenants/{tenant}/pools/{pool}", "Changes a pool", FLEET),
    on(AGENT, "DELETE", "/v1/tenants/{tenant}/pools/{pool}", "Removes a pool", FLEET),
    on(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/build", "Builds a pool's image", FLEET),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/scale", "Says how many stand ready"),
    tenant(AGENT, "GET", "/v1/tenants/{tenant}/pools/{pool}/revisions", "Lists revisions"),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/rollback", "Takes an older revision"),
    tenant(BOTH, "POST", "/v1/tenants/{tenant}/pools/{pool}/claims", "Claims for a job"),
    // Whoever chooses where the node listens opens it to others: not a tenant's business either.
    on(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/expose", "Listens for a pool", FLEET),
    on(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/unexpose", "Listens no more", FLEET),
    narrowed(AGENT, "GET", "/v1/exposes", "Lists the fronts of all pools"),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}/pools/{pool}/instances", "Lists instances"),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances", "Makes an instance"),
    narrowed(BOTH, "GET", "/v1/instances", "Lists the instances of all pools"),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}", "Shows one"),
    tenant(BOTH, "DELETE", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}", "Destroys one"),
    tenant(BOTH, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/start", "Boots it"),
    tenant(BOTH, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/wake", "Wakes it"),
    tenant(BOTH, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/warm", "Pauses it"),
    tenant(BOTH, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/sleep", "Sleeps it"),
    tenant(BOTH, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stop", "Stops it"),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stream",
        "Opens a stream to the guest's agent; wakes the instance",
    ),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/logs", "Its console"),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stats", "Its use"),
    tenant(
        BOTH,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/ssh",
        "Says what OpenSSH needs to reach it",
    ),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/jobs", "Makes a job"),
    narrowed(AGENT, "GET", "/v1/jobs", "Lists jobs"),
    narrowed(AGENT, "GET", "/v1/jobs/{id}", "Shows a job"),
    narrowed(AGENT, "PUT", "/v1/jobs/{id}/inputs", "Takes a job's inputs, a tar archive"),
    narrowed(AGENT, "POST", "/v1/jobs/{id}/submit", "Queues a job"),
    narrowed(AGENT, "POST", "/v1/jobs/{id}/attach", "Queues a job and streams its output"),
    narrowed(AGENT, "POST", "/v1/jobs/{id}/cancel", "Cancels a job"),
    narrowed(AGENT, "GET", "/v1/jobs/{id}/wait", "Answers when a job has ended"),
    narrowed(AGENT, "GET", "/v1/jobs/{id}/log", "A job's output"),
    narrowed(AGENT, "GET", "/v1/jobs/{id}/artifacts/{index}", "One artifact, a tar archive"),
    narrowed(AGENT, "GET", "/v1/events", "Lists what has happened"),
    narrowed(AGENT, "GET", "/v1/events/stream", "Streams what happens"),
    narrowed(AGENT, "GET", "/metrics", "Metrics in the OpenMetrics text format"),
    narrowed(BOTH, "GET", "/v1/leases", "Lists the leases"),
    narrowed(BOTH, "DELETE", "/v1/leases/{id}", "Ends a lease"),
    narrowed(BOTH, "POST", "/v1/leases/{id}/extend", "Gives a lease another length"),
    narrowed(AGENT, "GET", "/v1/audit", "Lists the audit logs"),
    narrowed(AGENT, "GET", "/v1/audit/{log}", "Shows an audit log"),
    on(AGENT, "GET", "/v1/kernels", "Lists the kernels", FLEET),
    on(AGENT, "POST", "/v1/kernels/import", "Imports a kernel from a file of the node", OPERATOR),
    on(AGENT, "POST", "/v1/kernels/fetch", "Fetches the distribution's kernel", FLEET),
    on(AGENT, "GET", "/v1/images", "Lists the images", FLEET),
    on(AGENT, "POST", "/v1/images/fetch", "Receives an image from another node", FLEET),
    on(AGENT, "GET", "/v1/images/{digest}/manifest", "Describes an image to who receives it", PEER),
    on(AGENT, "GET", "/v1/images/{digest}/parts/{part}", "The bytes of a part of an image", PEER),
    on(AGENT, "POST", "/v1/images/gc", "Collects images that nothing uses", FLEET),
    on(AGENT, "GET", "/v1/node/status", "Says what the node offers and holds", FLEET),
    on(AGENT, "GET", "/v1/node/watch", "Streams it at every change", FLEET),
    on(AGENT, "PUT", "/v1/node/document", "Takes the fleet's document for the node", LEADER),
    on(
        AGENT,
        "PUT",
        "/v1/node/leader",
        "Takes the leader's word; lists the fleet's claims",
        LEADER,
    ),
    on(AGENT, "PUT", "/v1/node/claims/{id}", "Serves a claim of the fleet, once", LEADER),
    on(AGENT, "PUT", "/v1/node/claims/{id}/end", "Ends a claim of the fleet", LEADER),
    on(COORDINATOR, "GET", "/v1/coordinator", "Says what the coordinator is", MEMBER),
    on(COORDINATOR, "GET", "/v1/fleet", "Shows the fleet's document", FLEET),
    on(COORDINATOR, "PUT", "/v1/fleet", "Puts a document of the fleet in force", FLEET),
    on(COORDINATOR, "GET", "/v1/fleet/status", "Says how far the fleet is", FLEET),
    on(COORDINATOR, "GET", "/v1/nodes", "Lists the nodes", FLEET),
    on(COORDINATOR, "POST", "/v1/nodes", "Makes a node the fleet's, or says where it is", NODES),
    on(COORDINATOR, "GET", "/v1/nodes/{node}", "Shows a node", FLEET),
    on(COORDINATOR, "DELETE", "/v1/nodes/{node}", "Takes a node out of the fleet", FLEET),
    on(COORDINATOR, "POST", "/v1/nodes/{node}/duty", "Drains, cordons or opens a node", FLEET),
    on(SIGNER, "POST", "/v1/ca/join", "Makes the holder of a join token a node", JOINER),
    on(SIGNER, "POST", "/v1/ca/renew", "Signs anew for the caller's own identity", MEMBER),
    on(SIGNER, "GET", "/v1/ca/crl", "The list of revoked certificates", MEMBER),
    on(SIGNER, "POST", "/v1/ca/invites", "Makes a join token", OPERATOR),
    on(SIGNER, "GET", "/v1/ca/identities", "Lists who has certificates", FLEET),
    on(SIGNER, "POST", "/v1/ca/revoke", "Revokes an identity's certificates", OPERATOR),
];
