//! Handlers of jobs.

use super::handler::{Answer, Asked, Body, Caller, Done, Listing, Refusal, Shared, detached, done};
use super::pools::reference as pool_reference;
use super::streams;
use crate::agent::Agent;
use crate::error::{Missing, io};
use crate::jobs::{Attached, Follow};
use crate::shown::Shown;
use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mvm_api::jobs::{JobFilter, JobView, SubmitJob};
use mvm_api::page::List;
use mvm_api::query::{AttachOptions, LogOptions, WaitOptions};
use mvm_guest::frame::{self, Frame};
use mvm_guest::protocol::Reply;
use mvm_model::JobId;
use mvm_server::Peer;
use mvm_server::extract::Query;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// The longest time that one call of `wait` waits, in seconds.
const MAX_WAIT_S: u64 = 24 * 3600;

/// How long a client may take to come back through another coordinator.
const FORWARDED: Duration = Duration::from_secs(30);

type OfJob = Path<String>;

pub async fn create(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(at): Path<(String, String)>,
    Body(body): Body<SubmitJob>,
) -> Answer<JobView> {
    let pool = pool_reference(at)?;
    Ok(Json(
        detached(async move { agent.work.jobs.create(&pool, body, peer.holder()).await }).await?,
    ))
}

pub async fn list(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, filter }: Asked<JobFilter>,
) -> Listing<JobView> {
    let mut jobs = agent.work.jobs.views(&filter);
    jobs.retain(|job| peer.sees(&job.tenant_id));
    let page = page.of(jobs);
    let clock = agent.base.records.clock();
    let items = page.items.into_iter().map(|view| view.shown(clock)).collect();
    Ok(List { items, next: page.next })
}

pub async fn show(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(id): OfJob,
) -> Answer<JobView> {
    let id = agent.work.jobs.visible_to(&peer, &id)?;
    Ok(Json(agent.work.jobs.view(id)?))
}

/// Takes a job's inputs: a tar archive whose entries are below the guest's root.
pub async fn inputs(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(id): OfJob,
    request: Request,
) -> Answer<Done> {
    let id = agent.work.jobs.visible_to(&peer, &id)?;
    agent.work.jobs.take_inputs(id, request.into_body().into_data_stream()).await?;
    Ok(done())
}

pub async fn submit(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(id): OfJob,
) -> Answer<JobView> {
    let id = agent.work.jobs.visible_to(&peer, &id)?;
    detached(async move {
        agent.work.jobs.queue(id, false).await?;
        Ok(Json(agent.work.jobs.view(id)?))
    })
    .await
    .map_err(Refusal::from)
}

pub async fn cancel(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(id): OfJob,
) -> Answer<JobView> {
    let id = agent.work.jobs.visible_to(&peer, &id)?;
    let job = agent.work.jobs.cancel(id, "canceled").await?;
    Ok(Json(JobView::from(&job).shown(agent.base.records.clock())))
}

/// Returns the job once it has ended or the time is up.
pub async fn wait(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(id): OfJob,
    Query(options): Query<WaitOptions>,
) -> Answer<JobView> {
    let id = agent.work.jobs.visible_to(&peer, &id)?;
    let longest = Duration::from_secs(options.timeout_s.unwrap_or(MAX_WAIT_S).min(MAX_WAIT_S));
    if let Ok(ended) = tokio::time::timeout(longest, agent.work.jobs.ended(id)).await {
        ended?;
    }
    Ok(Json(agent.work.jobs.view(id)?))
}

/// Sends the stored frames of the log. With `follow`, goes on until the job has ended.
pub async fn log(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(id): OfJob,
    Query(options): Query<LogOptions>,
) -> Result<HttpBody, Refusal> {
    let id = agent.work.jobs.visible_to(&peer, &id)?;
    let follow = Follow::new(agent.work.jobs.clone(), id, options.follow, options.from);
    let stream = futures::stream::try_unfold(follow, |mut follow| async {
        Ok::<_, std::io::Error>(follow.next().await?.map(|bytes| (bytes, follow)))
    });
    Ok(HttpBody::from_stream(stream))
}

