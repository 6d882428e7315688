//! The one table of routes: what each is for, who serves it, and which roles may call it.
//!
//! A server's router asks it ([`guard`]) for every request; tests walk it; the API's description is
//! made of it. A route that is not here is not served.

use crate::Problem;
use crate::identity::{Identity, Role, now};
use crate::peer::Peer;
use axum::RequestExt;
use axum::Router;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{MatchedPath, RawPathParams, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use mvm_model::Name;

/// In a coordinator's request: the identity for which it asks.
pub const ON_BEHALF_OF: &str = "mvm-on-behalf-of";

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

/// One route.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The path, as the router has it.
    pub path: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// Who may call it. Operators may call everything but `join`.
    pub roles: &'static [Role],
    /// What a tenant operator sees of it.
    pub scope: Scope,
    /// Who serves it.
    pub servers: &'static [Server],
}

const AGENT: &[Server] = &[Server::Agent];
const SIGNER: &[Server] = &[Server::Signer, Server::Coordinator];

const OPERATOR: &[Role] = &[Role::Operator];
const FLEET: &[Role] = &[Role::Operator, Role::Coordinator];
const TENANT: &[Role] = &[Role::Operator, Role::Coordinator, Role::TenantOperator];
const MEMBER: &[Role] = &[Role::Node, Role::Coordinator, Role::Operator, Role::TenantOperator];
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

impl Route {
    /// Whether this role may call it.
    pub fn allows(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// All routes.
pub const ROUTES: &[Route] = &[
    on(AGENT, "GET", "/v1/agent", "Says what the agent is and runs on", FLEET),
    on(AGENT, "POST", "/v1/agent/stop", "Ends the agent; no VM is touched", OPERATOR),
    on(AGENT, "PUT", "/v1/agent/crl", "Takes a newer list of revoked certificates", FLEET),
    on(AGENT, "GET", "/v1/desired", "Shows what the node holds as a document", FLEET),
    on(AGENT, "PUT", "/v1/desired", "Puts a document of desired state in force", FLEET),
    on(AGENT, "GET", "/v1/desired/status", "Says how far the document in force is", FLEET),
    narrowed(AGENT, "GET", "/v1/tenants", "Lists the tenants"),
    on(AGENT, "POST", "/v1/tenants", "Makes a tenant", FLEET),
    tenant(AGENT, "GET", "/v1/tenants/{tenant}", "Shows a tenant"),
    on(AGENT, "PATCH", "/v1/tenants/{tenant}", "Changes a tenant's quotas", FLEET),
    on(AGENT, "DELETE", "/v1/tenants/{tenant}", "Removes a tenant that holds nothing", FLEET),
    tenant(AGENT, "GET", "/v1/tenants/{tenant}/pools", "Lists a tenant's pools"),
    // Whoever chooses a flake runs programs on the node and puts its files into images: not a
    // tenant's business.
    on(AGENT, "POST", "/v1/tenants/{tenant}/pools", "Makes a pool", FLEET),
    narrowed(AGENT, "GET", "/v1/pools", "Lists the pools"),
    tenant(AGENT, "GET", "/v1/tenants/{tenant}/pools/{pool}", "Shows a pool"),
    on(AGENT, "PATCH", "/v1/tenants/{tenant}/pools/{pool}", "Changes a pool", FLEET),
    on(AGENT, "DELETE", "/v1/tenants/{tenant}/pools/{pool}", "Removes a pool", FLEET),
    on(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/build", "Builds a pool's image", FLEET),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/scale", "Says how many stand ready"),
    tenant(AGENT, "GET", "/v1/tenants/{tenant}/pools/{pool}/revisions", "Lists revisions"),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/rollback", "Takes an older revision"),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/claims", "Claims for a job"),
    tenant(AGENT, "GET", "/v1/tenants/{tenant}/pools/{pool}/instances", "Lists instances"),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances", "Makes an instance"),
    narrowed(AGENT, "GET", "/v1/instances", "Lists the instances of all pools"),
    tenant(AGENT, "GET", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}", "Shows one"),
    tenant(AGENT, "DELETE", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}", "Destroys one"),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/start", "Boots it"),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/wake", "Wakes it"),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/warm", "Pauses it"),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/sleep", "Sleeps it"),
    tenant(AGENT, "POST", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stop", "Stops it"),
    tenant(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stream",
        "Opens a stream to the guest's agent; wakes the instance",
    ),
    tenant(AGENT, "GET", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/logs", "Its console"),
    tenant(AGENT, "GET", "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stats", "Its use"),
    tenant(
        AGENT,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/ssh",
        "Says what OpenSSH needs to reach it",
    ),
    narrowed(AGENT, "GET", "/v1/events", "Lists what has happened"),
    narrowed(AGENT, "GET", "/v1/events/stream", "Streams what happens"),
    narrowed(AGENT, "GET", "/metrics", "Metrics in the OpenMetrics text format"),
    narrowed(AGENT, "GET", "/v1/leases", "Lists the leases"),
    narrowed(AGENT, "DELETE", "/v1/leases/{id}", "Ends a lease"),
    narrowed(AGENT, "POST", "/v1/leases/{id}/extend", "Gives a lease another length"),
    on(AGENT, "GET", "/v1/kernels", "Lists the kernels", FLEET),
    on(AGENT, "POST", "/v1/kernels/import", "Imports a kernel from a file of the node", OPERATOR),
    on(AGENT, "POST", "/v1/kernels/fetch", "Fetches the distribution's kernel", FLEET),
    on(AGENT, "GET", "/v1/images", "Lists the images", FLEET),
    on(AGENT, "POST", "/v1/images/gc", "Collects images that nothing uses", FLEET),
    on(SIGNER, "POST", "/v1/ca/join", "Makes the holder of a join token a node", JOINER),
    on(SIGNER, "POST", "/v1/ca/renew", "Signs anew for the caller's own identity", MEMBER),
    on(SIGNER, "GET", "/v1/ca/crl", "The list of revoked certificates", MEMBER),
    on(SIGNER, "POST", "/v1/ca/invites", "Makes a join token", OPERATOR),
    on(SIGNER, "GET", "/v1/ca/identities", "Lists who has certificates", FLEET),
    on(SIGNER, "POST", "/v1/ca/revoke", "Revokes an identity's certificates", OPERATOR),
];

/// The route of this method and path on this server.
pub fn find(server: Server, method: &str, path: &str) -> Option<&'static Route> {
    // HEAD is GET without the body.
    let method = if method == "HEAD" { "GET" } else { method };
    let fits = |route: &&Route| route.method == method && route.path == path;
    ROUTES.iter().find(|route| fits(route) && route.servers.contains(&server))
}

/// The router's routes, behind the table: who calls must be of a role that may, with a certificate
/// that still counts, and a tenant operator within its tenant.
pub fn guard(router: Router, server: Server) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| pass(server, request, next)))
}

