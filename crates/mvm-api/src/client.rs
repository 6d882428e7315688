//! The client: HTTP/1.1 over a Unix socket, or over connections that it is handed the way to.

use crate::identity::{Identity, SERVER_NAME};
use crate::page::{List, next_of};
use crate::problem::Problem;
use crate::routes::{IDEMPOTENCY_KEY, ON_BEHALF_OF};
use http_body_util::{BodyExt, Either, Full};
pub use hyper::body::Bytes;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use mvm_model::Code;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

mod connect;
mod events;
mod keyed;
mod patience;
mod several;
mod silent;
mod upload;

use connect::Target;
pub use connect::{Connect, Duplex};
pub use events::Event;
pub use patience::{Patience, Waiting};
use several::Targets;

/// The protocol named in `Upgrade:` for raw streams.
pub const UPGRADE: &str = "mvm-stream";

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("nobody answers at {at}: {cause}")]
    Unreachable {
        /// The socket, or `HOST:PORT`.
        at: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The connection broke or spoke something else.
    #[error("the connection to the agent broke while {doing}: {cause}")]
    Broken {
        /// Method and path.
        doing: String,
        /// The cause.
        cause: String,
    },
    /// Somebody takes connections and answers none.
    #[error("{at} has not answered for {} s, not even whether it is there", waited.as_secs())]
    Silent {
        /// The socket, or `HOST:PORT`.
        at: String,
        /// For how long.
        waited: std::time::Duration,
    },
    /// The agent refused or failed.
    #[error("{0}")]
    Problem(Box<Problem>),
}

impl ClientError {
    /// The code of this error's problem document; none where only a later version knows it.
    pub fn code(&self) -> Option<Code> {
        match self {
            ClientError::Unreachable { .. } => Some(Code::AgentUnreachable),
            ClientError::Broken { .. } => Some(Code::ConnectionBroken),
            ClientError::Silent { .. } => Some(Code::AgentSilent),
            ClientError::Problem(problem) => problem.code.known(),
        }
    }

    /// This error as a problem document.
    pub fn into_problem(self) -> Problem {
        match self {
            ClientError::Problem(problem) => *problem,
            ClientError::Unreachable { ref at, .. } => {
                let hint = match at.starts_with('/') {
                    true => "see `mvm agent status`, or start it with `mvm agent serve`",
                    false => {
                        "check the address, and that an agent or a coordinator serves there: \
                         mvm agent serve --listen ADDRESS:PORT"
                    }
                };
                Problem::new(Code::AgentUnreachable, self.to_string()).hint(hint)
            }
            ClientError::Silent { .. } => Problem::new(Code::AgentSilent, self.to_string()).hint(
                "its process was stopped or hangs, or its host does: see its state with ps(1), and end it \
                 with kill(1) if need be; what was asked may still be carried out, see then \
                 `mvm job list` and `mvm instance list`",
            ),
            ClientError::Broken { .. } => Problem::new(Code::ConnectionBroken, self.to_string())
                .hint("the agent's log says more: see `mvm agent status` for its root"),
        }
    }
}

/// An upgraded connection: bytes both ways.
pub type Stream = TokioIo<hyper::upgrade::Upgraded>;

/// The body of an answer that is passed on: read whole, or as it comes.
pub type Relayed = Either<Full<Bytes>, Incoming>;

/// Speaks to one server, over its Unix socket or by a [`Connect`]; or to whichever of several answers.
/// Connections are kept for the next call; clones share them.
#[derive(Clone)]
pub struct Client {
    targets: Arc<Targets>,
    idle: Arc<Mutex<Vec<Idle>>>,
    /// For whom a coordinator asks.
    behalf: Option<Identity>,
    /// How long a request that may go well later is sent again.
    patience: Patience,
}

/// A connection that nobody uses now.
struct Idle {
    sender: Sender,
    /// Whose server it is to.
    target: Arc<Target>,
    /// Of the identity that it was made with.
    generation: u64,
}

type Sender<B = Full<Bytes>> = SendRequest<B>;

/// Answers up to this size, in bytes, are read whole where they are passed on.
const WHOLE: u64 = 1 << 20;

/// How many idle connections are kept.
const KEPT: usize = 16;

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Client").field(&self.targets.to_string()).finish()
    }
}

