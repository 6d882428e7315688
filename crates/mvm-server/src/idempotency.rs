//! Requests that create something only once, however often they are repeated: `Idempotency-Key`.
//!
//! A response is kept for a day, by caller, route and key. A record that says "begun" is durable
//! before anything is created. A refused request has created nothing, so it frees its key.

use crate::Error;
use crate::peer::Peer;
use crate::router::Routes;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use mvm_api::Problem;
use mvm_api::routes::{IDEMPOTENCY_KEY, Server, find};
use mvm_clock::Clock;
use mvm_identity::Seal;
use mvm_model::{Code, Timestamp, hex};
use mvm_store::{Expect, Store, Write};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// The header on a replayed response.
const REPLAYED: &str = "idempotency-replayed";
/// The prefix of the records in the store.
const PREFIX: &str = "idempotency/";
/// How long a record is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// The most records that are kept.
const MOST: usize = 512;
/// The longest body, in bytes.
const LONGEST_BODY: usize = 2 << 20;
/// The longest key, in characters.
const LONGEST_KEY: usize = 255;

/// The record of a key.
#[derive(Debug, Serialize, Deserialize)]
struct KeyRecord {
    /// The digest of the request's body.
    digest: String,
    /// When the request began, on the server's timeline.
    at: Timestamp,
    /// When the server that began the request was started; tells servers apart.
    agent: Timestamp,
    /// The response; `None` while the request is under way.
    answer: Option<String>,
}

/// The records of requests with a key, and the server that keeps them.
#[derive(Clone)]
pub struct Idempotency {
    /// The store with the records.
    pub store: Arc<dyn Store>,
    /// The server whose routes these are.
    pub server: Server,
    /// When this server was started.
    pub started_at: Timestamp,
    /// The key that seals responses that hold secrets.
    pub seal: Option<Arc<Seal>>,
    /// The clock by which records grow old.
    pub clock: Clock,
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// Makes those of these routes that create something honour the header.
    pub fn once(self, once: Idempotency) -> Routes<S> {
        let router = self.router.layer(from_fn_with_state(once, layer));
        Routes { router, paths: self.paths }
    }
}

/// The middleware before the handlers.
async fn layer(
    State(once): State<Idempotency>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let path = matched.as_ref().map_or("", MatchedPath::as_str);
    let route = find(once.server, request.method().as_str(), path).filter(|route| route.once);
    let (Some(_), true) = (route, request.headers().contains_key(IDEMPOTENCY_KEY)) else {
        return next.run(request).await;
    };
    once.run(request, next).await.unwrap_or_else(IntoResponse::into_response)
}

impl Idempotency {
    async fn run(&self, request: Request, next: Next) -> Result<Response, Problem> {
        let record = format!("{PREFIX}{}", key_of(&request)?);
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, LONGEST_BODY).await;
        let body = body.map_err(|e| Problem::new(Code::TooLarge, e.to_string()))?;
        let (digest, agent) = (hex::sha256(&body), self.started_at);
        let begun = KeyRecord { digest: digest.clone(), at: self.clock.now(), agent, answer: None };
        if let Some(answer) = self.begin(&record, &begun).await? {
            return Ok(answer);
        }
        let response = next.run(Request::from_parts(parts, HttpBody::from(body))).await;
        if response.status() != StatusCode::OK {
            let freed = Write::Delete { key: record, expect: Expect::Any };
            self.store.commit(vec![freed]).await.map_err(Error::from)?;
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await;
        let bytes = bytes.map_err(|e| Problem::internal(e.to_string()))?;
        let answer = match &self.seal {
            Some(seal) => seal.close(&record, &bytes)?,
            None => String::from_utf8_lossy(&bytes).into_owned(),
        };
        let answer = Some(answer);
        self.put(record, &KeyRecord { answer, ..begun }, Expect::Any).await.map_err(Error::from)?;
        Ok(Response::from_parts(parts, bytes.into()))
    }

