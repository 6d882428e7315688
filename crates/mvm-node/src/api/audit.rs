//! The audit logs, and the middleware that records every call that changes something.

use super::handler::{Answer, Asked, Body, Caller, Listing, Refusal, Shared, detached};
use crate::Error;
use crate::agent::Agent;
use crate::audit::{Act, note_target, within};
use crate::blocking::blocking;
use crate::error::{InternalError, Missing, io};
use crate::records::RecordSet;
use axum::body::Body as HttpBody;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{ConnectInfo, MatchedPath, Path, RawPathParams, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use mvm_api::Problem;
use mvm_api::audit::{AuditLogView, PruneAudit, PruneResult};
use mvm_api::query::Follow;
use mvm_api::routes::{Server, find};
use mvm_model::audit::{Entry, OK, bounded};
use mvm_model::{Code, Instance, LeaseId, Name};
use mvm_server::extract::Query;
use mvm_server::{Peer, RequestId};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tracing::Instrument;

pub async fn list(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, .. }: Asked,
) -> Listing<AuditLogView> {
    let mut logs = agent.base.audit.list();
    logs.retain(|view| may_read(&peer, &view.log));
    Ok(page.of(logs))
}

/// Removes old records from the beginnings of logs.
pub async fn prune(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    request: Option<Extension<RequestId>>,
    Body(body): Body<PruneAudit>,
) -> Answer<PruneResult> {
    if body.before > agent.base.records.clock().wall() {
        let detail = "records of the future cannot be pruned: `before` is later than now";
        return Err(Problem::new(Code::InvalidValue, detail)
            .hint("give a moment that is past, in ms since the Unix epoch")
            .into());
    }
    let known: Vec<String> = agent.base.audit.list().into_iter().map(|view| view.log).collect();
    let logs = match body.log {
        None => known,
        Some(log) if known.contains(&log) => vec![log],
        Some(log) => return Err(no_log(&log).into()),
    };
    note_target(logs.join(" ").chars().take(200).collect::<String>());
    let request = request.map(|Extension(RequestId(id))| id);
    let entry = Entry { actor: peer.holder(), request, ..Entry::default() };
    let prune = move || agent.base.audit.prune(&logs, body.before, &entry);
    let logs = detached(blocking(prune)).await?;
    Ok(Json(PruneResult { logs }))
}

fn no_log(log: &str) -> Error {
    Missing::AuditLog(log.to_owned()).into()
}

/// Returns whether the caller may read this log. A tenant operator may read only its own tenant's.
fn may_read(peer: &Peer, log: &str) -> bool {
    peer.tenant().is_none_or(|tenant| tenant.as_str() == log)
}

/// Sends a whole log, all its files one after the other. With `follow`, goes on with new records
/// until the client disconnects.
pub async fn show(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Path(log): Path<String>,
    Query(options): Query<Follow>,
) -> Result<HttpBody, Refusal> {
    let files = agent.base.audit.files(&log);
    let live = files.is_empty() && options.follow && is_log_to_come(&agent, &log);
    if files.is_empty() && !live || !may_read(&peer, &log) {
        return Err(no_log(&log).into());
    }
    let opened = agent.base.audit.open_files(&log).map_err(|e| io(format!("read {log}"), e))?;
    let read = opened.iter().map(|(path, _)| path.clone()).collect();
    let waiting = opened.into_iter().map(|(_, file)| tokio::fs::File::from_std(file)).collect();
    let reader = Reader { agent, log, read, waiting, file: None, follow: options.follow };
    let stream = futures::stream::try_unfold(reader, |mut reader| async {
        Ok::<_, std::io::Error>(reader.next().await?.map(|piece| (piece, reader)))
    });
    Ok(HttpBody::from_stream(stream))
}

/// Returns whether this is the log of a tenant that has no record yet.
fn is_log_to_come(agent: &Agent, log: &str) -> bool {
    let tenant: Option<Name> = log.parse().ok();
    log == mvm_model::audit::NODE_LOG || agent.base.auditor.known_tenant(tenant.as_ref()).is_some()
}

/// Reads the files of a log, one after the other.
struct Reader {
    agent: std::sync::Arc<Agent>,
    log: String,
    /// The files that have been opened.
    read: Vec<PathBuf>,
    /// The opened files that have not been read yet. A file that is pruned meanwhile is still read.
    waiting: VecDeque<tokio::fs::File>,
    file: Option<tokio::fs::File>,
    follow: bool,
}

