//! Walks the table: every route with every role.

use crate::support::{HOUR, Lab, id, now};
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::routing::{MethodFilter, on};
use http_body_util::BodyExt;
use mvm_api::Problem;
use mvm_api::identity::{Facts, Identity, Role};
use mvm_api::routes::{ON_BEHALF_OF, ROUTES, Route, Scope, Server, find};
use mvm_clock::{Clock, ManualClock};
use mvm_model::Timestamp;
use mvm_server::{Peer, Routes, guard, signer};
use std::collections::BTreeSet;
use tower::ServiceExt;

/// Makes a router with every route of the table that this server serves. Each returns its caller.
fn everything(server: Server) -> Router {
    let mut routes = Routes::new();
    for route in ROUTES.iter().filter(|route| route.is_of(server)) {
        let method = route.method.parse::<axum::http::Method>().expect("a method");
        let filter = MethodFilter::try_from(method).expect("a method");
        let who = |ConnectInfo(peer): ConnectInfo<Peer>| async move { peer.holder() };
        routes = routes.route(route.path, on(filter, who));
    }
    guard(routes.into_router(), server, Clock::system())
}

fn holder_of(identity: Identity) -> Peer {
    let lab = Lab::new();
    let facts = Facts { identity, ..lab.credential("operator/any", HOUR).facts };
    Peer::Certificate { facts, revocations: lab.credentials("node/any").revocations() }
}

/// Returns an identity of this role. The tenant operator's tenant is `ci`.
fn one_of(role: Role) -> Identity {
    match role {
        Role::Node => id("node/x"),
        Role::Coordinator => id("coordinator/x"),
        Role::Operator => id("operator/x"),
        Role::TenantOperator => id("tenant-operator/ci/x"),
        Role::Joiner => id("joiner/x"),
    }
}

fn request(route: &Route, tenant: &str, peer: &Peer) -> Request {
    let path = route.path.replace("{tenant}", tenant).replace(['{', '}'], "");
    let mut request = Request::new(Body::empty());
    *request.method_mut() = route.method.parse().expect("a method");
    *request.uri_mut() = path.parse().expect("a path");
    request.extensions_mut().insert(ConnectInfo(peer.clone()));
    request
}

async fn answer(router: &Router, request: Request) -> (StatusCode, String) {
    let response = router.clone().oneshot(request).await.expect("an answer");
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    (head.status, String::from_utf8(body.to_vec()).expect("UTF-8"))
}

const SERVERS: [Server; 3] = [Server::Agent, Server::Coordinator, Server::Signer];

#[tokio::test]
async fn every_route_is_open_to_the_roles_that_the_table_names_and_to_no_other() {
    let mut walked = 0;
    for server in SERVERS {
        let router = everything(server);
        for route in ROUTES.iter().filter(|route| route.is_of(server)) {
            for role in Role::ALL {
                let peer = holder_of(one_of(role));
                let (status, body) = answer(&router, request(route, "ci", &peer)).await;
                walked += 1;
                if route.allows(role) {
                    assert_eq!(status, 200, "{role} {} {}: {body}", route.method, route.path);
                    assert_eq!(body, one_of(role).holder());
                } else {
                    let problem: Problem = serde_json::from_str(&body).expect("a problem");
                    assert_eq!((status.as_u16(), problem.code.as_str()), (403, "forbidden"));
                }
            }
        }
    }
    assert!(walked > 250, "{walked}");
}

#[tokio::test]
async fn a_tenant_operator_is_let_in_to_its_own_tenant_only() {
    let router = everything(Server::Agent);
    let peer = holder_of(one_of(Role::TenantOperator));
    for route in ROUTES.iter().filter(|route| route.is_of(Server::Agent)) {
        // The guard checks the tenant of every path that has one.
        let scoped = route.access.scope == Scope::Tenant;
        assert!(!route.path.contains("{tenant}") || scoped || !route.allows(Role::TenantOperator));
        assert!(!scoped || route.path.contains("{tenant}"), "{}", route.path);
        for other in ["lab", "ci%20", "c%69x", "CI", "ci%2f..", "%ff"] {
            let (status, body) = answer(&router, request(route, other, &peer)).await;
            assert!(!scoped || status == 403 || status == 400, "{other} {}: {body}", route.path);
        }
        if scoped {
            let own = request(route, "c%69", &peer);
            assert_eq!(answer(&router, own).await.0, 200, "however it is written");
        }
    }
}

#[tokio::test]
async fn processes_of_this_machine_are_operators_if_they_are_roots_or_ours() {
    let router = everything(Server::Agent);
    let route = find(Server::Agent, "POST", "/v1/agent/stop").expect("a route");
    let own = rustix::process::geteuid().as_raw();
    for (uid, status) in [(Some(0), 200), (Some(own), 200), (Some(own + 12_345), 403), (None, 403)]
    {
        let (found, _) = answer(&router, request(route, "ci", &Peer::Unix { uid })).await;
        assert_eq!(found, status, "{uid:?}");
    }
}

