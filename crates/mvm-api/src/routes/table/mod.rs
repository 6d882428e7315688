//! The table itself, a file a subject. A new route of a router gets a line in one of them.

mod fleet;
mod instances;
mod jobs;
mod node;
mod tenants;

use super::shape::{RequestBody, ResponseBody, Shape};
use super::{Access, Route, Scope, Server};
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
const JOINER: &[Role] = &[Role::Joiner];

const ANYBODY: &[Role] = &Role::ALL;

const fn on(
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

/// The same, where a tenant operator sees this much of it.
const fn within(scope: Scope, route: Route) -> Route {
    Route { access: Access { scope, ..route.access }, ..route }
}

/// One about what the path's `{tenant}` owns.
const fn tenant(
    servers: &'static [Server],
    method: &'static str,
    path: &'static str,
    operation: &'static str,
    summary: &'static str,
) -> Route {
    within(Scope::Tenant, on(servers, method, path, operation, summary, TENANT))
}

/// One where the handler narrows down what a tenant operator sees.
const fn narrowed(
    servers: &'static [Server],
    method: &'static str,
    path: &'static str,
    operation: &'static str,
    summary: &'static str,
) -> Route {
    within(Scope::Narrowed, on(servers, method, path, operation, summary, TENANT))
}

/// All routes.
pub const ROUTES: &[Route] = &joined::<{ count(PARTS) }>(PARTS);

const PARTS: &[&[Route]] =
    &[node::ROUTES, tenants::ROUTES, instances::ROUTES, jobs::ROUTES, fleet::ROUTES];

const fn count(parts: &[&[Route]]) -> usize {
    let (mut count, mut part) = (0, 0);
    while part < parts.len() {
        count += parts[part].len();
        part += 1;
    }
    count
}

/// The parts one behind the other; `N` is how many routes they have.
const fn joined<const N: usize>(parts: &[&[Route]]) -> [Route; N] {
    let mut all = [parts[0][0]; N];
    let (mut at, mut part) = (0, 0);
    while part < parts.len() {
        let mut route = 0;
        while route < parts[part].len() {
            all[at] = parts[part][route];
            at += 1;
            route += 1;
        }
        part += 1;
    }
    all
}