impl Reader {
    /// Returns the next bytes; `None` at the end. A read error is returned, so that the reader does
    /// not take it for the end.
    async fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(file) = &mut self.file {
                let count = file.read(&mut buffer).await?;
                if count > 0 {
                    buffer.truncate(count);
                    return Ok(Some(buffer));
                }
            }
            if let Some(file) = self.waiting.pop_front() {
                self.file = Some(file);
                continue;
            }
            // The log goes on in the next file once that exists; then nothing more is added to this
            // one.
            let files = self.agent.base.audit.files(&self.log);
            let new = files.into_iter().find(|file| !self.read.contains(file));
            match new {
                Some(path) => {
                    self.file = Some(tokio::fs::File::open(&path).await?);
                    self.read.push(path);
                }
                None if self.follow => tokio::time::sleep(Duration::from_millis(200)).await,
                None => return Ok(None),
            }
        }
    }
}

/// Records a call that changes something before it is handled, and its outcome after. The call is
/// handled to its end even if the client disconnects.
pub async fn layer(
    State(agent): Shared,
    method: Method,
    matched: Option<MatchedPath>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    let routine = |path: &MatchedPath| {
        let route = find(Server::Agent, method.as_str(), path.as_str());
        method.is_safe() || route.is_some_and(|route| route.routine)
    };
    let Some(matched) = matched.filter(|path| !routine(path)) else {
        return next.run(request).await;
    };
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    let actor = peer.map_or_else(|| "unknown".to_owned(), |ConnectInfo(peer)| peer.holder());
    let request_id = request.extensions().get::<RequestId>();
    let asked = request_id.map(|RequestId(id)| id.clone());
    let params: Vec<(String, String)> = params.iter().flatten().map(owned).collect();
    let (tenant, entry) = describe(&agent, &method, matched.as_str(), &params);
    let act = match Act::begin(
        &agent.base.audit,
        tenant.as_ref(),
        Entry { actor, request: asked, ..entry },
    ) {
        Ok(act) => act,
        Err(error) => return error.into_response(),
    };
    let handle = async move {
        let response = within(act.clone(), next.run(request)).await;
        if !act.is_deferred() {
            act.end(&outcome(&response)).await;
        }
        response
    };
    let handled = tokio::spawn(handle.in_current_span());
    handled.await.unwrap_or_else(|error| Error::from(InternalError::Call(error)).into_response())
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn outcome(response: &Response) -> String {
    let status = response.status();
    match response.extensions().get::<Problem>() {
        Some(problem) => problem.code.to_string(),
        None if status.is_client_error() || status.is_server_error() => {
            format!("http_{}", status.as_u16())
        }
        None => OK.to_owned(),
    }
}

/// Returns what a call is about, and the tenant whose log records it.
fn describe(
    agent: &Agent,
    method: &Method,
    path: &str,
    params: &[(String, String)],
) -> (Option<Name>, Entry) {
    let value =
        |name: &str| params.iter().find(|(known, _)| known == name).map(|(_, v)| v.as_str());
    let verb = find(Server::Agent, method.as_str(), path).map_or("", |route| route.operation);
    let (noun, _) = verb.split_once('.').unwrap_or_default();
    let target: Vec<String> = params.iter().map(|(_, value)| bounded(value)).collect();
    let mut entry = Entry { verb: verb.to_owned(), target: target.join("/"), ..Entry::default() };
    let mut tenant: Option<Name> = value("tenant").and_then(|name| name.parse().ok());
    let id = value("id");
    let lease_id: Option<LeaseId> = id.and_then(|id| id.parse().ok());
    let of_lease = |i: &&Instance| i.lease.as_ref().is_some_and(|l| Some(l.id) == lease_id);
    let lease = match noun {
        "lease" => {
            agent.base.records.read(|records| records.instances.values().find(of_lease).cloned())
        }
        "instance" => match id.and_then(|id| id.parse().ok()) {
            Some(id) => agent.base.records.read(|records| records.instances.get(&id).cloned()),
            None => None,
        },
        _ => None,
    };
    if noun == "job" {
        entry.job = id.map(bounded);
        if let Some(id) = id.and_then(|id| id.parse().ok()) {
            let of_job =
                |records: &RecordSet| records.jobs.get(&id).map(|job| job.pool.tenant.clone());
            tenant = agent.base.records.read(of_job).or(tenant);
        }
    }
    if let Some(instance) = lease {
        entry.lease = instance.lease.as_ref().map(|lease| lease.id.to_string());
        if noun == "lease" {
            entry.target = instance.reference().to_string();
            tenant = Some(instance.pool.tenant);
        }
    }
    (agent.base.auditor.known_tenant(tenant.as_ref()), entry)
}
