//! The check before every handler: the caller's certificate is still valid, and the table allows
//! the caller's role this route, within the caller's tenant if it has one.

use crate::peer::Peer;
use crate::request;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{MatchedPath, RawPathParams, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::{RequestExt, Router};
use mvm_api::Problem;
use mvm_api::identity::Identity;
use mvm_api::routes::{ON_BEHALF_OF, Route, Scope, Server, find};
use mvm_clock::Clock;
use mvm_model::{Code, Name, Timestamp};

/// Puts the table's checks before the router's routes: the caller's role must be allowed, its
/// certificate must be valid by this clock, and a tenant operator stays within its tenant. Every
/// request gets an id.
pub fn guard(router: Router, server: Server, clock: Clock) -> Router {
    let check = move |request: Request, next: Next| pass(server, clock.wall(), request, next);
    let router = router.layer(from_fn(check));
    router.layer(from_fn(request::layer))
}

async fn pass(server: Server, wall: Timestamp, mut request: Request, next: Next) -> Response {
    let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<Peer>>().cloned() else {
        return Problem::internal("nobody knows who calls").into_response();
    };
    match admit(server, wall, &peer, &mut request).await {
        Ok(asked) => {
            request.extensions_mut().insert(ConnectInfo(asked));
            next.run(request).await
        }
        Err(problem) => {
            tracing::info!(who = peer.holder(), code = %problem.code, "refused: {problem}");
            problem.into_response()
        }
    }
}

/// Checks that the request may be served at this time, and returns the identity that it is served
/// for.
async fn admit(
    server: Server,
    wall: Timestamp,
    peer: &Peer,
    request: &mut Request,
) -> Result<Peer, Problem> {
    peer.standing(wall)?;
    let asked = on_behalf(peer, request)?;
    // The router itself answers unknown paths and methods with 404 or 405, whoever calls.
    let Some(path) = request.extensions().get::<MatchedPath>().cloned() else { return Ok(asked) };
    let method = request.method().as_str().to_owned();
    let Some(route) = find(server, &method, path.as_str()) else {
        let detail = format!("the API has no {method} {}", request.uri().path());
        return Err(Problem::new(Code::MethodNotAllowed, detail));
    };
    let tenant = match route.access.scope {
        Scope::Tenant => Some(tenant_of(request).await?),
        Scope::All | Scope::Narrowed => None,
    };
    allowed(route, peer, None)?;
    allowed(route, &asked, tenant.as_ref())?;
    Ok(asked)
}

/// Returns the identity on whose behalf a coordinator asks. All other callers ask for themselves.
fn on_behalf(peer: &Peer, request: &Request) -> Result<Peer, Problem> {
    let Some(header) = request.headers().get(ON_BEHALF_OF) else { return Ok(peer.clone()) };
    let Some(Identity::Coordinator(by)) = peer.identity() else {
        let detail = format!("{} may ask for nobody else", peer.holder());
        return Err(Problem::new(Code::Forbidden, detail));
    };
    let text = header.to_str().unwrap_or_default();
    Ok(Peer::Forwarded { identity: text.parse()?, by: by.clone() })
}

async fn tenant_of(request: &mut Request) -> Result<Name, Problem> {
    let parameters = request.extract_parts::<RawPathParams>().await;
    let parameters = parameters.map_err(|e| Problem::new(Code::InvalidReference, e.to_string()))?;
    let tenant = parameters.iter().find(|(name, _)| *name == "tenant").map(|(_, value)| value);
    Ok(tenant.unwrap_or_default().parse()?)
}

/// Checks that this caller may use the route, for this tenant where the path names one.
fn allowed(route: &Route, peer: &Peer, tenant: Option<&Name>) -> Result<(), Problem> {
    let what = || format!("{} {}", route.method, route.path);
    if !peer.role().is_some_and(|role| route.allows(role)) {
        let roles: Vec<&str> = route.access.roles.iter().map(|role| role.as_str()).collect();
        let detail = format!("{} may not call {}", peer.holder(), what());
        return Err(Problem::new(Code::Forbidden, detail)
            .hint(format!("that is for: {}", roles.join(", "))));
    }
    match tenant {
        Some(tenant) if !peer.sees(tenant) => {
            let detail = format!("{} may not touch what is of tenant {tenant}", peer.holder());
            Err(Problem::new(Code::Forbidden, detail)
                .hint("a tenant operator is confined to the tenant that its certificate names"))
        }
        _ => Ok(()),
    }
}
