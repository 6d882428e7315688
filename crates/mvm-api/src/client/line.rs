//! The connections to the servers: kept for reuse, and the exchange of requests over them.

use super::connect::{Sender, Target};
use super::error::{ClientError, broken};
use super::several::{Targets, together};
use crate::identity::{Identity, SERVER_NAME};
use crate::routes::{IDEMPOTENCY_KEY, ON_BEHALF_OF};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;

/// The protocol named in `Upgrade:` for raw streams.
pub const UPGRADE: &str = "mvm-stream";

/// The most idle connections that are kept.
const KEPT: usize = 16;

/// The servers and the idle connections to them. Clones share both.
#[derive(Clone)]
pub(super) struct Line {
    pub targets: Arc<Targets>,
    idle: Arc<Mutex<Vec<Idle>>>,
    /// The identity on whose behalf a coordinator sends requests.
    behalf: Option<Identity>,
}

/// A connection that no request uses now.
pub(super) struct Idle {
    sender: Sender,
    /// The server at the other end.
    pub target: Arc<Target>,
    /// The generation of the identity that the connection was made with.
    generation: u64,
}

/// Why one server has given no answer to a request.
enum Failed {
    /// Another server may be asked. Holds the request, unless the server may have received it.
    GoOn(ClientError, Box<Request<Full<Bytes>>>),
    /// The request may have been carried out, or the other servers would answer the same.
    Final(ClientError),
}

impl Line {
    pub fn to(target: Target) -> Line {
        Line { targets: Arc::new(Targets::new(target)), idle: Arc::default(), behalf: None }
    }

    /// Joins the servers of both.
    pub fn and(self, other: &Line) -> Line {
        Line { targets: Arc::new(self.targets.and(&other.targets)), ..self }
    }

    /// Returns the same line, with requests on behalf of this identity.
    pub fn on_behalf_of(&self, identity: Identity) -> Line {
        Line { behalf: Some(identity), ..self.clone() }
    }

    /// Keeps a connection for the next call.
    pub fn keep(&self, sender: Idle) {
        let mut idle = self.idle.lock();
        if idle.len() < KEPT {
            idle.push(sender);
        }
    }

    /// Takes an idle connection to this server that is still usable.
    fn kept(&self, target: &Arc<Target>) -> Option<Idle> {
        let mut idle = self.idle.lock();
        idle.retain(|one| !one.sender.is_closed() && one.generation == one.target.generation());
        let at = idle.iter().rposition(|one| Arc::ptr_eq(&one.target, target))?;
        Some(idle.remove(at))
    }

    /// Sets the identity on whose behalf a forwarded request is sent, and removes any that it came
    /// with. Returns the request's method and path.
    pub fn sign<B>(&self, request: &mut Request<B>) -> Result<String, ClientError> {
        let doing = format!("{} {}", request.method(), request.uri());
        request.headers_mut().remove(ON_BEHALF_OF);
        if let Some(identity) = &self.behalf {
            let name = identity.to_string();
            let name = name.parse().map_err(|cause| broken(&doing, cause))?;
            request.headers_mut().insert(ON_BEHALF_OF, name);
        }
        Ok(doing)
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(Response<Incoming>, Idle), ClientError> {
        let doing = format!("{method} {path}");
        let request = self.request(method, path, body, false);
        self.accepted(&doing, request.map_err(|cause| broken(&doing, cause))?).await
    }

    /// Sends a request. A response that is not a success is an error.
    pub async fn accepted(
        &self,
        doing: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Idle), ClientError> {
        let (response, sender) = self.exchange(doing, request).await?;
        if is_success(response.status()) {
            return Ok((response, sender));
        }
        let refusal = sender.target.refusal(response, doing).await?;
        self.keep(sender);
        Err(refusal)
    }

    /// Begins a request with the headers that all requests have.
    pub fn begin(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(path).header(header::HOST, SERVER_NAME);
        match &self.behalf {
            Some(identity) => request.header(ON_BEHALF_OF, identity.to_string()),
            None => request,
        }
    }

    pub fn request(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        upgrade: bool,
    ) -> Result<Request<Full<Bytes>>, String> {
        let bytes = if method == Method::GET || method == Method::DELETE {
            Bytes::new()
        } else {
            serde_json::to_vec(body).map_err(|cause| cause.to_string())?.into()
        };
        let mut request = self.begin(method, path).header(header::CONTENT_TYPE, "application/json");
        if upgrade {
            request =
                request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, UPGRADE);
        }
        request.body(Full::new(bytes)).map_err(|cause| cause.to_string())
    }

    /// Sends the request to the server that answered last; where that cannot be reached, to the
    /// next one.
    pub async fn exchange(
        &self,
        doing: &str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Idle), ClientError> {
        let mut failures = Vec::new();
        for (at, target) in self.targets.in_turn() {
            match self.exchange_with(target, doing, request).await {
                Ok(answer) => {
                    self.targets.answered(at);
                    return Ok(answer);
                }
                Err(Failed::Final(error)) => {
                    if matches!(error, ClientError::Silent { .. }) {
                        self.targets.gave_up(at);
                    }
                    return Err(error);
                }
                Err(Failed::GoOn(error, unsent)) => {
                    failures.push(error);
                    request = *unsent;
                }
            }
        }
        Err(together(failures, doing))
    }

    /// Sends the request to this server, over a kept connection where there is one. Where the kept
    /// connection turns out to be closed, the request goes over a new one; but not where the
    /// request changes something and the server may have received it.
    async fn exchange_with(
        &self,
        target: &Arc<Target>,
        doing: &str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Idle), Failed> {
        let again = |request: &Request<Full<Bytes>>| {
            let keyed = request.headers().contains_key(IDEMPOTENCY_KEY);
            (request.method().is_safe() || keyed).then(|| request.clone())
        };
        while let Some(mut kept) = self.kept(target) {
            if kept.sender.ready().await.is_err() {
                continue;
            }
            let again = again(&request);
            let answer = target.answers(kept.sender.try_send_request(request)).await;
            match answer.map_err(Failed::Final)? {
                Ok(response) => return Ok((response, kept)),
                Err(mut error) => match error.take_message().or(again) {
                    Some(unsent) => request = unsent,
                    None => return Err(Failed::Final(target.fault(doing, error.error()))),
                },
            }
        }
        let generation = target.generation();
        let mut sender: Sender = match self.targets.reach(target, doing).await {
            Ok(sender) => sender,
            Err(error) => return Err(Failed::GoOn(error, Box::new(request))),
        };
        let again = again(&request);
        let answer = target.answers(sender.try_send_request(request)).await;
        match answer.map_err(Failed::Final)? {
            Ok(response) => Ok((response, Idle { sender, target: target.clone(), generation })),
            Err(mut error) => {
                let unsent = error.take_message().or(again);
                match (target.fault(doing, error.error()), unsent) {
                    // All servers admit the same identities.
                    (error @ ClientError::Problem(_), _) | (error, None) => {
                        Err(Failed::Final(error))
                    }
                    (error, Some(unsent)) => Err(Failed::GoOn(error, Box::new(unsent))),
                }
            }
        }
    }
}

/// Returns whether the status is a success, an upgrade included.
pub(super) fn is_success(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS
}