#[tokio::test]
async fn a_coordinator_may_ask_for_others_within_what_both_may() {
    let router = everything(Server::Agent);
    let coordinator = holder_of(one_of(Role::Coordinator));
    let ask = async |method: &str, path: &str, by: &Peer, whom: &str| {
        let route = find(Server::Agent, method, path).expect("a route");
        let mut request = request(route, "ci", by);
        request.headers_mut().insert(ON_BEHALF_OF, whom.parse().expect("a header"));
        answer(&router, request).await
    };
    let show = "/v1/tenants/{tenant}";
    let bob = |tenant: &str| id(&format!("tenant-operator/{tenant}/bob")).to_string();
    let (status, body) = ask("GET", show, &coordinator, &bob("ci")).await;
    assert_eq!((status.as_u16(), body.as_str()), (200, "tenant-operator:ci/bob"));
    assert_eq!(ask("GET", show, &coordinator, &bob("lab")).await.0, 403);
    // A coordinator may not do on an operator's behalf what it may not do itself.
    let alice = id("operator/alice").to_string();
    assert_eq!(ask("POST", "/v1/agent/stop", &coordinator, &alice).await.0, 403);
    assert_eq!(ask("GET", show, &coordinator, "rubbish").await.0, 400);
    // No other role may ask on behalf of others.
    for role in [Role::Operator, Role::TenantOperator, Role::Node, Role::Joiner] {
        assert_eq!(ask("GET", show, &holder_of(one_of(role)), &alice).await.0, 403);
    }
    assert_eq!(ask("GET", show, &Peer::Unix { uid: Some(0) }, &alice).await.0, 403);
}

#[tokio::test]
async fn what_is_not_in_the_table_is_not_served() {
    let stray = Routes::<()>::new()
        .route("/v1/agent", on(MethodFilter::GET.or(MethodFilter::DELETE), || async {}))
        .route("/v1/backdoor", on(MethodFilter::POST, || async {}));
    let words = stray.differences(Server::Agent, ()).await.join("\n");
    assert!(words.contains("DELETE /v1/agent is served and not in the table"), "{words}");
    assert!(words.contains("POST /v1/backdoor is served and not in the table"), "{words}");
    assert!(words.contains("GET /v1/tenants is in the table for Agent and not served"), "{words}");
    assert!(!words.contains("GET /v1/agent is"), "{words}");

    let stray = Router::new().route("/v1/backdoor", on(MethodFilter::POST, || async {}));
    let peer = holder_of(one_of(Role::Operator));
    let mut request = Request::new(Body::empty());
    *request.method_mut() = axum::http::Method::POST;
    *request.uri_mut() = "/v1/backdoor".parse().expect("a path");
    request.extensions_mut().insert(ConnectInfo(peer));
    let (status, body) = answer(&guard(stray, Server::Agent, Clock::system()), request).await;
    assert_eq!(status, 405, "{body}");
}

