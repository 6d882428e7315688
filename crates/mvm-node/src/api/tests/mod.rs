//! Tests of the agent's router: against the table of routes, and with the view of a tenant
//! operator.

mod broken;
mod clocks;
mod pages;
mod processors;
mod refusals;
mod resume;
mod shortfalls;

use super::{app, routes, stop};
use crate::agent::{Agent, AgentParts, AgentSettings};
use crate::simulated::SimulatedGuest;
use crate::stages::Stages;
use crate::state_dir::StateDir;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use http_body_util::BodyExt;
use mvm_api::routes::{ROUTES, Server};
use mvm_clock::ManualClock;
use mvm_hypervisor::sim::{Latencies, SimHypervisor};
use mvm_image::{GuestBinary, ImageStore};
use mvm_model::hex;
use mvm_model::{Instance, Job, Pool, Tenant};
use mvm_network::Network;
use mvm_server::Peer;
use mvm_store::SqliteStore;
use serde_json::{Value, json};
use std::sync::Arc;
use tempfile::TempDir;
use tower::ServiceExt;

/// Makes an agent without machines, with a clock of its own, and records of two tenants: `ci` and
/// `lab` have a pool and a leased instance each.
async fn agent() -> (TempDir, Arc<Agent>) {
    let dir = tempfile::tempdir().expect("directory");
    let root = StateDir::open(dir.path()).expect("root");
    let images = ImageStore::open(root.path(), GuestBinary::new(b"")).expect("images");
    let kept = root.path().join("sim");
    let sim = SimHypervisor::open(Latencies::NONE, Arc::new(SimulatedGuest::default()), &kept)
        .expect("sim");
    let network = Network::open(root.short_id()).expect("netlink");
    let parts = AgentParts {
        state_dir: root,
        store: Arc::new(SqliteStore::in_memory().expect("store")),
        hypervisor: Arc::new(sim),
        network: Arc::new(network),
        images,
        credentials: None,
        stages: Stages::default(),
        settings: AgentSettings::of_tests(None, dir.path().join("pressure")),
    };
    let agent = Agent::open(parts, ManualClock::running().clock()).await.expect("agent");
    for (number, tenant) in ["ci", "lab"].iter().enumerate() {
        seed(&agent, tenant, number as u32).await;
    }
    (dir, agent)
}

async fn seed(agent: &Agent, tenant: &str, number: u32) {
    let resources = json!({ "vcpus": 1, "mem_mib": 128, "data_disk_mib": 0 });
    let record = json!({
        "name": tenant, "created_at": 1,
        "network": { "tenant_net_id": number, "ipv4_subnet": format!("10.77.{number}.0/24") },
        "quotas": mvm_model::Quotas::default(),
    });
    let tenant_record: Tenant = serde_json::from_value(record).expect("a tenant");
    let reference = format!("{tenant}/runners");
    let record = json!({
        "reference": reference, "flake_ref": "/flake", "profile": "p", "created_at": 1,
        "resources": resources, "revisions": [], "recycle": "keep",
    });
    let pool: Pool = serde_json::from_value(record).expect("a pool");
    let record = json!({
        "id": format!("i-0000000{number}"), "pool": reference, "state": "running",
        "revision": "0".repeat(64), "resources": resources, "address": format!("10.77.{number}.2"),
        "mac": "02:00:00:00:00:01", "created_at": 1, "state_since": 1,
        "lease": {
            "id": format!("l-0000000{number}"), "holder": format!("operator:{tenant}"),
            "purpose": "manual", "since": 1, "expires_at": u64::MAX / 2,
        },
    });
    let instance: Instance = serde_json::from_value(record).expect("an instance");
    let record = json!({
        "id": format!("j-0000000{number}"), "pool": reference, "state": "succeeded",
        "spec": { "argv": ["true"] }, "holder": format!("operator:{tenant}"),
        "created_at": 1, "ended_at": 2,
    });
    let job: Job = serde_json::from_value(record).expect("a job");
    let done = agent.base.records.change(|_, changes| {
        changes.put_tenant(tenant_record);
        changes.put_job(job);
        changes.put_pool(pool);
        changes.put_instance(instance);
        Ok(())
    });
    done.await.expect("written");
}

