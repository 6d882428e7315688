//! The only table of routes: what each does, which servers serve it, and which roles may call it.
//!
//! A server's router looks up every request in it, tests walk it, and the API's description is made
//! of it. A route that is not in the table is not served.

mod builder;
mod route;
mod shape;
mod table;

pub use route::{Access, Route, Scope, Server};
pub use shape::{RequestBody, ResponseBody, SchemaOf, Sent, Shape};
pub use table::ROUTES;

/// The header that makes a repeated request create something only once
/// (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The header of a coordinator's request with the identity on whose behalf it asks.
pub const ON_BEHALF_OF: &str = "mvm-on-behalf-of";

/// Returns the route of this method and path on this server.
pub fn find(server: Server, method: &str, path: &str) -> Option<&'static Route> {
    // HEAD is GET without the body, so it has the same route.
    let method = if method == "HEAD" { "GET" } else { method };
    let fits = |route: &&Route| route.method == method && route.path == path;
    ROUTES.iter().find(|route| fits(route) && route.is_of(server))
}
