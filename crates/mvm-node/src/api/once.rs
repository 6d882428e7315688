//! Creates that happen once however often they are asked for: `Idempotency-Key`.
//!
//! What was made is kept for a day, by caller, route and key. A record that says "begun" is durable
//! before anything is made; a refusal made nothing, so it frees its key.

use super::{Refusal, Shared};
use crate::problem::OrProblem;
use crate::{Node, now};
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mvm_api::routes::{Gives, Server, find};
use mvm_api::{Peer, Problem};
use mvm_model::Millis;
use mvm_store::{Expect, Write};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The header (draft-ietf-httpapi-idempotency-key-header).
const HEADER: &str = "idempotency-key";
/// Says of an answer that it was given before.
const REPLAYED: &str = "idempotency-replayed";
/// Where the records are.
const PREFIX: &str = "idempotency/";
/// How long an outcome is kept, in ms.
const KEPT: Millis = 24 * 3600 * 1000;
/// How many are kept.
const MOST: usize = 512;
/// The longest body, in bytes.
const LONGEST_BODY: usize = 2 << 20;
/// The longest key, in characters.
const LONGEST_KEY: usize = 255;

/// What is known of a key.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Of the request's body.
    digest: String,
    /// When it was begun.
    at: Millis,
    /// When the agent that began it was started.
    agent: Millis,
    /// What was answered; none: it was begun.
    answer: Option<String>,
}

/// Stands before the handlers of all creates that answer with what they made.
pub async fn layer(
    State(node): Shared,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let path = matched.as_ref().map_or("", MatchedPath::as_str);
    let route = find(Server::Agent, request.method().as_str(), path).filter(|route| {
        matches!(route.gives, Gives::Json(_)) && route.operation.ends_with(".create")
    });
    let (Some(_), true) = (route, request.headers().contains_key(HEADER)) else {
        return next.run(request).await;
    };
    once(&node, request, next).await.unwrap_or_else(IntoResponse::into_response)
}

async fn once(node: &Node, request: Request, next: Next) -> Result<Response, Refusal> {
    let key = key_of(request.headers())?;
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    let holder = peer.map(|ConnectInfo(peer)| peer.holder()).unwrap_or_default();
    let at = [holder.as_str(), request.uri().path(), &key].join("\0");
    let record = format!("{PREFIX}{}", hex(at.as_bytes()));
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, LONGEST_BODY).await;
    let body = body.map_err(|e| Problem::new(413, "invalid_value", e.to_string()))?;
    let (digest, agent) = (hex(&body), node.started_at);
    let begun = Kept { digest: digest.clone(), at: now(), agent, answer: None };
    if let Some(answer) = begin(node, &record, &begun).await? {
        return Ok(answer);
    }
    let response = next.run(Request::from_parts(parts, HttpBody::from(body))).await;
    if response.status() != StatusCode::OK {
        let freed = Write::Delete { key: record, expect: Expect::Any };
        node.parts.store.commit(vec![freed]).await.or_problem()?;
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await;
    let bytes = bytes.map_err(|e| Problem::internal(e.to_string()))?;
    let answer = Some(String::from_utf8_lossy(&bytes).into_owned());
    put(node, record, &Kept { answer, ..begun }, Expect::Any).await.or_problem()?;
    Ok(Response::from_parts(parts, bytes.into()))
}

fn key_of(headers: &HeaderMap) -> Result<String, Problem> {
    let key = headers.get(HEADER).and_then(|key| key.to_str().ok()).unwrap_or_default();
    if key.is_empty() || key.len() > LONGEST_KEY {
        let detail = format!("an Idempotency-Key has 1 to {LONGEST_KEY} visible characters");
        return Err(Problem::new(400, "invalid_value", detail));
    }
    Ok(key.to_owned())
}

/// Writes down that it begins; where it was begun before, gives the answer that it had.
async fn begin(node: &Node, record: &str, begun: &Kept) -> Result<Option<Response>, Refusal> {
    let store = &node.parts.store;
    forget(node, begun.at).await?;
    match put(node, record.to_owned(), begun, Expect::Absent).await {
        Ok(()) => return Ok(None),
        Err(mvm_store::Error::Conflict { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let in_use = || {
        Problem::new(409, "idempotency_key_in_use", "a request with this key is under way")
            .hint("ask again when it has ended: its answer is given again")
    };
    let Some(stands) = store.get(record).await.or_problem()? else { return Err(in_use().into()) };
    let known: Kept = serde_json::from_slice(&stands.value)
        .map_err(|e| Problem::internal(format!("{record} cannot be read: {e}")))?;
    if known.digest != begun.digest {
        let detail = "this key stands for a request with another body";
        let problem = Problem::new(422, "idempotency_key_reused", detail);
        return Err(problem.hint("draw a new key for every new request").into());
    }
    match known.answer {
        Some(answer) => {
            let said = [(header::CONTENT_TYPE, "application/json"), (REPLAYED_NAME, "true")];
            Ok(Some((said, Bytes::from(answer)).into_response()))
        }
        None if known.agent == begun.agent => Err(in_use().into()),
        None => {
            let detail = "the agent ended while it served this key: it may have been made or not";
            let problem = Problem::new(409, "idempotency_outcome_unknown", detail);
            Err(problem.hint("look whether it is there, and use a new key where it is not").into())
        }
    }
}

const REPLAYED_NAME: header::HeaderName = header::HeaderName::from_static(REPLAYED);

async fn put(node: &Node, key: String, kept: &Kept, expect: Expect) -> mvm_store::Result<()> {
    let value = serde_json::to_vec(kept).unwrap_or_default();
    node.parts.store.commit(vec![Write::Put { key, value, expect }]).await.map(drop)
}

/// Removes what is older than a day, and the oldest of too many.
async fn forget(node: &Node, now: Millis) -> Result<(), Refusal> {
    let listed = node.parts.store.list(PREFIX).await.or_problem()?;
    let at = |value: &[u8]| serde_json::from_slice::<Kept>(value).map_or(0, |kept| kept.at);
    let mut known: Vec<(Millis, String)> =
        listed.into_iter().map(|record| (at(&record.value), record.key)).collect();
    known.sort();
    let too_many = known.len().saturating_sub(MOST - 1);
    let gone = known.into_iter().enumerate();
    let gone = gone.filter(|(index, (at, _))| *index < too_many || at + KEPT < now);
    let deletes: Vec<Write> =
        gone.map(|(_, (_, key))| Write::Delete { key, expect: Expect::Any }).collect();
    if !deletes.is_empty() {
        node.parts.store.commit(deletes).await.or_problem()?;
    }
    Ok(())
}

/// SHA-256 in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
