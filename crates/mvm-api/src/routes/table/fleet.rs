//! Routes of the fleet, its nodes and its authority.

use super::rows::{COORDINATOR, FLEET, JOINER, MEMBER, NODES, OPERATOR, SIGNER, on};
use crate::fleet::*;
use crate::query::StatusOptions;
use crate::routes::route::Route;
use crate::types::*;
use mvm_model::fleet::FleetState;

pub(super) const ROUTES: &[Route] = &[
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
        .query::<StatusOptions>()
        .gives::<FleetStatus>(),
    on(COORDINATOR, "GET", "/v1/nodes", "node.list", "Lists the nodes", FLEET).lists::<NodeView>(),
    on(
        COORDINATOR,
        "POST",
        "/v1/nodes",
        "node.create",
        "Makes a node the fleet's, or says where it is",
        NODES,
    )
    .takes::<RegisterNode>()
    .gives::<NodeView>()
    .once(),
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
        .gives::<Invitation>()
        .once(),
    on(SIGNER, "GET", "/v1/ca/identities", "identity.list", "Lists who has certificates", FLEET)
        .lists::<IdentityView>(),
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
