//! The one table of routes: what each is for, who serves it, and which roles may call it.
//!
//! A server's router asks it for every request; tests walk it; the API's description is made of it. A
//! route that is not in it is not served.

mod builder;
mod route;
mod shape;
mod table;

pub use route::{Access, Route, Scope, Server};
pub use shape::{RequestBody, ResponseBody, SchemaOf, Sent, Shape};
pub use table::ROUTES;

/// The header that has the same create happen once (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// In a coordinator's request: the identity for which it asks.
pub const ON_BEHALF_OF: &str = "mvm-on-behalf-of";

/// The route of this method and path on this server.
pub fn find(server: Server, method: &str, path: &str) -> Option<&'static Route> {
    // HEAD is GET without the body.
    let method = if method == "HEAD" { "GET" } else { method };
    let fits = |route: &&Route| route.method == method && route.path == path;
    ROUTES.iter().find(|route| fits(route) && route.is_of(server))
}
