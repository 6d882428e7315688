//! The one table of routes: what each is for, who serves it, and which roles may call it.
//!
//! A server's router asks it ([`guard`]) for every request; tests walk it ([`Routes::differences`]);
//! the API's description is made of it. A route that is not in it is not served.

mod drain;
mod guard;
mod once;
mod request;
mod shape;
mod table;

pub use guard::{ON_BEHALF_OF, guard};
pub use once::{IDEMPOTENCY_KEY, Once, hex, key_of};
pub use request::{REQUEST_ID, RequestId};
pub use shape::{Gives, Maker, Sent, Takes};
pub use table::ROUTES;

use crate::identity::Role;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, header};
use axum::routing::MethodRouter;
use std::collections::BTreeSet;
use tower::ServiceExt;

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
    /// Noun and verb, `pool.build`: what the audit log and the API's description call it.
    pub operation: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// Who may call it. Operators may call everything but `join`.
    pub roles: &'static [Role],
    /// What a tenant operator sees of it.
    pub scope: Scope,
    /// Who serves it.
    pub servers: &'static [Server],
    /// The body of its requests.
    pub takes: Takes,
    /// The parameters after the `?`, an object's fields.
    pub query: Option<Maker>,
    /// What it answers where all is well.
    pub gives: Gives,
    /// Whether the same `Idempotency-Key` makes the same thing.
    pub once: bool,
    /// Whether it is repeated all the time and writes nothing down, whatever its method: the audit log
    /// does not tell of it.
    pub routine: bool,
}

impl Route {
    /// Whether this role may call it.
    pub fn allows(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// The route of this method and path on this server.
pub fn find(server: Server, method: &str, path: &str) -> Option<&'static Route> {
    // HEAD is GET without the body.
    let method = if method == "HEAD" { "GET" } else { method };
    let fits = |route: &&Route| route.method == method && route.path == path;
    ROUTES.iter().find(|route| fits(route) && route.servers.contains(&server))
}

/// A router that knows its paths, so that it can be compared with the table.
pub struct Routes<S> {
    paths: Vec<String>,
    router: Router<S>,
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Routes { paths: Vec::new(), router: Router::new() }
    }
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// No route.
    pub fn new() -> Self {
        Self::default()
    }

    /// As axum's.
    pub fn route(mut self, path: &str, methods: MethodRouter<S>) -> Self {
        self.paths.push(path.to_owned());
        Routes { router: self.router.route(path, methods), paths: self.paths }
    }

    /// The routes of both.
    pub fn merge(mut self, other: Routes<S>) -> Self {
        self.paths.extend(other.paths);
        Routes { router: self.router.merge(other.router), paths: self.paths }
    }

    /// With what the handlers get; the routes can then be merged with those of other handlers.
    pub fn with_state<T>(self, state: S) -> Routes<T> {
        Routes { router: self.router.with_state(state), paths: self.paths }
    }

    /// The router.
    pub fn into_router(self) -> Router<S> {
        self.router
    }

    /// What it has and the table says nothing of for this server, and the other way round, in words
    /// that say what to do. No handler is called.
    pub async fn differences(self, server: Server, state: S) -> Vec<String> {
        let router = self.router.with_state(state);
        let mut served = BTreeSet::new();
        for path in &self.paths {
            // No route takes TRACE: the answer lists the methods that it takes.
            let mut request = Request::new(Body::empty());
            *request.method_mut() = Method::TRACE;
            *request.uri_mut() = path.replace(['{', '}'], "").parse().unwrap_or_default();
            let Ok(response) = router.clone().oneshot(request).await;
            let allowed = response.headers().get(header::ALLOW).and_then(|v| v.to_str().ok());
            let methods = allowed.unwrap_or_default().split(',').filter(|method| *method != "HEAD");
            served.extend(methods.map(|method| format!("{method} {path}")));
        }
        let listed = ROUTES.iter().filter(|route| route.servers.contains(&server));
        let listed: BTreeSet<String> =
            listed.map(|route| format!("{} {}", route.method, route.path)).collect();
        let missing = served.difference(&listed).map(|route| {
            format!("{route} is served and not in the table: say in crates/mvm-api/src/routes/table who may call it")
        });
        let unserved = listed.difference(&served).map(|route| {
            format!("{route} is in the table for {server:?} and not served: give it a handler, or take it out")
        });
        missing.chain(unserved).collect()
    }
}
