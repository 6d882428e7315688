//! Handlers of coordinators' requests.

use super::handler::{Answer, Body, Done, Refusal, Shared, detached, done};
use crate::agent::Agent;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use axum::routing::{get, put};
use futures::Stream;
use mvm_api::fleet::{HeldClaim, Leader, NodeClaim, NodeDocument, RenewClaims};
use mvm_api::types::Claim;
use mvm_model::LeaseId;
use mvm_model::fleet::NodeStatus;
use mvm_server::Routes;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often a node reports when nothing changes.
const BEAT: Duration = Duration::from_secs(2);
/// How long changes are gathered before they are reported.
const GATHER: Duration = Duration::from_millis(20);

/// Returns the routes for coordinators.
pub fn routes() -> Routes<Arc<Agent>> {
    Routes::new()
        .route("/v1/node/status", get(status))
        .route("/v1/node/watch", get(watch))
        .route("/v1/node/document", put(document))
        .route("/v1/node/leader", put(leader).delete(leave))
        .route("/v1/node/claims", put(renew))
        .route("/v1/node/claims/{id}", put(claim))
        .route("/v1/node/claims/{id}/end", put(release))
}

async fn status(State(agent): Shared) -> Answer<NodeStatus> {
    Ok(Json(agent.steering.fleet_status.report()?))
}

/// Sends the reports of one watch: `status` if the status has changed since the last one, otherwise
/// `beat`.
struct StatusReporter {
    agent: Arc<Agent>,
    seen: watch::Receiver<u64>,
    last_sent: String,
}

async fn watch(
    State(agent): Shared,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let reporter =
        StatusReporter { seen: agent.base.records.subscribe(), agent, last_sent: String::new() };
    let stream = futures::stream::unfold(reporter, |mut reporter| async {
        if !reporter.last_sent.is_empty() {
            let _ = tokio::time::timeout(BEAT, reporter.seen.changed()).await;
            tokio::time::sleep(GATHER).await;
            reporter.seen.mark_unchanged();
        }
        let status = reporter.agent.steering.fleet_status.report().ok()?;
        let text = serde_json::to_string(&status).ok()?;
        let event = match text == reporter.last_sent {
            true => Event::default().event("beat").data("{}"),
            false => Event::default().event("status").data(&text),
        };
        reporter.last_sent = text;
        Some((Ok(event), reporter))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

async fn document(State(agent): Shared, Body(body): Body<NodeDocument>) -> Answer<Done> {
    agent.steering.fleet.take_document(body).await?;
    Ok(done())
}

async fn leader(State(agent): Shared, Body(leader): Body<Leader>) -> Answer<Vec<HeldClaim>> {
    Ok(Json(agent.steering.fleet.led(&leader).await?))
}

async fn leave(State(agent): Shared) -> Answer<Done> {
    agent.steering.fleet.leave().await?;
    Ok(done())
}

async fn renew(State(agent): Shared, Body(claims): Body<RenewClaims>) -> Answer<Vec<LeaseId>> {
    Ok(Json(agent.steering.fleet.renew(&claims).await?))
}

async fn claim(
    State(agent): Shared,
    Path(id): Path<String>,
    Body(body): Body<NodeClaim>,
) -> Answer<Claim> {
    Ok(Json(detached(async move { agent.steering.fleet.claim(&id, body).await }).await?))
}

async fn release(
    State(agent): Shared,
    Path(id): Path<String>,
    Body(leader): Body<Leader>,
) -> Answer<Done> {
    detached(async move { agent.steering.fleet.release(&id, &leader).await }).await?;
    Ok(done())
}
