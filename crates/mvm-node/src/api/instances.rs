//! Handlers of instances.

use super::handler::{Answer, Asked, Body, Caller, Done, Listing, Refusal, Shared, detached, done};
use super::pools::reference as pool_reference;
use crate::Error;
use crate::agent::Agent;
use crate::error::{MachineError, io};
use crate::lease_request::LeaseRequest;
use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{ConnectInfo, Path, State};
use mvm_api::page::List;
use mvm_api::query::{Follow, InstanceFilter, SleepOptions};
use mvm_api::types::{
    CreateInstance, InstanceStats, InstanceView, MoveInstance, Moved, SshAccess, SshFiles,
};
use mvm_model::lease::Purpose;
use mvm_model::{Actor, Fault, InstanceRef, State as InstanceState};
use mvm_server::extract::Query;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// The parameters of an instance's path.
pub type InInstance = Path<(String, String, String)>;

/// Parses `{tenant}/{pool}/{id}` of a path.
pub fn reference((tenant, pool, id): (String, String, String)) -> Result<InstanceRef, Fault> {
    Ok(InstanceRef { pool: pool_reference((tenant, pool))?, id: id.parse()? })
}

pub async fn list(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, filter }: Asked<InstanceFilter>,
) -> Listing<InstanceView> {
    let references = agent.base.records.read(|records| {
        let wanted = |i: &&mvm_model::Instance| {
            let tenant = &i.pool.tenant;
            peer.sees(tenant) && filter.tenant.as_ref().is_none_or(|wanted| wanted == tenant)
        };
        page.of(records.instances.values().filter(wanted).map(|i| i.reference()))
    });
    Ok(show_all(&agent, references))
}

pub async fn list_of_pool(
    State(agent): Shared,
    Path(at): Path<(String, String)>,
    Asked { page, .. }: Asked,
) -> Listing<InstanceView> {
    let pool = pool_reference(at)?;
    let references = agent.base.records.read(|records| {
        records.pool(&pool)?;
        Ok::<_, Error>(page.of(records.of_pool(&pool).map(|i| i.reference())))
    })?;
    Ok(show_all(&agent, references))
}

fn show_all(agent: &Agent, page: List<InstanceRef>) -> List<InstanceView> {
    let mut items = Vec::with_capacity(page.items.len());
    for reference in page.items {
        // An instance that was destroyed meanwhile is left out.
        items.extend(agent.views.instances.show(&reference).ok());
    }
    List { items, next: page.next }
}

pub async fn show(State(agent): Shared, Path(at): InInstance) -> Answer<InstanceView> {
    Ok(Json(agent.views.instances.show(&reference(at)?)?))
}

pub async fn create(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(at): Path<(String, String)>,
    Body(body): Body<CreateInstance>,
) -> Answer<InstanceView> {
    let pool = pool_reference(at)?;
    let view = detached(async move {
        let instance = match body.start {
            true => {
                let request = manual(peer.holder(), None);
                let instance = agent.work.leases.create_leased(&pool, &request).await?;
                agent.work.leases.take(&instance.reference(), &request).await?;
                instance
            }
            false => agent.lifecycle.transitions.create(&pool, None).await?,
        };
        agent.views.instances.show(&instance.reference())
    })
    .await?;
    Ok(Json(view))
}

pub async fn destroy(State(agent): Shared, Path(at): InInstance) -> Answer<Done> {
    let reference = reference(at)?;
    detached(async move {
        agent.base.records.read(|records| records.instance(&reference).map(|_| ()))?;
        agent.lifecycle.instances.destroy(reference.id, &Actor::Force).await
    })
    .await?;
    Ok(done())
}

fn manual(holder: String, lease_s: Option<u64>) -> LeaseRequest {
    LeaseRequest { holder, purpose: Purpose::Manual, lease_s }
}

/// Handles `start`: from created, stopped or failed.
pub async fn start(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(at): InInstance,
    Body(body): Body<MoveInstance>,
) -> Answer<Moved> {
    use InstanceState::{Created, Failed, Running, Stopped};
    let request = manual(peer.holder(), body.lease_s);
    hold(agent, reference(at)?, request, &[Created, Stopped, Failed, Running], "start").await
}

/// Handles `wake`: from warm or sleeping.
pub async fn wake(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(at): InInstance,
    Body(body): Body<MoveInstance>,
) -> Answer<Moved> {
    use InstanceState::{Running, Sleeping, Warm};
    let request = manual(peer.holder(), body.lease_s);
    hold(agent, reference(at)?, request, &[Warm, Sleeping, Running], "wake").await
}

pub async fn warm(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(at): InInstance,
) -> Answer<Moved> {
    put(agent, reference(at)?, InstanceState::Warm, peer.holder()).await
}

