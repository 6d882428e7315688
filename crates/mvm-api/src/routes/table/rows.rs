//! Shorthands for the servers and roles in the table's rows.

use crate::identity::Role;
use crate::routes::route::{Access, Route, Scope, Server};
use crate::routes::shape::{RequestBody, ResponseBody, Shape};

pub(super) const AGENT: &[Server] = &[Server::Agent];

pub(super) const COORDINATOR: &[Server] = &[Server::Coordinator];

pub(super) const BOTH: &[Server] = &[Server::Agent, Server::Coordinator];

pub(super) const SIGNER: &[Server] = &[Server::Signer, Server::Coordinator];

pub(super) const OPERATOR: &[Role] = &[Role::Operator];

pub(super) const FLEET: &[Role] = &[Role::Operator, Role::Coordinator];

/// Roles for the leader's requests. An operator makes them by hand only on the node itself.
pub(super) const LEADER: &[Role] = &[Role::Operator, Role::Coordinator];

pub(super) const TENANT: &[Role] = &[Role::Operator, Role::Coordinator, Role::TenantOperator];

pub(super) const MEMBER: &[Role] =
    &[Role::Node, Role::Coordinator, Role::Operator, Role::TenantOperator];

pub(super) const NODES: &[Role] = &[Role::Node, Role::Coordinator, Role::Operator];

pub(super) const JOINER: &[Role] = &[Role::Joiner];

pub(super) const ANYBODY: &[Role] = &Role::ALL;

pub(super) const fn on(
    servers: &'static [Server],
    method: &'static str,
    path: &'static str,
    operation: &'static str,
    summary: &'static str,
    roles: &'static [Role],
) -> Route {
    let shape = Shape { takes: RequestBody::Nothing, query: None, gives: ResponseBody::Octets };
    let access = Access { roles, scope: Scope::All, servers };
    Route { method, path, operation, summary, access, shape, once: false, routine: false }
}

/// Sets how much of the route a tenant operator sees.
pub(super) const fn within(scope: Scope, route: Route) -> Route {
    Route { access: Access { scope, ..route.access }, ..route }
}

/// Begins a route about the tenant that the path names as `{tenant}`.
pub(super) const fn tenant(
    servers: &'static [Server],
    method: &'static str,
    path: &'static str,
    operation: &'static str,
    summary: &'static str,
) -> Route {
    within(Scope::Tenant, on(servers, method, path, operation, summary, TENANT))
}

/// Begins a route whose handler leaves out what belongs to other tenants.
pub(super) const fn narrowed(
    servers: &'static [Server],
    method: &'static str,
    path: &'static str,
    operation: &'static str,
    summary: &'static str,
) -> Route {
    within(Scope::Narrowed, on(servers, method, path, operation, summary, TENANT))
}
