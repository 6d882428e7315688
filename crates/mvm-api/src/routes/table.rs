//! The table itself. A new route of a router gets a line here.

use super::shape::{Gives, Sent, Takes, schema_of};
use super::{Route, Scope, Server};
use crate::Problem;
use crate::audit::AuditLogView;
use crate::expose::{ExposePool, ExposeView, UnexposePool};
use crate::fleet::*;
use crate::identity::Role;
use crate::jobs::{JobFilter, JobView, SubmitJob};
use crate::query::{EventFilter, Follow, InstanceFilter, PartRange, StreamOptions, WaitOptions};
use crate::types::*;
use mvm_model::desired::DesiredState;
use mvm_model::event::Event;
use mvm_model::fleet::{FleetState, NodeStatus};
use mvm_model::pool::RevisionEntry;

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
const JOINER: &[Role] = &[Role::Joiner];

const ANYBODY: &[Role] = &Role::ALL;

const BUILD: &[Sent] = &[
    ("progress", schema_of::<ProgressEvent>),
    ("result", schema_of::<BuildResult>),
    ("problem", schema_of::<Problem>),
];
const FETCH: &[Sent] = &[
    ("progress", schema_of::<ProgressEvent>),
    ("result", schema_of::<KernelView>),
    ("problem", schema_of::<Problem>),
];
const EVENTS: &[Sent] = &[("event", schema_of::<Event>)];
const STATUS: &[Sent] = &[("status", schema_of::<NodeStatus>), ("beat", schema_of::<Done>)];

const fn on(
    servers: &'static [Server],
    method: &'static str,
    path: &'static str,
    operation: &'static str,
    summary: &'static str,
    roles: &'static [Role],
) -> Route {
    let (takes, gives) = (Takes::Nothing, Gives::Octets);
    let scope = Scope::All;
    Route { method, path, operation, summary, roles, scope, servers, takes, query: None, gives }
}

/// One about what the path's `{tenant}` owns.
const fn tenant(
    servers: &'static [Server],
    method: &'static str,
    path: &'static str,
    operation: &'static str,
    summary: &'static str,
) -> Route {
    Route { scope: Scope::Tenant, ..on(servers, method, path, operation, summary, TENANT) }
}

/// One where the handler narrows down what a tenant operator sees.
const fn narrowed(
    servers: &'static [Server],
    method: &'static str,
    path: &'static str,
    operation: &'static str,
    summary: &'static str,
) -> Route {
    Route { scope: Scope::Narrowed, ..on(servers, method, path, operation, summary, TENANT) }
}

