//! The audit logs, and the layer that writes every call to them that changes something.

use super::{Caller, Refusal, Shared};
use crate::Node;
use crate::audit::{Act, within};
use crate::problem::not_found;
use crate::world::World;
use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{ConnectInfo, MatchedPath, Path, Query, RawPathParams, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mvm_api::audit::AuditLogView;
use mvm_api::problem::ProblemCode;
use mvm_api::{Peer, Problem};
use mvm_model::audit::{Entry, OK, bounded};
use mvm_model::{Instance, Name};
use serde::Deserialize;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncReadExt;

pub async fn list(State(node): Shared, ConnectInfo(peer): Caller) -> Json<Vec<AuditLogView>> {
    let mut logs = node.audit.list();
    logs.retain(|view| may_read(&peer, &view.log));
    Json(logs)
}

/// Whether the caller may read this log: one confined to a tenant reads its own alone.
fn may_read(peer: &Peer, log: &str) -> bool {
    peer.tenant().is_none_or(|tenant| tenant.as_str() == log)
}

/// Options of `show`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShowOptions {
    #[serde(default)]
    follow: bool,
}

/// A log as it is, all its files one after the other; with `follow`, what is added until the client
/// goes away.
pub async fn show(
    State(node): Shared,
    ConnectInfo(peer): Caller,
    Path(log): Path<String>,
    Query(options): Query<ShowOptions>,
) -> Result<HttpBody, Refusal> {
    let files = node.audit.files(&log);
    let live = files.is_empty() && options.follow && is_log_to_come(&node, &log).await;
    if files.is_empty() && !live || !may_read(&peer, &log) {
        return Err(
            not_found(format!("audit log {log}"), "see them with `mvm audit verify`").into()
        );
    }
    let reader = Reader { node, log, read: VecDeque::new(), file: None, follow: options.follow };
    let stream = futures::stream::unfold(reader, |mut reader| async {
        let piece = reader.next().await?;
        Some((Ok::<_, std::io::Error>(piece), reader))
    });
    Ok(HttpBody::from_stream(stream))
}

/// The log of a tenant that nothing has been done to yet.
async fn is_log_to_come(node: &Node, log: &str) -> bool {
    let tenant: Option<Name> = log.parse().ok();
    log == mvm_model::audit::NODE_LOG || node.known(tenant.as_ref()).await.is_some()
}

/// Reads the files of a log one after the other.
struct Reader {
    node: std::sync::Arc<Node>,
    log: String,
    /// The files that were begun.
    read: VecDeque<PathBuf>,
    file: Option<tokio::fs::File>,
    follow: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(file) = &mut self.file {
                match file.read(&mut buffer).await {
                    Ok(0) => {}
                    Ok(count) => {
                        buffer.truncate(count);
                        return Some(buffer);
                    }
                    Err(_) => return None,
                }
            }
            // The next file is there only when nothing more comes to this one.
            let files = self.node.audit.files(&self.log);
            let new = files.into_iter().find(|file| !self.read.contains(file));
            match new {
                Some(path) => {
                    self.file = Some(tokio::fs::File::open(&path).await.ok()?);
                    self.read.push_back(path);
                }
                None if self.follow => tokio::time::sleep(Duration::from_millis(200)).await,
                None => return None,
            }
        }
    }
}

