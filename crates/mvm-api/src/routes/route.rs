//! The type of a route.

use super::shape::Shape;
use crate::identity::Role;

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// An agent, on its Unix socket and its TLS addresses.
    Agent,
    /// A coordinator.
    Coordinator,
    /// A server that has the authority's key: a coordinator, or `mvm ca serve`.
    Signer,
}

/// How much of a route a tenant operator sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it: nothing in it belongs to one tenant.
    All,
    /// Requests about the operator's own tenant, which the path names as `{tenant}`.
    Tenant,
    /// What the handler lets through: it omits, or does not find, what belongs to another tenant.
    Narrowed,
}

/// The roles that may call a route, and the servers that serve it.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The roles that may call the route. Operators may call every route but `join`.
    pub roles: &'static [Role],
    /// How much of the route a tenant operator sees.
    pub scope: Scope,
    /// The servers that serve the route.
    pub servers: &'static [Server],
}

/// One route.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The HTTP method.
    pub method: &'static str,
    /// The path, in the router's syntax.
    pub path: &'static str,
    /// Noun and verb, such as `pool.build`: the name in the audit log and the API's description.
    pub operation: &'static str,
    /// What the route does, in one line.
    pub summary: &'static str,
    /// The roles that may call the route, and the servers that serve it.
    pub access: Access,
    /// The types of the request and the response.
    pub shape: Shape,
    /// Whether requests with the same `Idempotency-Key` create one thing.
    pub once: bool,
    /// Whether the route is called all the time and changes no record, whatever its method. The
    /// audit log omits its calls.
    pub routine: bool,
}

impl Route {
    /// Returns whether this server serves the route.
    pub fn is_of(&self, server: Server) -> bool {
        self.access.servers.contains(&server)
    }

    /// Returns whether this role may call the route.
    pub fn allows(&self, role: Role) -> bool {
        self.access.roles.contains(&role)
    }
}