async fn pass(server: Server, mut request: Request, next: Next) -> Response {
    let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<Peer>>().cloned() else {
        return Problem::internal("nobody knows who calls").into_response();
    };
    match admit(server, &peer, &mut request).await {
        Ok(asked) => {
            request.extensions_mut().insert(ConnectInfo(asked));
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// Whether the request is served, and for whom.
async fn admit(server: Server, peer: &Peer, request: &mut Request) -> Result<Peer, Problem> {
    peer.standing(now())?;
    let asked = on_behalf(peer, request)?;
    // What the router does not know it answers itself, with 404 or 405, whoever calls.
    let Some(path) = request.extensions().get::<MatchedPath>().cloned() else { return Ok(asked) };
    let method = request.method().as_str().to_owned();
    let Some(route) = find(server, &method, path.as_str()) else {
        let detail = format!("the API has no {method} {}", request.uri().path());
        return Err(Problem::new(405, "no_such_route", detail));
    };
    let tenant = match route.scope {
        Scope::Tenant => Some(tenant_of(request).await?),
        Scope::All | Scope::Narrowed => None,
    };
    allowed(route, peer, None)?;
    allowed(route, &asked, tenant.as_ref())?;
    Ok(asked)
}

/// For whom a coordinator asks; everybody else asks for themselves.
fn on_behalf(peer: &Peer, request: &Request) -> Result<Peer, Problem> {
    let Some(header) = request.headers().get(ON_BEHALF_OF) else { return Ok(peer.clone()) };
    let Some(Identity::Coordinator(by)) = peer.identity() else {
        let detail = format!("{} may ask for nobody else", peer.holder());
        return Err(Problem::new(403, "forbidden", detail));
    };
    let text = header.to_str().unwrap_or_default();
    Ok(Peer::Forwarded { identity: text.parse()?, by: by.clone() })
}

async fn tenant_of(request: &mut Request) -> Result<Name, Problem> {
    let parameters = request.extract_parts::<RawPathParams>().await;
    let parameters =
        parameters.map_err(|e| Problem::new(400, "invalid_reference", e.to_string()))?;
    let tenant = parameters.iter().find(|(name, _)| *name == "tenant").map(|(_, value)| value);
    Ok(tenant.unwrap_or_default().parse()?)
}

/// Whether this caller may use the route, about this tenant where it is about one.
fn allowed(route: &Route, peer: &Peer, tenant: Option<&Name>) -> Result<(), Problem> {
    let what = || format!("{} {}", route.method, route.path);
    if !peer.role().is_some_and(|role| route.allows(role)) {
        let roles: Vec<&str> = route.roles.iter().map(|role| role.as_str()).collect();
        let detail = format!("{} may not call {}", peer.holder(), what());
        return Err(Problem::new(403, "forbidden", detail)
            .hint(format!("that is for: {}", roles.join(", "))));
    }
    match tenant {
        Some(tenant) if !peer.sees(tenant) => {
            let detail = format!("{} may not touch what is of tenant {tenant}", peer.holder());
            Err(Problem::new(403, "forbidden", detail)
                .hint("a tenant operator is confined to the tenant that its certificate names"))
        }
        _ => Ok(()),
    }
}
