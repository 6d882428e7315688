//! The handlers of the API: the same routes as a node's, for all nodes together, and the fleet's own.

mod answer;
mod claims;
mod events;
mod fleet;
mod gather;
mod handler;
mod job_keys;
mod jobs;
mod nodes;
mod pools;
mod proxy;
mod ways;

use crate::Error;
use crate::state::{ClusterState, Lifecycle};
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use handler::Shared;
use mvm_api::paths;
use mvm_api::routes::Server;
use mvm_identity::tls::Credentials;
use mvm_server::{Idempotency, Routes, Signer, guard, openapi, signer};
use std::sync::Arc;

/// Returns the routes but for the signer's.
fn routes() -> Routes<Arc<ClusterState>> {
    let tenant = "/v1/tenants/{tenant}";
    let pool = "/v1/tenants/{tenant}/pools/{pool}";
    let instance = "/v1/tenants/{tenant}/pools/{pool}/instances/{id}";
    Routes::new()
        .route("/openapi.json", get(describe))
        .route("/v1/coordinator", get(fleet::coordinator))
        .route("/v1/fleet", get(fleet::show).put(fleet::apply))
        .route("/v1/fleet/status", get(fleet::status))
        .route("/v1/nodes", get(nodes::list).post(nodes::register))
        .route("/v1/nodes/{node}", get(nodes::show).delete(nodes::remove))
        .route("/v1/nodes/{node}/duty", post(nodes::set_duty))
        .route("/v1/tenants", get(pools::tenants))
        .route(tenant, get(pools::tenant))
        .route(&format!("{tenant}/pools"), get(pools::list_of_tenant))
        .route("/v1/pools", get(pools::list))
        .route(pool, get(pools::show))
        .route(&format!("{pool}/claims"), post(claims::claim))
        .route("/v1/jobs", get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::pass))
        .route("/v1/jobs/{id}/inputs", put(jobs::inputs))
        .route("/v1/jobs/{id}/submit", post(jobs::pass))
        .route("/v1/jobs/{id}/attach", post(jobs::pass))
        .route("/v1/jobs/{id}/cancel", post(jobs::pass))
        .route("/v1/jobs/{id}/wait", get(jobs::pass))
        .route("/v1/jobs/{id}/log", get(jobs::pass))
        .route("/v1/jobs/{id}/artifacts/{index}", get(jobs::pass))
        .route(&format!("{pool}/instances"), get(gather::of_pool))
        .route("/v1/instances", get(gather::instances))
        .route(instance, get(proxy::pass).delete(proxy::pass))
        .route(&format!("{instance}/start"), post(proxy::pass))
        .route(&format!("{instance}/wake"), post(proxy::pass))
        .route(&format!("{instance}/warm"), post(proxy::pass))
        .route(&format!("{instance}/sleep"), post(proxy::pass))
        .route(&format!("{instance}/stop"), post(proxy::pass))
        .route(&format!("{instance}/stream"), post(proxy::pass))
        .route(&format!("{instance}/logs"), get(proxy::pass))
        .route(&format!("{instance}/stats"), get(proxy::pass))
        .route(&format!("{instance}/ssh"), get(proxy::pass))
        .route("/v1/events", get(events::list))
        .route("/v1/events/stream", get(events::stream))
        .route("/v1/leases", get(gather::leases))
        .route("/v1/leases/{id}", delete(proxy::pass_lease))
        .route("/v1/leases/{id}/extend", post(proxy::pass_lease))
}

/// Returns the routes whose creates happen once by other means.
fn passed() -> Routes<Arc<ClusterState>> {
    Routes::new().route("/v1/tenants/{tenant}/pools/{pool}/jobs", post(jobs::create))
}

/// Returns the memory of what was made here, by idempotency key.
fn once(fleet: &ClusterState) -> Idempotency {
    let Lifecycle { started_at, clock, .. } = &fleet.lifecycle;
    let (store, started_at, clock) = (fleet.store.clone(), *started_at, clock.clone());
    Idempotency { store, server: Server::Coordinator, started_at, seal: None, clock }
}