pub async fn sleep(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(at): InInstance,
    Query(options): Query<SleepOptions>,
) -> Answer<Moved> {
    let reference = reference(at)?;
    let to = InstanceState::Sleeping;
    let mut answer = put(agent.clone(), reference.clone(), to, peer.holder()).await?;
    if options.linger == Some(false) {
        agent.lifecycle.lingering.end(reference.id).await;
        answer.0.instance = agent.views.instances.show(&reference)?;
    }
    Ok(answer)
}

pub async fn stop(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(at): InInstance,
) -> Answer<Moved> {
    put(agent, reference(at)?, InstanceState::Stopped, peer.holder()).await
}

/// Takes a lease and brings the instance to `running`.
async fn hold(
    agent: Arc<Agent>,
    reference: InstanceRef,
    request: LeaseRequest,
    from: &[InstanceState],
    verb: &'static str,
) -> Answer<Moved> {
    let state = agent.base.records.read(|records| records.instance(&reference).map(|i| i.state))?;
    if !from.contains(&state) {
        return Err(MachineError::WrongWay { verb, reference, state }.into());
    }
    let moved = detached(async move {
        let began = Instant::now();
        let from = agent.work.leases.take(&reference, &request).await?;
        moved(&agent, &reference, from, began)
    })
    .await?;
    Ok(Json(moved))
}

/// Brings the instance to a colder state, and ends the caller's manual lease on it. An instance
/// under another's lease, for example a job's, is refused.
async fn put(
    agent: Arc<Agent>,
    reference: InstanceRef,
    to: InstanceState,
    holder: String,
) -> Answer<Moved> {
    let moved = detached(async move {
        let state =
            agent.base.records.read(|records| records.instance(&reference).map(|i| i.state))?;
        if state != to {
            state.check(to)?;
        }
        let began = Instant::now();
        let from = agent
            .lifecycle
            .instances
            .transition_to(reference.id, to, &Actor::Holder(holder))
            .await?;
        moved(&agent, &reference, from, began)
    })
    .await?;
    Ok(Json(moved))
}

fn moved(
    agent: &Arc<Agent>,
    reference: &InstanceRef,
    from: InstanceState,
    began: Instant,
) -> crate::Result<Moved> {
    let took_ms = began.elapsed().as_secs_f64() * 1000.0;
    Ok(Moved { instance: agent.views.instances.show(reference)?, from, took_ms })
}

pub async fn stats(State(agent): Shared, Path(at): InInstance) -> Answer<InstanceStats> {
    Ok(Json(agent.views.instances.stats(&reference(at)?).await?))
}

pub async fn ssh(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(at): InInstance,
) -> Answer<SshAccess> {
    let reference = reference(at)?;
    let instance = agent.base.records.read(|records| records.instance(&reference).cloned())?;
    let root = &agent.base.state_dir;
    let files = root.files(instance.id);
    if !files.known_hosts().exists() {
        return Err(MachineError::NeverStarted(reference).into());
    }
    let (identity, known_hosts) =
        (root.tenant(&reference.pool.tenant).join("ssh_key"), files.known_hosts());
    let contents = match peer.is_local() {
        true => None,
        false => Some(SshFiles { identity: text(&identity)?, known_hosts: text(&known_hosts)? }),
    };
    Ok(Json(SshAccess {
        user: "root".to_owned(),
        identity_file: identity.display().to_string(),
        known_hosts_file: known_hosts.display().to_string(),
        files: contents,
        host_key_alias: crate::instances::host_key_alias(&reference),
        address: instance.address,
    }))
}

fn text(path: &std::path::Path) -> crate::Result<String> {
    std::fs::read_to_string(path).map_err(|e| io(format!("read {}", path.display()), e))
}

/// Sends the console log. With `follow`, goes on with what is added until the client disconnects.
pub async fn logs(
    State(agent): Shared,
    Path(at): InInstance,
    Query(options): Query<Follow>,
) -> Result<HttpBody, Refusal> {
    let reference = reference(at)?;
    agent.base.records.read(|records| records.instance(&reference).map(|_| ()))?;
    let path = agent.base.state_dir.files(reference.id).console();
    let file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(HttpBody::empty()),
        Err(e) => return Err(io(format!("read {}", path.display()), e).into()),
    };
    let stream = futures::stream::try_unfold(file, move |mut file| async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = file.read(&mut buffer).await?;
            if count > 0 {
                buffer.truncate(count);
                return Ok::<_, std::io::Error>(Some((buffer, file)));
            }
            if !options.follow {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            rewind_if_trimmed(&mut file).await?;
        }
    });
    Ok(HttpBody::from_stream(stream))
}

/// Continues at the end of a log that was trimmed below the position read so far.
async fn rewind_if_trimmed(file: &mut tokio::fs::File) -> std::io::Result<()> {
    let length = file.metadata().await?.len();
    if file.stream_position().await? > length {
        file.seek(std::io::SeekFrom::End(0)).await?;
    }
    Ok(())
}
