//! Routes of the node: its agent, its document, images and kernels, and the calls of coordinators.

use super::rows::{AGENT, ANYBODY, BOTH, FLEET, LEADER, NODES, OPERATOR, narrowed, on};
use crate::fleet::{HeldClaim, Leader, NodeClaim, NodeDocument, RenewClaims};
use crate::query::PartRange;
use crate::routes::builder::schema_of;
use crate::routes::route::Route;
use crate::routes::shape::Sent;
use crate::types::*;
use mvm_model::desired::DesiredState;
use mvm_model::fleet::NodeStatus;

const STATUS: &[Sent] = &[("status", schema_of::<NodeStatus>), ("beat", schema_of::<Done>)];

pub(super) const ROUTES: &[Route] = &[
    on(AGENT, "GET", "/v1/agent", "agent.show", "Says what the agent is and runs on", FLEET)
        .gives::<AgentInfo>(),
    on(AGENT, "POST", "/v1/agent/probe", "agent.probe", "Tries again whether KVM works", OPERATOR)
        .gives::<ProbeResult>(),
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
    on(
        AGENT,
        "GET",
        "/v1/network",
        "network.verify",
        "Compares links, addresses and firewall rules with what they should be",
        FLEET,
    )
    .gives::<NetworkReport>(),
    on(BOTH, "GET", "/openapi.json", "api.show", "Describes the API", ANYBODY).document(),
    narrowed(AGENT, "GET", "/metrics", "metrics.show", "Metrics in the OpenMetrics text format")
        .metrics(),
    on(AGENT, "GET", "/v1/kernels", "kernel.list", "Lists the kernels", FLEET)
        .lists::<KernelView>(),
    on(
        AGENT,
        "POST",
        "/v1/kernels/import",
        "kernel.import",
        "Imports a kernel from a file of the node",
        OPERATOR,
    )
    .takes::<ImportKernel>()
    .gives::<KernelView>()
    .once(),
    on(
        AGENT,
        "POST",
        "/v1/kernels/fetch",
        "kernel.fetch",
        "Fetches the distribution's kernel",
        FLEET,
    )
    .reports::<KernelView>(),
    on(
        AGENT,
        "DELETE",
        "/v1/kernels/{kernel}",
        "kernel.remove",
        "Removes a kernel that no pool names",
        OPERATOR,
    )
    .gives::<KernelView>(),
    on(AGENT, "GET", "/v1/images", "image.list", "Lists the images", FLEET).lists::<ImageView>(),
    on(
        AGENT,
        "POST",
        "/v1/images/fetch",
        "image.fetch",
        "Receives an image from another node",
        FLEET,
    )
    .takes::<FetchImage>()
    .reports::<FetchedImage>(),
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
        "/v1/node/claims",
        "claim.renew",
        "Says that the clients of these claims are there",
        LEADER,
    )
    .takes::<RenewClaims>()
    .gives::<Vec<String>>()
    .routine(),
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
];