#[tokio::test]
async fn the_signer_serves_what_the_table_says() {
    let lab = Lab::new();
    let (credentials, clock) = (lab.credentials("coordinator/c1"), Clock::system());
    let routes = signer::routes::<()>(lab.signer.clone(), credentials, clock);
    let differences = routes.expect("routes").differences(Server::Signer, ()).await;
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// POST routes that take no key, with the reason: a repetition creates nothing twice.
const NO_KEY: &[(&str, &str)] = &[
    ("agent.probe", "the host is looked at again"),
    ("agent.stop", "it has ended"),
    ("pool.build", "a stream; what is built is named by its content"),
    ("pool.scale", "counts that are there"),
    ("pool.unexpose", "it is gone"),
    ("claim.create", "ends with its connection; a coordinator names the claim by the key"),
    ("instance.start", "a state"),
    ("instance.wake", "a state"),
    ("instance.warm", "a state"),
    ("instance.sleep", "a state"),
    ("instance.stop", "a state"),
    ("instance.stream", "ends with its connection"),
    ("job.submit", "a state of the job"),
    ("job.attach", "a state of the job, and a stream"),
    ("job.cancel", "a state of the job"),
    ("lease.extend", "a deadline from now on"),
    ("kernel.fetch", "a stream; what is fetched is named by its content"),
    ("image.fetch", "an image is named by its content"),
    ("image.gc", "it is gone"),
    ("audit.prune", "what is older is gone"),
    ("node.duty", "a state"),
    ("ca.join", "the token is good once, and the same key gets the same certificate"),
    ("ca.renew", "a certificate more for the same identity, which revoking takes as well"),
    ("ca.revoke", "it is revoked"),
];

#[test]
fn whatever_makes_something_does_so_once() {
    for route in ROUTES {
        let listed = NO_KEY.iter().any(|(operation, _)| *operation == route.operation);
        let makes = route.method == "POST";
        assert_eq!(makes, route.once || listed, "{}: say `once`, or why not", route.operation);
        assert!(!(route.once && listed), "{} does honour the key", route.operation);
        let json = matches!(route.shape.gives, mvm_api::routes::ResponseBody::Json(_));
        assert!(!route.once || json, "{}: what is kept is JSON", route.operation);
    }
    for (operation, _) in NO_KEY {
        assert!(ROUTES.iter().any(|route| route.operation == *operation), "{operation}");
    }
}

/// An invitation with a key is made once, and the store holds it only sealed.
#[tokio::test]
async fn an_invitation_with_a_key_is_the_same_one_and_is_kept_sealed() {
    let lab = Lab::new();
    let store = std::sync::Arc::new(mvm_store::SqliteStore::in_memory().expect("store"));
    let signer = Lab::signer_on(&lab.dir, store.clone());
    let (credentials, clock) = (lab.credentials("coordinator/c1"), Clock::system());
    let routes = signer::routes::<()>(signer.clone(), credentials, clock.clone());
    let app = guard(routes.expect("routes").into_router(), Server::Signer, clock);
    let alice = holder_of(one_of(Role::Operator));
    let invite = async |name: &str, key: &str| {
        let route = find(Server::Signer, "POST", "/v1/ca/invites").expect("a route");
        let mut request = request(route, "", &alice);
        let headers = request.headers_mut();
        headers.insert("content-type", "application/json".parse().expect("a header"));
        headers.insert("idempotency-key", key.parse().expect("a header"));
        let body = format!(r#"{{"name": "{name}", "ttl_s": 60, "addresses": ["127.0.0.1:1"]}}"#);
        *request.body_mut() = Body::from(body);
        answer(&app, request).await
    };
    let (status, first) = invite("n1", "k1").await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(invite("n1", "k1").await, (status, first.clone()));
    let (_, other) = invite("n1", "k2").await;
    assert_ne!(other, first, "another key, another token");
    assert_eq!(invite("n2", "k1").await.0, 422);
    let views = signer.identities(now()).await.expect("list");
    assert_eq!(views[0].certificates.len(), 2, "two tokens were made: {views:?}");
    let token: serde_json::Value = serde_json::from_str(&first).expect("JSON");
    let token = token["token"].as_str().expect("a token");
    for record in mvm_store::Store::list(&*store, "").await.expect("listed") {
        let text = String::from_utf8_lossy(&record.value).into_owned();
        assert!(!text.contains(&token[token.len() / 2..][..40]), "{}: {text}", record.key);
    }
}

/// Each server goes by the clock that it was given: here one day lies between two of them.
#[tokio::test]
async fn a_certificate_and_a_key_grow_old_by_the_clock_of_the_server_that_is_asked() {
    let lab = Lab::new();
    let clock = ManualClock::running();
    let app = |clock: Clock| {
        let credentials = lab.credentials("coordinator/c1");
        let routes = signer::routes::<()>(lab.signer.clone(), credentials, clock.clone());
        guard(routes.expect("routes").into_router(), Server::Signer, clock)
    };
    let (early, late) = (app(Clock::system()), app(clock.clock()));
    let invite = async |app: &Router, peer: &Peer, name: &str| {
        let route = find(Server::Signer, "POST", "/v1/ca/invites").expect("a route");
        let mut request = request(route, "", peer);
        let headers = request.headers_mut();
        headers.insert("content-type", "application/json".parse().expect("a header"));
        headers.insert("idempotency-key", "k1".parse().expect("a header"));
        let body = format!(r#"{{"name": "{name}", "ttl_s": 60, "addresses": ["127.0.0.1:1"]}}"#);
        *request.body_mut() = Body::from(body);
        answer(app, request).await.0
    };
    let (alice, root) = (holder_of(one_of(Role::Operator)), Peer::Unix { uid: Some(0) });
    for app in [&early, &late] {
        assert_eq!(invite(app, &alice, "n1").await, 200);
        assert_eq!(invite(app, &root, "n1").await, 200);
        assert_eq!(invite(app, &root, "n2").await, 422, "the key stands for another request");
    }
    clock.advance(HOUR * 25);
    assert_eq!(invite(&early, &alice, "n1").await, 200);
    assert_eq!(invite(&late, &alice, "n1").await, 401, "her certificate is good for an hour");
    assert_eq!(invite(&early, &root, "n2").await, 422);
    assert_eq!(invite(&late, &root, "n2").await, 200, "the key was forgotten");
}

#[test]
fn the_table_is_in_order() {
    let mut seen = BTreeSet::new();
    for route in ROUTES {
        let name = format!("{} {}", route.method, route.path);
        assert!(seen.insert(name.clone()), "{name} stands twice");
        assert!(!route.summary.is_empty() && !route.summary.ends_with('.'), "{name}");
        assert!(!route.access.roles.is_empty() && !route.access.servers.is_empty(), "{name}");
        let joins = route.path == "/v1/ca/join";
        // Joiners may read the API's description: it holds nothing that is not public.
        let joiners = joins || route.path == "/openapi.json";
        assert_eq!(route.allows(Role::Joiner), joiners, "{name}: a joiner joins, and nothing else");
        assert_eq!(route.allows(Role::Operator), !joins, "{name}: operators may do all");
    }
    assert!(now() > Timestamp::EPOCH);
}