/// All routes.
pub const ROUTES: &[Route] = &[
    on(AGENT, "GET", "/v1/agent", "agent.show", "Says what the agent is and runs on", FLEET)
        .gives::<AgentInfo>(),
    on(AGENT, "POST", "/v1/agent/stop", "agent.stop", "Ends the agent; no VM is touched", OPERATOR)
        .gives::<Done>(),
    on(
        AGENT,
        "PUT",
        "/v1/agent/crl",
        "agent.crl",
        "Takes a newer list of revoked certificates",
        FLEET,
    )
    .takes::<RevocationList>()
    .gives::<Done>(),
    on(
        AGENT,
        "GET",
        "/v1/desired",
        "desired.show",
        "Shows what the node holds as a document",
        FLEET,
    )
    .gives::<DesiredState>(),
    on(
        AGENT,
        "PUT",
        "/v1/desired",
        "desired.apply",
        "Puts a document of desired state in force",
        FLEET,
    )
    .takes::<ApplyDesired>()
    .gives::<DesiredPlan>(),
    on(
        AGENT,
        "GET",
        "/v1/desired/status",
        "desired.status",
        "Says how far the document in force is",
        FLEET,
    )
    .gives::<DesiredStatus>(),
    narrowed(BOTH, "GET", "/v1/tenants", "tenant.list", "Lists the tenants")
        .gives::<Vec<TenantView>>(),
    on(AGENT, "POST", "/v1/tenants", "tenant.create", "Makes a tenant", FLEET)
        .takes::<CreateTenant>()
        .gives::<TenantView>(),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}", "tenant.show", "Shows a tenant")
        .gives::<TenantView>(),
    on(AGENT, "PATCH", "/v1/tenants/{tenant}", "tenant.update", "Changes a tenant's quotas", FLEET)
        .takes::<QuotaPatch>()
        .gives::<TenantView>(),
    on(
        AGENT,
        "DELETE",
        "/v1/tenants/{tenant}",
        "tenant.destroy",
        "Removes a tenant that holds nothing",
        FLEET,
    )
    .gives::<Done>(),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}/pools", "tenant.pools", "Lists a tenant's pools")
        .gives::<Vec<PoolView>>(),
    // Whoever chooses a flake runs programs on the node and puts its files into images: not a
    // tenant's business.
    on(AGENT, "POST", "/v1/tenants/{tenant}/pools", "pool.create", "Makes a pool", FLEET)
        .takes::<CreatePool>()
        .gives::<PoolView>(),
    narrowed(BOTH, "GET", "/v1/pools", "pool.list", "Lists the pools").gives::<Vec<PoolView>>(),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}/pools/{pool}", "pool.show", "Shows a pool")
        .gives::<PoolView>(),
    on(AGENT, "PATCH", "/v1/tenants/{tenant}/pools/{pool}", "pool.update", "Changes a pool", FLEET)
        .takes::<UpdatePool>()
        .gives::<PoolView>(),
    on(
        AGENT,
        "DELETE",
        "/v1/tenants/{tenant}/pools/{pool}",
        "pool.destroy",
        "Removes a pool",
        FLEET,
    )
    .gives::<Done>(),
    on(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/build",
        "pool.build",
        "Builds a pool's image",
        FLEET,
    )
    .takes::<BuildPool>()
    .streams(BUILD),
    tenant(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/scale",
        "pool.scale",
        "Says how many stand ready",
    )
    .takes::<ScalePool>()
    .gives::<PoolView>(),
    tenant(
        AGENT,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/revisions",
        "pool.revisions",
        "Lists revisions",
    )
    .gives::<Vec<RevisionView>>(),
    tenant(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/rollback",
        "pool.rollback",
        "Takes an older revision",
    )
    .takes::<Rollback>()
    .gives::<RevisionEntry>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/claims",
        "claim.create",
        "Claims for a job",
    )
    .takes::<ClaimRequest>()
    .upgrades(),
    // Whoever chooses where the node listens opens it to others: not a tenant's business either.
    on(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/expose",
        "pool.expose",
        "Listens for a pool",
        FLEET,
    )
    .takes::<ExposePool>()
    .gives::<ExposeView>(),
    on(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/unexpose",
        "pool.unexpose",
        "Listens no more",
        FLEET,
    )
    .takes::<UnexposePool>()
    .gives::<Done>(),
    narrowed(AGENT, "GET", "/v1/exposes", "expose.list", "Lists the fronts of all pools")
        .gives::<Vec<ExposeView>>(),
    tenant(
        BOTH,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances",
        "pool.instances",
        "Lists instances",
    )
    .gives::<Vec<InstanceView>>(),
    tenant(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances",
        "instance.create",
        "Makes an instance",
    )
    .takes::<CreateInstance>()
    .gives::<InstanceView>(),
    narrowed(BOTH, "GET", "/v1/instances", "instance.list", "Lists the instances of all pools")
        .query::<InstanceFilter>()
        .gives::<Vec<InstanceView>>(),
    tenant(
        BOTH,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}",
        "instance.show",
        "Shows one",
    )
    .gives::<InstanceView>(),
    tenant(
        BOTH,
        "DELETE",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}",
        "instance.destroy",
        "Destroys one",
    )
    .gives::<Done>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/start",
        "instance.start",
        "Boots it",
    )
    .takes::<MoveInstance>()
    .gives::<Moved>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/wake",
        "instance.wake",
        "Wakes it",
    )
    .takes::<MoveInstance>()
    .gives::<Moved>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/warm",
        "instance.warm",
        "Pauses it",
    )
    .gives::<Moved>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/sleep",
        "instance.sleep",
        "Sleeps it",
    )
    .gives::<Moved>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stop",
        "instance.stop",
        "Stops it",
    )
    .gives::<Moved>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stream",
        "instance.stream",
        "Opens a stream to the guest's agent; wakes the instance",
    )
    .query::<StreamOptions>()
    .upgrades(),
    tenant(
        BOTH,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/logs",
        "instance.logs",
        "Its console",
    )
    .query::<Follow>()
    .octets(),
    tenant(
        BOTH,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stats",
        "instance.stats",
        "Its use",
    )
    .gives::<InstanceStats>(),
    tenant(
        BOTH,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/ssh",
        "instance.ssh",
        "Says what OpenSSH needs to reach it",
    )
    .gives::<SshAccess>(),
    tenant(BOTH, "POST", "/v1/tenants/{tenant}/pools/{pool}/jobs", "job.create", "Makes a job")
        .takes::<SubmitJob>()
        .gives::<JobView>(),
    narrowed(BOTH, "GET", "/v1/jobs", "job.list", "Lists jobs")
        .query::<JobFilter>()
        .gives::<Vec<JobView>>(),
    narrowed(BOTH, "GET", "/v1/jobs/{id}", "job.show", "Shows a job").gives::<JobView>(),
    narrowed(
        BOTH,
        "PUT",
        "/v1/jobs/{id}/inputs",
        "job.inputs",
        "Takes a job's inputs, a tar archive",
    )
    .takes_octets()
    .gives::<Done>(),
    narrowed(BOTH, "POST", "/v1/jobs/{id}/submit", "job.submit", "Queues a job").gives::<JobView>(),
    narrowed(
        BOTH,
        "POST",
        "/v1/jobs/{id}/attach",
        "job.attach",
        "Queues a job and streams its output",
    )
    .upgrades(),
    narrowed(BOTH, "POST", "/v1/jobs/{id}/cancel", "job.cancel", "Cancels a job")
        .gives::<JobView>(),
    narrowed(BOTH, "GET", "/v1/jobs/{id}/wait", "job.wait", "Answers when a job has ended")
        .query::<WaitOptions>()
        .gives::<JobView>(),
    narrowed(BOTH, "GET", "/v1/jobs/{id}/log", "job.log", "A job's output")
        .query::<Follow>()
        .octets(),
    narrowed(
        BOTH,
        "GET",
        "/v1/jobs/{id}/artifacts/{index}",
        "job.artifact",
        "One artifact, a tar archive",
    )
    .octets(),
    narrowed(AGENT, "GET", "/v1/events", "event.list", "Lists what has happened")
        .query::<EventFilter>()
        .gives::<Vec<Event>>(),
    narrowed(AGENT, "GET", "/v1/events/stream", "event.stream", "Streams what happens")
        .query::<EventFilter>()
        .streams(EVENTS),
    on(BOTH, "GET", "/openapi.json", "api.show", "Describes the API", ANYBODY).document(),
    narrowed(AGENT, "GET", "/metrics", "metrics.show", "Metrics in the OpenMetrics text format")
        .metrics(),
    narrowed(BOTH, "GET", "/v1/leases", "lease.list", "Lists the leases").gives::<Vec<LeaseView>>(),
    narrowed(BOTH, "DELETE", "/v1/leases/{id}", "lease.release", "Ends a lease").gives::<Done>(),
    narrowed(
        BOTH,
        "POST",
        "/v1/leases/{id}/extend",
        "lease.extend",
        "Gives a lease another length",
    )
    .takes::<ExtendLease>()
    .gives::<LeaseView>(),
    narrowed(AGENT, "GET", "/v1/audit", "audit.list", "Lists the audit logs")
        .gives::<Vec<AuditLogView>>(),
    narrowed(AGENT, "GET", "/v1/audit/{log}", "audit.show", "Shows an audit log")
        .query::<Follow>()
        .octets(),
    on(AGENT, "GET", "/v1/kernels", "kernel.list", "Lists the kernels", FLEET)
        .gives::<Vec<KernelView>>(),
    on(
        AGENT,
        "POST",
        "/v1/kernels/import",
        "kernel.import",
        "Imports a kernel from a file of the node",
        OPERATOR,
    )
    .takes::<ImportKernel>()
    .gives::<KernelView>(),
    on(
        AGENT,
        "POST",
        "/v1/kernels/fetch",
        "kernel.fetch",
        "Fetches the distribution's kernel",
        FLEET,
    )
    .streams(FETCH),
    on(AGENT, "GET", "/v1/images", "image.list", "Lists the images", FLEET)
        .gives::<Vec<ImageView>>(),
    on(
        AGENT,
        "POST",
        "/v1/images/fetch",
        "image.fetch",
        "Receives an image from another node",
        FLEET,
    )
    .takes::<FetchImage>()
    .gives::<FetchedImage>(),
    on(
        AGENT,
        "GET",
        "/v1/images/{digest}/manifest",
        "image.manifest",
        "Describes an image to a node that receives it",
        NODES,
    )
    .gives::<serde_json::Value>(),
    on(
        AGENT,
        "GET",
        "/v1/images/{digest}/parts/{part}",
        "image.part",
        "The bytes of a part of an image",
        NODES,
    )
    .query::<PartRange>()
    .octets(),
    on(AGENT, "POST", "/v1/images/gc", "image.gc", "Collects images that nothing uses", FLEET)
        .takes::<Gc>()
        .gives::<GcResult>(),
    on(
        AGENT,
        "GET",
        "/v1/node/status",
        "node.status",
        "Says what the node offers and holds",
        FLEET,
    )
    .gives::<NodeStatus>(),
    on(AGENT, "GET", "/v1/node/watch", "node.watch", "Streams it at every change", FLEET)
        .streams(STATUS),
    on(
        AGENT,
        "PUT",
        "/v1/node/document",
        "node.document",
        "Takes the fleet's document for the node",
        LEADER,
    )
    .takes::<NodeDocument>()
    .gives::<Done>(),
    on(
        AGENT,
        "PUT",
        "/v1/node/leader",
        "node.leader",
        "Takes the leader's word; lists the fleet's claims",
        LEADER,
    )
    .takes::<Leader>()
    .gives::<Vec<HeldClaim>>(),
    on(AGENT, "DELETE", "/v1/node/leader", "node.leave", "Leaves the fleet", OPERATOR)
        .gives::<Done>(),
    on(
        AGENT,
        "PUT",
        "/v1/node/claims/{id}",
        "claim.apply",
        "Serves a claim of the fleet, once",
        LEADER,
    )
    .takes::<NodeClaim>()
    .gives::<Claim>(),
    on(AGENT, "PUT", "/v1/node/claims/{id}/end", "claim.end", "Ends a claim of the fleet", LEADER)
        .takes::<Leader>()
        .gives::<Done>(),
    on(
        COORDINATOR,
        "GET",
        "/v1/coordinator",
        "coordinator.show",
        "Says what the coordinator is",
        MEMBER,
    )
    .gives::<CoordinatorInfo>(),
    on(COORDINATOR, "GET", "/v1/fleet", "fleet.show", "Shows the fleet's document", FLEET)
        .gives::<FleetState>(),
    on(
        COORDINATOR,
        "PUT",
        "/v1/fleet",
        "fleet.apply",
        "Puts a document of the fleet in force",
        FLEET,
    )
    .takes::<ApplyFleet>()
    .gives::<FleetPlan>(),
    on(COORDINATOR, "GET", "/v1/fleet/status", "fleet.status", "Says how far the fleet is", FLEET)
        .gives::<FleetStatus>(),
    on(COORDINATOR, "GET", "/v1/nodes", "node.list", "Lists the nodes", FLEET)
        .gives::<Vec<NodeView>>(),
    on(
        COORDINATOR,
        "POST",
        "/v1/nodes",
        "node.create",
        "Makes a node the fleet's, or says where it is",
        NODES,
    )
    .takes::<RegisterNode>()
    .gives::<NodeView>(),
    on(COORDINATOR, "GET", "/v1/nodes/{node}", "node.show", "Shows a node", FLEET)
        .gives::<NodeView>(),
    on(
        COORDINATOR,
        "DELETE",
        "/v1/nodes/{node}",
        "node.destroy",
        "Takes a node out of the fleet",
        FLEET,
    )
    .gives::<Done>(),
    on(
        COORDINATOR,
        "POST",
        "/v1/nodes/{node}/duty",
        "node.duty",
        "Drains, cordons or opens a node",
        FLEET,
    )
    .takes::<SetDuty>()
    .gives::<NodeView>(),
    on(SIGNER, "POST", "/v1/ca/join", "ca.join", "Makes the holder of a join token a node", JOINER)
        .takes::<SigningRequest>()
        .gives::<Signed>(),
    on(
        SIGNER,
        "POST",
        "/v1/ca/renew",
        "ca.renew",
        "Signs anew for the caller's own identity",
        MEMBER,
    )
    .takes::<SigningRequest>()
    .gives::<Signed>(),
    on(SIGNER, "GET", "/v1/ca/crl", "ca.crl", "The list of revoked certificates", MEMBER)
        .gives::<RevocationList>(),
    on(SIGNER, "POST", "/v1/ca/invites", "invite.create", "Makes a join token", OPERATOR)
        .takes::<Invite>()
        .gives::<Invitation>(),
    on(SIGNER, "GET", "/v1/ca/identities", "identity.list", "Lists who has certificates", FLEET)
        .gives::<Vec<IdentityView>>(),
    on(
        SIGNER,
        "POST",
        "/v1/ca/revoke",
        "ca.revoke",
        "Revokes an identity's certificates",
        OPERATOR,
    )
    .takes::<Revoke>()
    .gives::<RevocationList>(),
];
