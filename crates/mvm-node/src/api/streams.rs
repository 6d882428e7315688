//! Upgraded connections: raw streams to a guest, and claims that live as long as their connection.

use super::handler::{Body, Caller, Refusal, Shared, detached};
use super::instances::{InInstance, reference};
use super::pools::reference as pool_reference;
use crate::agent::Agent;
use crate::audit::{self, session};
use crate::deadlines::STREAM;
use crate::error::{InternalError, MachineError};
use crate::lease_request::LeaseRequest;
use axum::body::Body as HttpBody;
use axum::extract::{ConnectInfo, FromRequest, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use mvm_api::Problem;
use mvm_api::client::UPGRADE;
use mvm_api::query::StreamOptions;
use mvm_api::types::{Claim, ClaimRequest};
use mvm_model::audit::Entry;
use mvm_model::lease::Purpose;
use mvm_model::{Code, InstanceRef, State as InstanceState};
use mvm_server::extract::Query;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Returns `101 Switching Protocols`, and a future of the raw connection.
pub fn switch(request: &mut Request) -> Result<(Response, hyper::upgrade::OnUpgrade), Refusal> {
    let named = request.headers().get(header::UPGRADE).is_some_and(|name| name == UPGRADE);
    if !named {
        return Err(Refusal(Problem::new(
            Code::UpgradeRequired,
            format!("this route needs Upgrade: {UPGRADE}"),
        )));
    }
    let upgrade = hyper::upgrade::on(request);
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, UPGRADE)
        .body(HttpBody::empty())
        .map_err(|error| Problem::internal(error.to_string()))?;
    Ok((response, upgrade))
}

/// Opens a stream to the guest's agent, and wakes the instance if needed. The client speaks the
/// guest protocol.
pub async fn guest(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(at): InInstance,
    Query(options): Query<StreamOptions>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let reference = reference(at)?;
    let actor = peer.holder();
    let (response, upgrade) = switch(&mut request)?;
    let request =
        LeaseRequest { holder: peer.holder(), purpose: Purpose::Manual, lease_s: options.lease_s };
    let opener = agent.clone();
    let wanted = reference.clone();
    let slot = agent.base.slots.of(reference.id);
    let (mut stream, session) = detached(async move {
        ensure_awake(&opener, &wanted, &request).await?;
        let slot = opener.base.slots.of(wanted.id);
        let session = slot.session();
        let channel = slot.gate.lock().await.channel().await?;
        let stream = slot.waits.guest(STREAM, channel.open_raw()).await?;
        Ok((stream, session))
    })
    .await?;
    tokio::spawn(async move {
        let _session = session;
        let Ok(upgraded) = upgrade.await else { return };
        let (target, tenant) = (reference.to_string(), &reference.pool.tenant);
        let lease = agent.base.records.read(|records| {
            let instance = records.instances.get(&reference.id)?;
            Some(instance.lease.as_ref()?.id.to_string())
        });
        let entry = Entry { actor, target, lease, ..Entry::default() };
        let mut client = TokioIo::new(upgraded);
        let why = || slot.why_ended();
        session::pass(&agent.base.audit, tenant, entry, &mut client, &mut stream, why).await;
    });
    Ok(response)
}

/// Brings an instance to `running` under a lease of the caller. A running instance that is leased
/// already needs no further lease, unless the caller asks for one. An instance that does not run and
/// has nothing to wake from is refused.
async fn ensure_awake(
    agent: &Arc<Agent>,
    reference: &InstanceRef,
    request: &LeaseRequest,
) -> crate::Result<()> {
    let instance = agent.base.records.read(|records| records.instance(reference).cloned())?;
    match instance.state {
        InstanceState::Running
            if instance.intent.is_none()
                && instance.lease.is_some()
                && request.lease_s.is_none() =>
        {
            Ok(())
        }
        InstanceState::Running | InstanceState::Warm | InstanceState::Sleeping => {
            agent.work.leases.take(reference, request).await.map(|_| ())
        }
        state => Err(MachineError::NotAwake { reference: reference.clone(), state }.into()),
    }
}

/// Claims an instance for a job. The first line sent is the claim or a problem. The lease ends when
/// the client closes the connection.
pub async fn claim(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(at): Path<(String, String)>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let pool = pool_reference(at)?;
    let (response, upgrade) = switch(&mut request)?;
    let Body(body) = Body::<ClaimRequest>::from_request(request, &()).await?;
    if body.again {
        let detail = "a node's own claims end with their connection";
        return Err(Problem::new(Code::ClaimEnded, detail).hint("claim anew").into());
    }
    let request =
        LeaseRequest { holder: peer.holder(), purpose: Purpose::Run, lease_s: body.lease_s };
    let (report, outcome) = tokio::sync::oneshot::channel();
    // The claim runs in a task of its own, so that it is released if the client disconnects at any
    // moment.
    let claimer = agent.clone();
    let claiming = audit::with_act(async move { claimer.work.leases.claim(&pool, &request).await });
    tokio::spawn(async move {
        let began = Instant::now();
        let (instance, from) = match claiming.await {
            Ok(claimed) => claimed,
            Err(problem) => return drop(report.send(Err(problem))),
        };
        let (id, reference) = (instance.id, instance.reference());
        let _held = instance.lease.as_ref().map(|lease| agent.work.holders.hold(lease.id));
        let opened = async {
            let slot = agent.base.slots.of(id);
            let channel = slot.gate.lock().await.channel().await?;
            agent.supplies.caches.open(id, &channel).await
        };
        if let Err(problem) = opened.await {
            agent.work.leases.end(id).await;
            return drop(report.send(Err(problem)));
        }
        let took_ms = began.elapsed().as_secs_f64() * 1000.0;
        let way_up = instance.way_up.filter(|_| from != InstanceState::Running);
        if let (Ok(()), Some(lease)) = (report.send(Ok(())), instance.lease) {
            let lease = agent.work.holders.shown(&lease);
            hold(upgrade, Claim { reference, from, way_up, took_ms, lease }).await;
        }
        agent.work.leases.end(id).await;
    });
    outcome.await.map_err(|_| InternalError::ClaimVanished)??;
    Ok(response)
}

/// Sends the claim, and waits until the client disconnects.
async fn hold(upgrade: hyper::upgrade::OnUpgrade, claim: Claim) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut client = TokioIo::new(upgraded);
    let line = serde_json::json!({ "claim": claim });
    let sent = client.write_all(format!("{line}\n").as_bytes()).await;
    if sent.is_ok() && client.flush().await.is_ok() {
        // The client sends nothing, so the read ends when the client disconnects.
        let _ = client.read(&mut [0u8; 64]).await;
    }
}
