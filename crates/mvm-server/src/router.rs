//! A router that can be compared with the table of routes.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, header};
use axum::routing::MethodRouter;
use mvm_api::routes::{ROUTES, Server};
use std::collections::BTreeSet;
use tower::ServiceExt;

/// A router that lists its paths, so that it can be compared with the table.
pub struct Routes<S> {
    pub(crate) paths: Vec<String>,
    pub(crate) router: Router<S>,
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Routes { paths: Vec::new(), router: Router::new() }
    }
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// Makes a router without routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a route, as axum's router does.
    pub fn route(mut self, path: &str, methods: MethodRouter<S>) -> Self {
        self.paths.push(path.to_owned());
        Routes { router: self.router.route(path, methods), paths: self.paths }
    }

    /// Joins the routes of both.
    pub fn merge(mut self, other: Routes<S>) -> Self {
        self.paths.extend(other.paths);
        Routes { router: self.router.merge(other.router), paths: self.paths }
    }

    /// Gives the handlers their state. The routes can then be merged with those of other handlers.
    pub fn with_state<T>(self, state: S) -> Routes<T> {
        Routes { router: self.router.with_state(state), paths: self.paths }
    }

    /// Returns axum's router.
    pub fn into_router(self) -> Router<S> {
        self.router
    }

    /// Compares the router with the table's routes for this server, in both directions. Each
    /// difference says what to do. No handler is called.
    pub async fn differences(self, server: Server, state: S) -> Vec<String> {
        let router = self.router.with_state(state);
        let mut served = BTreeSet::new();
        for path in &self.paths {
            // No route takes TRACE, so the response lists the methods that the path takes.
            let mut request = Request::new(Body::empty());
            *request.method_mut() = Method::TRACE;
            *request.uri_mut() = path.replace(['{', '}'], "").parse().unwrap_or_default();
            let Ok(response) = router.clone().oneshot(request).await;
            let allowed = response.headers().get(header::ALLOW).and_then(|v| v.to_str().ok());
            let methods = allowed.unwrap_or_default().split(',').filter(|method| *method != "HEAD");
            served.extend(methods.map(|method| format!("{method} {path}")));
        }
        let listed = ROUTES.iter().filter(|route| route.is_of(server));
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
