//! The handlers of the API: from requests to operations and back.

mod audit;
mod desired;
mod events;
mod expose;
mod fleet;
mod handler;
mod identity;
mod images;
mod instances;
mod jobs;
mod leases;
mod network;
mod pools;
mod problem;
mod streams;
mod tenants;
#[cfg(test)]
mod tests;

use crate::agent::Agent;
use axum::extract::State;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use handler::{Answer, Refusal, Shared, detached, done};
use http_body_util::BodyExt;
use mvm_api::Problem;
use mvm_api::routes::Server;
use mvm_api::types::{AgentInfo, ProbeResult};
use mvm_model::Code;
use mvm_model::accelerator::Verdict;
use mvm_server::{Idempotency, Peer, Routes, TlsListener, guard, openapi};
use std::sync::Arc;
use tokio::net::UnixListener;

/// Serves the API on a Unix socket, forever.
pub async fn serve(listener: UnixListener, app: Router) -> std::io::Result<()> {
    axum::serve(listener, app.into_make_service_with_connect_info::<Peer>()).await
}

/// Serves the API to the holders of certificates, forever.
pub async fn serve_tls(listener: TlsListener, app: Router) -> std::io::Result<()> {
    axum::serve(listener, app.into_make_service_with_connect_info::<Peer>()).await
}

/// Returns the routes, with the access checks of the table of routes.
pub fn app(agent: Arc<Agent>) -> Router {
    let clock = agent.base.records.clock().clone();
    guard(router(agent), Server::Agent, clock)
}

fn router(agent: Arc<Agent>) -> Router {
    routes()
        .once(Idempotency {
            store: agent.base.records.store().clone(),
            server: Server::Agent,
            started_at: agent.process.started_at,
            seal: None,
            clock: agent.base.records.clock().clone(),
        })
        .into_router()
        .layer(from_fn_with_state(agent.clone(), audit::layer))
        .fallback(unknown)
        .with_state(agent)
}

fn routes() -> Routes<Arc<Agent>> {
    let pool = "/v1/tenants/{tenant}/pools/{pool}";
    let instance = "/v1/tenants/{tenant}/pools/{pool}/instances/{id}";
    Routes::new()
        .route("/openapi.json", get(describe))
        .route("/v1/agent", get(agent))
        .route("/v1/agent/probe", post(probe))
        .route("/v1/agent/stop", post(stop))
        .route("/v1/agent/crl", put(identity::revoke))
        .route("/v1/desired", get(desired::show).put(desired::apply))
        .route("/v1/desired/status", get(desired::status))
        .route("/v1/network", get(network::verify))
        .route("/v1/tenants", get(tenants::list).post(tenants::create))
        .route(
            "/v1/tenants/{tenant}",
            get(tenants::show).patch(tenants::update).delete(tenants::destroy),
        )
        .route("/v1/tenants/{tenant}/pools", get(pools::list_of_tenant).post(pools::create))
        .route("/v1/pools", get(pools::list))
        .route(pool, get(pools::show).patch(pools::update).delete(pools::destroy))
        .route(&format!("{pool}/build"), post(pools::build).delete(pools::cancel_build))
        .route(&format!("{pool}/scale"), post(pools::scale))
        .route(&format!("{pool}/revisions"), get(pools::revisions))
        .route(&format!("{pool}/rollback"), post(pools::rollback))
        .route(&format!("{pool}/claims"), post(streams::claim))
        .route(&format!("{pool}/expose"), post(expose::expose))
        .route(&format!("{pool}/unexpose"), post(expose::unexpose))
        .route("/v1/exposes", get(expose::list))
        .route(&format!("{pool}/instances"), get(instances::list_of_pool).post(instances::create))
        .route("/v1/instances", get(instances::list))
        .route(instance, get(instances::show).delete(instances::destroy))
        .route(&format!("{instance}/start"), post(instances::start))
        .route(&format!("{instance}/wake"), post(instances::wake))
        .route(&format!("{instance}/warm"), post(instances::warm))
        .route(&format!("{instance}/sleep"), post(instances::sleep))
        .route(&format!("{instance}/stop"), post(instances::stop))
        .route(&format!("{instance}/stream"), post(streams::guest))
        .route(&format!("{instance}/logs"), get(instances::logs))
        .route(&format!("{instance}/stats"), get(instances::stats))
        .route(&format!("{instance}/ssh"), get(instances::ssh))
        .merge(fleet::routes())
        .route(&format!("{pool}/jobs"), post(jobs::create))
        .route("/v1/jobs", get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::show))
        .route("/v1/jobs/{id}/inputs", put(jobs::inputs))
        .route("/v1/jobs/{id}/submit", post(jobs::submit))
        .route("/v1/jobs/{id}/attach", post(jobs::attach))
        .route("/v1/jobs/{id}/cancel", post(jobs::cancel))
        .route("/v1/jobs/{id}/wait", get(jobs::wait))
        .route("/v1/jobs/{id}/log", get(jobs::log))
        .route("/v1/jobs/{id}/artifacts/{index}", get(jobs::artifact))
        .route("/v1/events", get(events::list))
        .route("/v1/events/stream", get(events::stream))
        .route("/v1/audit", get(audit::list).post(audit::prune))
        .route("/v1/audit/{log}", get(audit::show))
        .route("/metrics", get(events::metrics))
        .route("/v1/leases", get(leases::list))
        .route("/v1/leases/{id}", delete(leases::release))
        .route("/v1/leases/{id}/extend", post(leases::extend))
        .route("/v1/kernels", get(images::kernels))
        .route("/v1/kernels/import", post(images::kernel_import))
        .route("/v1/kernels/fetch", post(images::kernel_fetch))
        .route("/v1/kernels/{kernel}", delete(images::kernel_remove))
        .route("/v1/images", get(images::list))
        .route("/v1/images/gc", post(images::gc))
        .route("/v1/images/fetch", post(images::fetch))
        .route("/v1/images/{digest}/manifest", get(images::manifest))
        .route("/v1/images/{digest}/parts/{part}", get(images::part))
}