/// Writes a call that changes something to the log before it is handled and its outcome after, and
/// handles it to its end even when the client goes away.
pub async fn layer(
    State(node): Shared,
    method: Method,
    matched: Option<MatchedPath>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    let (Some(matched), false) = (matched, method.is_safe()) else {
        return next.run(request).await;
    };
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    let actor = peer.map_or_else(|| "unknown".to_owned(), |ConnectInfo(peer)| peer.holder());
    let params: Vec<(String, String)> = params.iter().flatten().map(owned).collect();
    let (tenant, entry) = describe(&node, &method, matched.as_str(), &params).await;
    let act = match Act::begin(&node.audit, tenant.as_ref(), Entry { actor, ..entry }) {
        Ok(act) => act,
        Err(problem) => return Refusal(problem).into_response(),
    };
    let handled = tokio::spawn(async move {
        let response = within(act.clone(), next.run(request)).await;
        if !act.is_deferred() {
            act.end(&outcome(&response)).await;
        }
        response
    });
    handled.await.unwrap_or_else(|error| {
        Refusal(Problem::internal(format!("the call did not end well: {error}"))).into_response()
    })
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn outcome(response: &Response) -> String {
    let status = response.status();
    match response.extensions().get::<ProblemCode>() {
        Some(ProblemCode(code)) => code.clone(),
        None if status.is_client_error() || status.is_server_error() => {
            format!("http_{}", status.as_u16())
        }
        None => OK.to_owned(),
    }
}

/// What a call is about, and whose log tells of it.
async fn describe(
    node: &Node,
    method: &Method,
    path: &str,
    params: &[(String, String)],
) -> (Option<Name>, Entry) {
    let value =
        |name: &str| params.iter().find(|(known, _)| known == name).map(|(_, v)| v.as_str());
    let (noun, verb) = verb_of(method, path);
    let target: Vec<String> = params.iter().map(|(_, value)| bounded(value)).collect();
    let mut entry =
        Entry { verb: format!("{noun}.{verb}"), target: target.join("/"), ..Entry::default() };
    let mut tenant: Option<Name> = value("tenant").and_then(|name| name.parse().ok());
    let id = value("id");
    let of_lease = |i: &&Instance| i.lease.as_ref().is_some_and(|l| Some(l.id.as_str()) == id);
    let lease = match noun.as_str() {
        "lease" => node.read(|world| world.instances.values().find(of_lease).cloned()).await,
        "instance" => match id.and_then(|id| id.parse().ok()) {
            Some(id) => node.read(|world| world.instances.get(&id).cloned()).await,
            None => None,
        },
        _ => None,
    };
    if noun == "job" {
        entry.job = id.map(bounded);
        if let Some(id) = id.and_then(|id| id.parse().ok()) {
            let of_job = |world: &World| world.jobs.get(&id).map(|job| job.pool.tenant.clone());
            tenant = node.read(of_job).await.or(tenant);
        }
    }
    if let Some(instance) = lease {
        entry.lease = instance.lease.as_ref().map(|lease| lease.id.clone());
        if noun == "lease" {
            entry.target = instance.reference().to_string();
            tenant = Some(instance.pool.tenant);
        }
    }
    (node.known(tenant.as_ref()).await, entry)
}

/// The noun and the verb of a route: `instance` and `wake` of `POST …/instances/{id}/wake`,
/// `pool` and `create` of `POST …/pools`.
fn verb_of(method: &Method, path: &str) -> (String, String) {
    let parts: Vec<&str> = path.split('/').skip(2).collect();
    let is_name = |part: &str| part.starts_with('{');
    let singular = |part: &str| part.strip_suffix('s').unwrap_or(part).to_owned();
    let last = parts.last().copied().unwrap_or_default();
    let before = parts.len().checked_sub(2).map_or("", |at| parts[at]);
    let by_method = match *method {
        Method::DELETE => "destroy",
        Method::PATCH => "update",
        Method::PUT => "apply",
        _ => "create",
    };
    if is_name(last) {
        let verb = if before == "leases" { "release" } else { by_method };
        return (singular(before), verb.to_owned());
    }
    // What ends in s is a collection, except where a verb does.
    if (last.ends_with('s') && last != "inputs") || before.is_empty() {
        return (singular(last), by_method.to_owned());
    }
    let noun = match is_name(before) {
        true => parts.len().checked_sub(3).map_or("", |at| parts[at]),
        false => before,
    };
    (singular(noun), last.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_a_noun_and_a_verb() {
        let pool = "/v1/tenants/{tenant}/pools/{pool}";
        let instance = format!("{pool}/instances/{{id}}");
        for (method, path, verb) in [
            (Method::POST, "/v1/tenants".to_owned(), "tenant.create"),
            (Method::PATCH, "/v1/tenants/{tenant}".to_owned(), "tenant.update"),
            (Method::DELETE, "/v1/tenants/{tenant}".to_owned(), "tenant.destroy"),
            (Method::POST, "/v1/tenants/{tenant}/pools".to_owned(), "pool.create"),
            (Method::POST, format!("{pool}/build"), "pool.build"),
            (Method::POST, format!("{pool}/claims"), "claim.create"),
            (Method::POST, format!("{pool}/instances"), "instance.create"),
            (Method::DELETE, instance.clone(), "instance.destroy"),
            (Method::POST, format!("{instance}/wake"), "instance.wake"),
            (Method::POST, format!("{instance}/stream"), "instance.stream"),
            (Method::POST, format!("{pool}/jobs"), "job.create"),
            (Method::PUT, "/v1/jobs/{id}/inputs".to_owned(), "job.inputs"),
            (Method::POST, "/v1/jobs/{id}/cancel".to_owned(), "job.cancel"),
            (Method::DELETE, "/v1/leases/{id}".to_owned(), "lease.release"),
            (Method::POST, "/v1/leases/{id}/extend".to_owned(), "lease.extend"),
            (Method::POST, "/v1/kernels/import".to_owned(), "kernel.import"),
            (Method::POST, "/v1/images/gc".to_owned(), "image.gc"),
            (Method::PUT, "/v1/desired".to_owned(), "desired.apply"),
            (Method::POST, "/v1/agent/stop".to_owned(), "agent.stop"),
            (Method::POST, "/v1".to_owned(), ".create"),
            (Method::POST, "/".to_owned(), ".create"),
        ] {
            let (noun, what) = verb_of(&method, &path);
            assert_eq!(format!("{noun}.{what}"), verb, "{method} {path}");
        }
    }
}
