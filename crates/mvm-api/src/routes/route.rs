//! What a route is.

use super::shape::Shape;
use crate::identity::Role;

/// Who serves a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// An agent, on its Unix socket and its TLS addresses.
    Agent,
    /// A coordinator.
    Coordinator,
    /// Whoever has the authority's key: a coordinator, or `mvm ca serve`.
    Signer,
}

/// What a tenant operator sees of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Nothing of it belongs to one tenant.
    All,
    /// What it is about is named in the path, as `{tenant}`: it must be the caller's own.
    Tenant,
    /// The handler leaves out of its answer, or does not find, what is another tenant's.
    Narrowed,
}

/// Who may call a route, and where.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Who may call it. Operators may call everything but `join`.
    pub roles: &'static [Role],
    /// What a tenant operator sees of it.
    pub scope: Scope,
    /// Who serves it.
    pub servers: &'static [Server],
}

/// One route.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The path, as the router has it.
    pub path: &'static str,
    /// Noun and verb, `pool.build`: what the audit log and the API's description call it.
    pub operation: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// Who may call it, and where.
    pub access: Access,
    /// What goes in and what comes out.
    pub shape: Shape,
    /// Whether the same `Idempotency-Key` makes the same thing.
    pub once: bool,
    /// Whether it is repeated all the time and writes nothing down, whatever its method: the audit log
    /// does not tell of it.
    pub routine: bool,
}

impl Route {
    /// Whether this server serves it.
    pub fn is_of(&self, server: Server) -> bool {
        self.access.servers.contains(&server)
    }

    /// Whether this role may call it.
    pub fn allows(&self, role: Role) -> bool {
        self.access.roles.contains(&role)
    }
}