    /// Records that a request begins. Returns the kept response where the key was used before.
    async fn begin(&self, record: &str, begun: &KeyRecord) -> Result<Option<Response>, Problem> {
        self.forget(begun.at).await?;
        match self.put(record.to_owned(), begun, Expect::Absent).await {
            Ok(()) => return Ok(None),
            Err(mvm_store::Error::Conflict { .. }) => {}
            Err(error) => return Err(Error::from(error).into()),
        }
        let in_use = || {
            Problem::new(Code::IdempotencyKeyInUse, "a request with this key is under way")
                .hint("ask again when it has ended: its answer is given again")
        };
        let Some(stands) = self.store.get(record).await.map_err(Error::from)? else {
            return Err(in_use());
        };
        let known: KeyRecord = serde_json::from_slice(&stands.value)
            .map_err(|e| Problem::internal(format!("{record} cannot be read: {e}")))?;
        if known.digest != begun.digest {
            let detail = "this key stands for a request with another body";
            let problem = Problem::new(Code::IdempotencyKeyReused, detail);
            return Err(problem.hint("draw a new key for every new request"));
        }
        match known.answer {
            Some(answer) => {
                let answer = match &self.seal {
                    Some(seal) => seal.open(record, &answer)?,
                    None => answer.into_bytes(),
                };
                let said = [(header::CONTENT_TYPE, "application/json"), (REPLAYED_NAME, "true")];
                Ok(Some((said, Bytes::from(answer)).into_response()))
            }
            None if known.agent == begun.agent => Err(in_use()),
            None => {
                let detail =
                    "the server ended while it served this key: it may have been made or not";
                let problem = Problem::new(Code::IdempotencyOutcomeUnknown, detail);
                Err(problem.hint("look whether it is there, and use a new key where it is not"))
            }
        }
    }

    async fn put(&self, key: String, kept: &KeyRecord, expect: Expect) -> mvm_store::Result<()> {
        let value = serde_json::to_vec(kept).unwrap_or_default();
        self.store.commit(vec![Write::Put { key, value, expect }]).await.map(drop)
    }

    /// Removes records older than a day, and the oldest of too many.
    async fn forget(&self, now: Timestamp) -> Result<(), Problem> {
        let listed = self.store.list(PREFIX).await.map_err(Error::from)?;
        let at = |value: &[u8]| {
            serde_json::from_slice::<KeyRecord>(value).map_or(Timestamp::EPOCH, |kept| kept.at)
        };
        let mut known: Vec<(Timestamp, String)> =
            listed.into_iter().map(|record| (at(&record.value), record.key)).collect();
        known.sort();
        let too_many = known.len().saturating_sub(MOST - 1);
        let gone = known.into_iter().enumerate();
        let gone = gone.filter(|(index, (at, _))| *index < too_many || *at + KEPT < now);
        let deletes: Vec<Write> =
            gone.map(|(_, (_, key))| Write::Delete { key, expect: Expect::Any }).collect();
        if !deletes.is_empty() {
            self.store.commit(deletes).await.map_err(Error::from)?;
        }
        Ok(())
    }
}

/// Returns the name of a request's record, made of caller, path and key. Errors: `invalid_value`.
pub fn key_of(request: &Request) -> Result<String, Problem> {
    let key = key_in(request.headers())?;
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    let holder = peer.map(|ConnectInfo(peer)| peer.holder()).unwrap_or_default();
    Ok(hex::sha256([holder.as_str(), request.uri().path(), &key].join("\0")))
}

fn key_in(headers: &HeaderMap) -> Result<String, Problem> {
    let key = headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    if key.is_empty() || key.len() > LONGEST_KEY {
        let detail = format!("an Idempotency-Key has 1 to {LONGEST_KEY} visible characters");
        return Err(Problem::new(Code::InvalidValue, detail));
    }
    Ok(key.to_owned())
}

const REPLAYED_NAME: header::HeaderName = header::HeaderName::from_static(REPLAYED);