async fn agent(State(agent): Shared) -> Json<AgentInfo> {
    let driver = agent.supplies.host.driver();
    let verdict = agent.supplies.accelerator.verdict();
    let shortfalls = agent.supplies.host.shortfalls();
    Json(AgentInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        root: agent.base.state_dir.path().display().to_string(),
        root_id: agent.base.state_dir.short_id().to_owned(),
        hypervisor: driver.name,
        hypervisor_version: driver.version,
        accelerator: driver.accelerator,
        accelerator_reason: verdict.reason,
        accelerator_standing: verdict.standing,
        accelerator_wanted: agent.supplies.accelerator.wanted(),
        simulated: driver.simulated,
        netns: agent.process.netns.clone(),
        started_at: agent.base.records.clock().wall_of(agent.process.started_at),
        instances: agent.base.records.read(|records| records.instances.len()),
        capacity: agent.supplies.host.capacity(),
        shortfalls: agent.base.records.read(|records| shortfalls.with(records)).all(),
        desired: agent.steering.desired.status(),
    })
}

async fn probe(State(agent): Shared) -> Answer<ProbeResult> {
    let (choice, host) = (agent.supplies.accelerator.clone(), agent.supplies.host.clone());
    let began = std::time::Instant::now();
    let probed = detached(async move { Ok(choice.probe().await) }).await?;
    let took_ms = began.elapsed().as_millis() as u64;
    let simulated = host.driver().simulated;
    let name = |verdict: &Verdict| match simulated {
        true => "none".to_owned(),
        false => verdict.accelerator.to_string(),
    };
    Ok(Json(ProbeResult {
        verdict: name(&probed.found),
        reason: probed.found.reason.clone(),
        took_ms,
        before: name(&probed.before),
        accelerator: name(&probed.after),
        accelerator_reason: probed.after.reason.clone(),
    }))
}

async fn stop(State(agent): Shared) -> Response {
    let asked = StopOnDrop(agent);
    // The response's body is dropped once it has been written; the agent must not stop earlier.
    done().into_response().map(|body| {
        axum::body::Body::new(body.map_frame(move |frame| {
            let _held = &asked;
            frame
        }))
    })
}

/// Stops the agent when this is dropped.
struct StopOnDrop(Arc<Agent>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.process.stop.notify_one();
    }
}

async fn describe() -> Response {
    openapi::answer(Server::Agent)
}

async fn unknown(uri: axum::http::Uri) -> Refusal {
    Refusal(Problem::new(Code::NoSuchRoute, format!("the API has no {}", uri.path())))
}