fn bob() -> Peer {
    let identity = "spiffe://mvm/tenant-operator/ci/bob".parse().expect("an identity");
    Peer::Forwarded { identity, by: "c1".parse().expect("a name") }
}

async fn ask(app: &Router, method: &str, path: &str, peer: &Peer) -> (u16, String) {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("content-type", "application/json");
    let body = Body::from(r#"{"lease_s": 60}"#);
    let mut request = request.body(body).expect("a request");
    request.extensions_mut().insert(ConnectInfo(peer.clone()));
    let response = app.clone().oneshot(request).await.expect("an answer");
    let (head, body) = response.into_parts();
    let mut bytes = Vec::new();
    let mut body = body;
    // A stream that does not end is read for what it holds already.
    while let Ok(Some(Ok(frame))) =
        tokio::time::timeout(std::time::Duration::from_millis(300), body.frame()).await
    {
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
    }
    (head.status.as_u16(), String::from_utf8(bytes).expect("UTF-8"))
}

#[tokio::test]
async fn the_router_and_the_table_have_the_same_routes() {
    let (_dir, agent) = agent().await;
    let differences = routes().differences(Server::Agent, agent).await;
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}

#[tokio::test]
async fn a_tenant_operator_sees_what_is_of_its_own_tenant() {
    let (_dir, agent) = agent().await;
    let app = app(agent);
    let root = Peer::Unix { uid: Some(0) };
    for path in [
        "/v1/tenants",
        "/v1/pools",
        "/v1/instances",
        "/v1/instances?tenant=lab",
        "/v1/jobs",
        "/v1/leases",
        "/v1/events",
        "/v1/events?tenant=lab",
        "/v1/events/stream",
        "/v1/audit",
        "/metrics",
    ] {
        let (status, seen) = ask(&app, "GET", path, &bob()).await;
        assert_eq!(status, 200, "{path}: {seen}");
        assert!(!seen.contains("lab") && !seen.contains("10.77.1"), "{path}: {seen}");
        let (status, all) = ask(&app, "GET", path, &root).await;
        assert_eq!(status, 200, "{path}: {all}");
        // The other tenant's items exist, so an answer that is always empty would be noticed.
        let silent = path == "/v1/audit";
        assert!(silent || all.contains("lab"), "{path}: {all}");
        assert!(silent || path.ends_with("=lab") || seen.contains("ci"), "{path}: {seen}");
    }
}

#[tokio::test]
async fn a_tenant_operator_touches_what_is_of_its_own_tenant() {
    let (_dir, agent) = agent().await;
    let app = app(agent);
    for (method, path) in [
        ("DELETE", "/v1/leases/l-00000001"),
        ("POST", "/v1/leases/l-00000001/extend"),
        ("GET", "/v1/audit/lab"),
        ("GET", "/v1/audit/_node"),
    ] {
        let (status, body) = ask(&app, method, path, &bob()).await;
        assert_eq!(status, 404, "another's is not there: {method} {path}: {body}");
    }
    for path in ["", "/pools", "/pools/runners", "/pools/runners/instances/i-00000001"] {
        let (status, _) = ask(&app, "GET", &format!("/v1/tenants/lab{path}"), &bob()).await;
        assert_eq!(status, 403);
        // Another tenant's instance cannot be reached through one's own tenant's path, either.
        let (status, body) = ask(&app, "GET", &format!("/v1/tenants/ci{path}"), &bob()).await;
        assert_eq!(status, if path.ends_with("i-00000001") { 404 } else { 200 }, "{body}");
    }
    let (status, body) = ask(&app, "POST", "/v1/leases/l-00000000/extend", &bob()).await;
    assert_eq!(status, 200, "{body}");
    let leases: Value =
        serde_json::from_str(&ask(&app, "GET", "/v1/leases", &bob()).await.1).expect("JSON");
    assert_eq!(leases[0]["holder"], "operator:ci");
    let root = Peer::Unix { uid: Some(0) };
    let (_, all) = ask(&app, "GET", "/v1/leases", &root).await;
    assert!(all.contains("l-00000001"), "and nothing was touched: {all}");
}

#[tokio::test]
async fn a_request_s_id_is_in_the_answer_the_problem_and_the_audit_log() {
    let (_dir, agent) = agent().await;
    let app = app(agent.clone());
    let request = Request::builder().method("POST").uri("/v1/tenants/ci/pools/none/scale");
    let request = request.header("x-request-id", "build-7");
    let request = request.header("content-type", "application/json");
    let mut request = request.body(Body::from("{}")).expect("a request");
    request.extensions_mut().insert(ConnectInfo(Peer::Unix { uid: Some(0) }));
    let response = app.oneshot(request).await.expect("an answer");
    assert_eq!(response.headers()["x-request-id"], "build-7");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let problem: Value = serde_json::from_slice(&body).expect("a problem document");
    assert_eq!(
        (&problem["code"], &problem["request_id"]),
        (&json!("not_found"), &json!("build-7"))
    );
    let logs = agent.base.audit.files("ci");
    let text = std::fs::read_to_string(&logs[0]).expect("the log of ci");
    let told = text.lines().filter(|line| line.contains(r#""request":"build-7""#));
    assert!(told.clone().count() > 0, "{text}");
    assert!(text.contains(r#""verb":"pool.scale""#), "{text}");
}

#[tokio::test]
async fn what_the_router_refuses_by_itself_is_a_problem_document() {
    let (_dir, agent) = agent().await;
    let app = app(agent);
    let root = Peer::Unix { uid: Some(0) };
    for (method, path, status) in [
        ("PUT", "/v1/tenants", 405),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/instances?tenant=No", 400),
        ("GET", "/v1/instances?nobody=1", 400),
        ("GET", "/v1/jobs/j-00000000/artifacts/many", 400),
        ("GET", "/v1/tenants/%ff", 400),
    ] {
        let (answered, body) = ask(&app, method, path, &root).await;
        let problem: Value = serde_json::from_str(&body).unwrap_or_default();
        assert_eq!((answered, &problem["status"]), (status, &json!(status)), "{path}: {body}");
        assert!(problem["request_id"].is_string(), "{path}: {body}");
    }
}

#[tokio::test]
async fn the_agent_describes_what_it_serves() {
    let (_dir, agent) = agent().await;
    let (status, body) = ask(&app(agent), "GET", "/openapi.json", &bob()).await;
    let shown: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &shown["openapi"]), (200, &json!("3.1.0")));
    assert!(shown["paths"]["/v1/agent"]["get"].is_object());
    assert!(shown["paths"]["/v1/fleet"].is_null(), "that is a coordinator's");
}

/// Requests the tenant `name` with this idempotency key; returns status and body.
async fn create_tenant(app: &Router, name: &str, key: &str) -> (u16, Value) {
    let request = Request::builder().method("POST").uri("/v1/tenants");
    let request = request.header("content-type", "application/json");
    let request = request.header("idempotency-key", key).body(Body::from(tenant_body(name)));
    let mut request = request.expect("a request");
    request.extensions_mut().insert(ConnectInfo(Peer::Unix { uid: Some(0) }));
    let response = app.clone().oneshot(request).await.expect("an answer");
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&bytes).expect("JSON"))
}

/// Returns a tenant with the net id of `ci`, so that creating it is refused.
fn tenant_body(name: &str) -> String {
    let network = json!({ "tenant_net_id": 0, "ipv4_subnet": "10.77.0.0/24" });
    json!({ "name": name, "network": network }).to_string()
}

/// Every route that creates something checks the key before anything else.
#[tokio::test]
async fn every_create_of_the_table_honours_its_key() {
    let (_dir, agent) = agent().await;
    let app = app(agent.clone());
    let body = r#"{"lease_s": 60}"#;
    let routes = ROUTES.iter().filter(|r| r.once && r.is_of(Server::Agent));
    let mut walked = 0;
    for route in routes {
        let path = route.path.replace("{tenant}", "ci").replace("{pool}", "runners");
        let (digest, at) = (hex::sha256(body.as_bytes()), agent.base.records.clock().now());
        let kept = json!({ "digest": digest, "at": at, "agent": 1 });
        let key = hex::sha256(["uid:0", &path, "k1"].join("\0").as_bytes());
        let write = mvm_store::Write::Put {
            key: format!("idempotency/{key}"),
            value: serde_json::to_vec(&kept).expect("JSON"),
            expect: mvm_store::Expect::Any,
        };
        agent.base.records.store().commit(vec![write]).await.expect("written");
        let request = Request::builder().method(route.method).uri(&path);
        let request = request.header("content-type", "application/json");
        let request = request.header("idempotency-key", "k1").body(Body::from(body));
        let mut request = request.expect("a request");
        request.extensions_mut().insert(ConnectInfo(Peer::Unix { uid: Some(0) }));
        let response = app.clone().oneshot(request).await.expect("an answer");
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let problem: Value = serde_json::from_slice(&body).expect("a problem document");
        assert_eq!(problem["code"], "idempotency_outcome_unknown", "{path}: {problem}");
        walked += 1;
    }
    assert!(walked >= 5, "{walked}");
}

#[tokio::test]
async fn a_create_with_a_key_happens_once() {
    let (_dir, agent) = agent().await;
    let (app, at) = (app(agent.clone()), agent.base.records.clock().now());
    let kept = |key: &str, agent: u64, answer: Option<&str>| mvm_store::Write::Put {
        key: format!(
            "idempotency/{}",
            hex::sha256(["uid:0", "/v1/tenants", key].join("\0").as_bytes())
        ),
        value: serde_json::to_vec(&json!({
            "digest": hex::sha256(tenant_body("new").as_bytes()),
            "at": at, "agent": agent, "answer": answer,
        }))
        .expect("JSON"),
        expect: mvm_store::Expect::Any,
    };
    let writes = vec![
        kept("made", 1, Some(r#"{"tenant_id":"new"}"#)),
        kept("dead", 1, None),
        kept("busy", agent.process.started_at.as_millis(), None),
    ];
    agent.base.records.store().commit(writes).await.expect("written");
    for (name, key, status, code) in [
        ("new", "dead", 409, "idempotency_outcome_unknown"),
        ("new", "busy", 409, "idempotency_key_in_use"),
        ("newer", "busy", 422, "idempotency_key_reused"),
        ("newer", "made", 422, "idempotency_key_reused"),
        ("new", "", 400, "invalid_value"),
    ] {
        let (answered, body) = create_tenant(&app, name, key).await;
        assert_eq!((answered, &body["code"]), (status, &json!(code)), "{key}: {body}");
    }
    assert_eq!(create_tenant(&app, "new", "made").await, (200, json!({ "tenant_id": "new" })));
    // A refused request frees its key, for any body.
    for name in ["new", "newer"] {
        let (status, body) = create_tenant(&app, name, "free").await;
        assert!(status == 409 && !body["code"].to_string().contains("idempotency"), "{body}");
    }
    assert_eq!(agent.base.records.store().list("idempotency/").await.expect("listed").len(), 3);
}

/// The caller that stops the agent gets a response first, however long the audit log takes.
#[tokio::test]
async fn the_agent_ends_when_its_answer_is_written() {
    let (_dir, agent) = agent().await;
    let stopping = agent.process.stop.notified();
    tokio::pin!(stopping);
    let response = stop(State(agent.clone())).await;
    assert!(futures::poll!(stopping.as_mut()).is_pending(), "nobody has the answer yet");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(&body[..], b"{}");
    stopping.await;
}
