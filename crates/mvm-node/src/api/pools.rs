//! Handlers of pools.

use super::handler::{Answer, Asked, Body, Caller, Done, Listing, Refusal, Shared, detached, done};
use crate::audit;
use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures::Stream;
use mvm_api::Problem;
use mvm_api::types::{
    BuildPool, CreatePool, PoolView, ProgressEvent, RevisionView, Rollback, ScalePool, UpdatePool,
};
use mvm_image::Progress;
use mvm_model::pool::RevisionEntry;
use mvm_model::{Fault, Name, PoolRef};
use serde::Serialize;
use std::convert::Infallible;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Parses `{tenant}/{pool}` of a path.
pub fn reference((tenant, pool): (String, String)) -> Result<PoolRef, Fault> {
    Ok(PoolRef { tenant: tenant.parse()?, pool: pool.parse()? })
}

/// The parameters of a pool's path.
pub type InPool = Path<(String, String)>;

pub async fn list(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, .. }: Asked,
) -> Listing<PoolView> {
    let shortfalls = agent.supplies.host.shortfalls();
    let views = agent.base.records.read(|records| {
        let shortfalls = shortfalls.with(records);
        let seen = records.pools.values().filter(|pool| peer.sees(&pool.reference.tenant));
        page.of(seen.map(|pool| agent.views.pools.pool(records, pool, &shortfalls)))
    });
    Ok(views)
}

pub async fn list_of_tenant(
    State(agent): Shared,
    Path(tenant): Path<String>,
    Asked { page, .. }: Asked,
) -> Listing<PoolView> {
    let tenant: Name = tenant.parse()?;
    let shortfalls = agent.supplies.host.shortfalls();
    let views = agent.base.records.read(|records| {
        records.tenant(&tenant)?;
        let shortfalls = shortfalls.with(records);
        let pools = records.pools.values().filter(|pool| pool.reference.tenant == tenant);
        Ok::<_, crate::Error>(
            page.of(pools.map(|pool| agent.views.pools.pool(records, pool, &shortfalls))),
        )
    })?;
    Ok(views)
}

pub async fn show(State(agent): Shared, Path(at): InPool) -> Answer<PoolView> {
    let pool = reference(at)?;
    let shortfalls = agent.supplies.host.shortfalls();
    let view = agent.base.records.read(|records| {
        let shortfalls = shortfalls.with(records);
        records.pool(&pool).map(|pool| agent.views.pools.pool(records, pool, &shortfalls))
    });
    Ok(Json(view?))
}

pub async fn create(
    State(agent): Shared,
    Path(tenant): Path<String>,
    Body(body): Body<CreatePool>,
) -> Answer<PoolView> {
    let at = (tenant.clone(), body.name.to_string());
    agent.pools.catalog.create(&tenant.parse()?, body).await?;
    show(State(agent), Path(at)).await
}

pub async fn update(
    State(agent): Shared,
    Path(at): InPool,
    Body(patch): Body<UpdatePool>,
) -> Answer<PoolView> {
    agent.pools.catalog.update(&reference(at.clone())?, patch).await?;
    show(State(agent), Path(at)).await
}

pub async fn scale(
    State(agent): Shared,
    Path(at): InPool,
    Body(body): Body<ScalePool>,
) -> Answer<PoolView> {
    agent.pools.catalog.scale(&reference(at.clone())?, body).await?;
    show(State(agent), Path(at)).await
}

pub async fn destroy(State(agent): Shared, Path(at): InPool) -> Answer<Done> {
    let pool = reference(at)?;
    detached(async move { agent.pools.removal.destroy_pool(&pool).await }).await?;
    Ok(done())
}

pub async fn revisions(
    State(agent): Shared,
    Path(at): InPool,
    Asked { page, .. }: Asked,
) -> Listing<RevisionView> {
    Ok(page.of(agent.views.pools.revisions(&reference(at)?)?))
}

pub async fn rollback(
    State(agent): Shared,
    Path(at): InPool,
    Body(body): Body<Rollback>,
) -> Answer<RevisionEntry> {
    Ok(Json(agent.pools.catalog.rollback(&reference(at)?, body.to).await?))
}

pub async fn build(
    State(agent): Shared,
    Path(at): InPool,
    Body(body): Body<BuildPool>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let pool = reference(at)?;
    agent.base.records.read(|records| records.pool(&pool).map(|_| ()))?;
    Ok(progress(
        move |progress| async move { agent.pools.builder.build(&pool, body, &progress).await },
    ))
}

pub async fn cancel_build(State(agent): Shared, Path(at): InPool) -> Answer<Done> {
    agent.pools.builder.cancel(&reference(at)?)?;
    Ok(done())
}

/// Runs `work` to its end, even if the client disconnects, and streams its progress: events
/// `progress`, then one `result` or `problem`.
pub fn progress<T, F>(
    work: impl FnOnce(UnboundedSender<Progress>) -> F,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>>
where
    T: Serialize + Send + 'static,
    F: Future<Output = crate::Result<T>> + Send + 'static,
{
    let (to_client, from_work) = unbounded_channel::<Event>();
    let (report, mut reports) = unbounded_channel::<Progress>();
    let forward = to_client.clone();
    let forwarder = tokio::spawn(async move {
        while let Some(progress) = reports.recv().await {
            let _ = forward.send(event("progress", &progress_event(progress)));
        }
    });
    let work = work(report);
    let act = audit::take_over();
    tokio::spawn(audit::with_act(async move {
        let outcome = detached(work).await;
        let _ = forwarder.await;
        if let Some(act) = act {
            act.end(&audit::outcome(&outcome)).await;
        }
        let _ = to_client.send(match outcome {
            Ok(value) => event("result", &value),
            Err(problem) => event("problem", &Problem::from(problem)),
        });
    }));
    let stream = futures::stream::unfold(from_work, |mut from: UnboundedReceiver<Event>| async {
        from.recv().await.map(|event| (Ok(event), from))
    });
    Sse::new(stream).keep_alive(KeepAlive::default())
}

fn progress_event(progress: Progress) -> ProgressEvent {
    match progress {
        Progress::Stage { name, detail } => {
            ProgressEvent { kind: "stage".to_owned(), text: format!("{name}: {detail}") }
        }
        Progress::Line(text) => ProgressEvent { kind: "line".to_owned(), text },
    }
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let data = serde_json::to_string(data).unwrap_or_else(|error| error.to_string());
    Event::default().event(name).data(data)
}