impl Client {
    /// A client of the agent that listens on `socket`. Connects with the first call.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Client::of(Target::Unix(socket.into()))
    }

    /// A client of the server at `address` (`HOST:PORT`), to which `way` makes the connections.
    /// Connects with the first call.
    pub fn over(address: impl Into<String>, way: Arc<dyn Connect>) -> Self {
        Client::of(Target::Other { address: address.into(), way })
    }

    fn of(target: Target) -> Self {
        let (targets, patience) = (Arc::new(Targets::new(target)), Patience::none());
        Client { targets, idle: Arc::default(), behalf: None, patience }
    }

    /// The same client, which goes on to the servers of `other` where its own cannot be reached. Asked
    /// first is the one that has answered last. What may have been carried out is said to another one
    /// only where that is safe: what reads, and what has an `Idempotency-Key`.
    pub fn or(self, other: Client) -> Self {
        Client { targets: Arc::new(self.targets.and(&other.targets)), ..self }
    }

    /// The server that has answered last: its socket, or `HOST:PORT`.
    pub fn server(&self) -> String {
        self.targets.last().to_string()
    }

    /// The same client, asking for somebody else: servers allow that to coordinators.
    pub fn on_behalf_of(&self, identity: Identity) -> Self {
        Client { behalf: Some(identity), ..self.clone() }
    }

    /// `GET path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, &()).await
    }

    /// `GET path` of a list: one page of it, and the path of the next.
    pub async fn page<T: DeserializeOwned>(&self, path: &str) -> Result<List<T>, ClientError> {
        let doing = format!("GET {path}");
        let (head, bytes) = self.answer(Method::GET, path, &()).await?;
        let link = head.headers.get(header::LINK).and_then(|link| link.to_str().ok());
        let next = link.and_then(next_of).map(str::to_owned);
        let items = serde_json::from_slice(&bytes).map_err(|cause| broken(&doing, cause))?;
        Ok(List { items, next })
    }

    /// `GET path` of a list: all of its pages.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let List { mut items, mut next } = self.page(path).await?;
        while let Some(path) = next {
            let page: List<T> = self.page(&path).await?;
            items.extend(page.items);
            next = page.next;
        }
        Ok(items)
    }

    /// `POST path` with a JSON body.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, body).await
    }

    /// `PUT path` with a JSON body.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::PUT, path, body).await
    }

    /// `PATCH path` with a JSON body.
    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::PATCH, path, body).await
    }

    /// `DELETE path`.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::DELETE, path, &()).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let doing = format!("{method} {path}");
        let (_, bytes) = self.answer(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|cause| broken(&doing, cause))
    }

    /// The whole answer of a request that is to succeed. It is asked for again for as long as the
    /// client's patience allows.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(http::response::Parts, Bytes), ClientError> {
        let doing = format!("{method} {path}");
        let request = self.request(method, path, body, false);
        let mut request = request.map_err(|cause| broken(&doing, cause))?;
        let repeatable = self.make_repeatable(&mut request);
        let mut waiting = self.waiting();
        loop {
            match self.answer_once(&doing, request.clone()).await {
                Err(error) => waiting.again(error, repeatable).await?,
                answer => return answer,
            }
        }
    }

    async fn answer_once(
        &self,
        doing: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<(http::response::Parts, Bytes), ClientError> {
        let (response, sender) = self.accepted(doing, request).await?;
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.map_err(|cause| sender.target.fault(doing, &cause))?;
        self.keep(sender);
        Ok((head, bytes.to_bytes()))
    }

    /// Keeps a connection for the next call.
    fn keep(&self, sender: Idle) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(sender);
        }
    }

    /// A kept connection to this server that can be used.
    fn kept(&self, target: &Arc<Target>) -> Option<Idle> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|one| !one.sender.is_closed() && one.generation == one.target.generation());
        let at = idle.iter().rposition(|one| Arc::ptr_eq(&one.target, target))?;
        Some(idle.remove(at))
    }

    /// `GET path`, then calls `each` with every piece of the body as it comes.
    pub async fn download(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), ClientError> {
        let (response, sender) = self.send(Method::GET, path, &()).await?;
        let mut body = response.into_body();
        while let Some(frame) = sender.target.answers(body.frame()).await? {
            let frame = frame.map_err(|cause| sender.target.fault(path, &cause))?;
            if let Some(data) = frame.data_ref() {
                each(data);
            }
        }
        Ok(())
    }

    /// `POST path` with `Upgrade`: gives the raw stream.
    pub async fn upgrade(&self, path: &str, body: &impl Serialize) -> Result<Stream, ClientError> {
        let doing = format!("POST {path}");
        let request = self.request(Method::POST, path, body, true);
        self.switch(&doing, request.map_err(|cause| broken(&doing, cause))?).await
    }

    /// Sends a request whose answer is a raw stream, for as long as the client's patience allows.
    async fn switch(
        &self,
        doing: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<Stream, ClientError> {
        let repeatable = request.headers().contains_key(IDEMPOTENCY_KEY);
        let mut waiting = self.waiting();
        loop {
            match self.switch_once(doing, request.clone()).await {
                Err(error) => waiting.again(error, repeatable).await?,
                stream => return stream,
            }
        }
    }

    async fn switch_once(
        &self,
        doing: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<Stream, ClientError> {
        let (response, _sender) = self.accepted(doing, request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(broken(doing, "the agent did not switch protocols"));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|cause| broken(doing, cause))?;
        Ok(TokioIo::new(upgraded))
    }

    /// Sends a request as it is and gives the answer as it is, whatever its status. An answer of a
    /// known, small length is read whole; others go on as they come.
    pub async fn relay(
        &self,
        mut request: Request<Bytes>,
    ) -> Result<Response<Relayed>, ClientError> {
        let doing = self.sign(&mut request)?;
        let (response, sender) = self.exchange(&doing, request.map(Full::new)).await?;
        let whole = response.body().size_hint().exact().is_some_and(|size| size <= WHOLE);
        if !whole || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response.map(Either::Right));
        }
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|cause| sender.target.fault(&doing, &cause))?;
        self.keep(sender);
        Ok(Response::from_parts(parts, Either::Left(Full::new(body.to_bytes()))))
    }

    /// The same where the body goes on as it comes, too: over a connection of its own.
    pub async fn relay_stream<B>(
        &self,
        mut request: Request<B>,
    ) -> Result<Response<Incoming>, ClientError>
    where
        B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let doing = self.sign(&mut request)?;
        let (mut sender, target) = self.targets.connect(&doing).await?;
        let response = sender.send_request(request).await;
        response.map_err(|cause| target.fault(&doing, &cause))
    }

    /// Has a request that is passed on say for whom it asks, and nobody else; gives what it does.
    fn sign<B>(&self, request: &mut Request<B>) -> Result<String, ClientError> {
        let doing = format!("{} {}", request.method(), request.uri());
        request.headers_mut().remove(ON_BEHALF_OF);
        if let Some(identity) = &self.behalf {
            let name = identity.to_string();
            let name = name.parse().map_err(|cause| broken(&doing, cause))?;
            request.headers_mut().insert(ON_BEHALF_OF, name);
        }
        Ok(doing)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(Response<Incoming>, Idle), ClientError> {
        let doing = format!("{method} {path}");
        let request = self.request(method, path, body, false);
        self.accepted(&doing, request.map_err(|cause| broken(&doing, cause))?).await
    }

    /// Sends a request that is to succeed.
    async fn accepted(
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

    /// What every request says.
    fn begin(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(path).header(header::HOST, SERVER_NAME);
        match &self.behalf {
            Some(identity) => request.header(ON_BEHALF_OF, identity.to_string()),
            None => request,
        }
    }

    fn request(
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
}

fn is_success(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// The last of an error's causes: hyper's own words say little.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match deepest.downcast_ref::<std::io::Error>() {
        // Of an end without TLS' own good-bye, rustls tells at length, with a reference.
        Some(end) if end.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the connection was cut".to_owned()
        }
        _ => deepest.to_string(),
    }
}

fn broken(doing: &str, cause: impl ToString) -> ClientError {
    ClientError::Broken { doing: doing.to_owned(), cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::deepest;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_connection_that_ends_without_good_bye_is_told_in_few_words() {
        let end = Error::new(ErrorKind::UnexpectedEof, "peer closed connection without …");
        assert_eq!(deepest(&end), "the connection was cut");
        assert_eq!(deepest(&Error::other("a fault")), "a fault");
    }
}