/// Sends the tar archive of one artifact.
pub async fn artifact(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path((id, index)): Path<(String, usize)>,
) -> Result<HttpBody, Refusal> {
    let id = agent.work.jobs.visible_to(&peer, &id)?;
    let job = agent.base.records.read(|records| records.job(id).cloned())?;
    let known = job.artifacts.get(index).filter(|artifact| artifact.bytes.is_some());
    if known.is_none() {
        return Err(Missing::Artifact { job: id, index }.into());
    }
    let path = agent.work.jobs.files.artifact(id, index);
    let file = tokio::fs::File::open(&path).await;
    let file = file.map_err(|e| io(format!("read {}", path.display()), e))?;
    let stream = futures::stream::try_unfold(file, |mut file| async {
        let mut buffer = vec![0; 64 * 1024];
        let count = file.read(&mut buffer).await?;
        buffer.truncate(count);
        Ok::<_, std::io::Error>((count > 0).then_some((buffer, file)))
    });
    Ok(HttpBody::from_stream(stream))
}

/// Queues a job and ties it to this connection, which is upgraded: frames of output as they come,
/// and a reply with the job at its end. The client may send signals. When it disconnects, the job
/// is ended. For a job that was attached before, the output goes on after the first `from` bytes of
/// the log.
pub async fn attach(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(id): OfJob,
    Query(options): Query<AttachOptions>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let id = agent.work.jobs.visible_to(&peer, &id)?;
    let (response, upgrade) = streams::switch(&mut request)?;
    let attached = agent.work.jobs.attach(id, options.from).await?;
    // A local client's end is noticed at once. A coordinator may go away while its client stays.
    let grace = match peer {
        Peer::Forwarded { .. } => FORWARDED,
        _ => Duration::ZERO,
    };
    tokio::spawn(follow(agent, id, upgrade, attached, grace));
    Ok(response)
}

async fn follow(
    agent: Arc<Agent>,
    id: JobId,
    upgrade: OnUpgrade,
    mut attached: Attached,
    grace: Duration,
) {
    let outcome = match upgrade.await {
        Ok(upgraded) => {
            let (from, to) = tokio::io::split(TokioIo::new(upgraded));
            let mut receiving = tokio::spawn(receive_signals(agent.clone(), id, from));
            let outcome = tokio::select! {
                sent = send(&agent, id, to, &mut attached) => sent,
                _ = &mut receiving => Err(()),
            };
            receiving.abort();
            outcome
        }
        Err(_) => Err(()),
    };
    if outcome.is_err() {
        agent.work.jobs.client_gone(id, attached, grace).await;
    }
}

/// Sends the output, and the job once it has ended.
async fn send(
    agent: &Agent,
    id: JobId,
    mut to: impl AsyncWrite + Unpin,
    attached: &mut Attached,
) -> Result<(), ()> {
    if let Some(mut missed) = attached.missed.take() {
        tokio::io::copy(&mut missed, &mut to).await.map_err(drop)?;
    }
    let ended = agent.work.jobs.ended(id);
    tokio::pin!(ended);
    let job = loop {
        if attached.is_replaced() {
            return Err(());
        }
        tokio::select! {
            biased;
            Some(piece) = attached.output.recv() => {
                frame::write(&mut to, &piece).await.map_err(drop)?;
            }
            job = &mut ended => break job,
        }
    };
    // A job's whole output is sent before the job is recorded as ended.
    while let Ok(piece) = attached.output.try_recv() {
        frame::write(&mut to, &piece).await.map_err(drop)?;
    }
    let reply = match job {
        Ok(job) => {
            let view = JobView::from(&job).shown(agent.base.records.clock());
            Reply::Ok(serde_json::to_value(view).unwrap_or_default())
        }
        Err(error) => Reply::Error { code: error.code().to_string(), message: error.detail() },
    };
    frame::write(&mut to, &Frame::Reply(reply)).await.map_err(drop)
}

/// Passes on the client's signals until it disconnects.
async fn receive_signals(agent: Arc<Agent>, id: JobId, mut from: impl AsyncRead + Unpin) {
    while let Ok(Some(said)) = frame::read(&mut from).await {
        if let Frame::Signal(signal) = said
            && agent.work.jobs.signal(id, signal).await.is_err()
        {
            return;
        }
    }
}