/// Returns the router of the whole API.
pub fn router(
    fleet: Arc<ClusterState>,
    signer: Option<(Arc<Signer>, Arc<Credentials>)>,
) -> crate::Result<Router> {
    let (mut all, clock) = (routes().once(once(&fleet)), fleet.clock().clone());
    // A create that is passed on is remembered where it is made.
    all = all.merge(passed());
    if let Some((signer, credentials)) = signer {
        all = all.merge(signer::routes(signer, credentials, clock.clone())?);
    }
    let router = all.into_router().route_layer(from_fn_with_state(fleet.clone(), proxy::to_leader));
    let router = router.route_layer(from_fn_with_state(fleet.clone(), when_ready));
    Ok(guard(router.fallback(unknown).with_state(fleet), Server::Coordinator, clock))
}

async fn describe() -> Response {
    openapi::answer(Server::Coordinator)
}

async fn unknown(State(fleet): Shared, uri: axum::http::Uri) -> Error {
    if uri.path().starts_with("/v1/ca/") {
        return mvm_identity::Error::NotASigner(fleet.options.name.clone()).into();
    }
    Error::NoSuchRoute { path: uri.path().to_owned() }
}

/// Makes a request wait until the coordinator knows what it is asked about.
async fn when_ready(
    State(fleet): State<Arc<ClusterState>>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    // The coordinator's word about itself, and the authority, need no records.
    let own = matches!(route, paths::COORDINATOR | "/openapi.json") || route.starts_with("/v1/ca/");
    match if own { Ok(()) } else { fleet.lifecycle.readiness.wait().await } {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::extract::ConnectInfo;
    use mvm_api::Problem;
    use mvm_api::routes::{IDEMPOTENCY_KEY, Route};
    use mvm_model::{Code, hex};
    use mvm_server::Peer;
    use tower::ServiceExt;

    #[tokio::test]
    async fn every_route_is_in_the_table() {
        let fleet = crate::state::tests::lonely();
        let signers = mvm_api::routes::ROUTES.iter().filter(|r| r.is_of(Server::Signer));
        let signers: Vec<String> =
            signers.map(|route| format!("{} {} ", route.method, route.path)).collect();
        let mut differences =
            routes().merge(passed()).differences(Server::Coordinator, fleet).await;
        // The signer's routes are mounted where the authority's key is, and compared there.
        differences.retain(|told| !signers.iter().any(|route| told.starts_with(route.as_str())));
        assert_eq!(differences, [""; 0]);
    }

    /// Every route that creates something here checks the idempotency key first, except those that
    /// are passed on to a node, which checks it itself.
    #[tokio::test]
    async fn every_create_of_the_table_honours_its_key() {
        let fleet = crate::state::tests::lonely();
        let app = routes().once(once(&fleet)).merge(passed()).into_router();
        let clock = fleet.clock().clone();
        let app = guard(app.with_state(fleet.clone()), Server::Coordinator, clock.clone());
        let signers = |r: &Route| r.is_of(Server::Signer);
        let ours = |r: &&Route| r.once && r.is_of(Server::Coordinator) && !signers(r);
        let mut walked = Vec::new();
        for route in mvm_api::routes::ROUTES.iter().filter(ours) {
            let path = route.path.replace("{tenant}", "ci").replace("{pool}", "runners");
            let (digest, at) = (hex::sha256(b"{}"), clock.now());
            let kept = serde_json::json!({ "digest": digest, "at": at, "agent": 1 });
            let key = hex::sha256(["uid:0", &path, "k1"].join("\0").as_bytes());
            let key = format!("idempotency/{key}");
            let kept = crate::records::put(key, &kept, mvm_store::Expect::Any);
            fleet.store.commit(vec![kept]).await.expect("written");
            let request = Request::builder().method(route.method).uri(&path);
            let request = request.header("content-type", "application/json");
            let request = request.header(IDEMPOTENCY_KEY, "k1").body(Body::from("{}"));
            let mut request = request.expect("a request");
            request.extensions_mut().insert(ConnectInfo(Peer::Unix { uid: Some(0) }));
            let response = app.clone().oneshot(request).await.expect("an answer");
            let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.expect("a body");
            let problem: Problem = serde_json::from_slice(&body).expect("a problem document");
            walked.push((route.operation, problem.code));
        }
        // The pool does not exist, so no node is asked.
        let told =
            [("job.create", Code::NotFound), ("node.create", Code::IdempotencyOutcomeUnknown)];
        assert_eq!(walked, told.map(|(operation, code)| (operation, code.into())));
    }
}
