//! The client: HTTP/1.1 over a Unix socket, or over the connections of a [`Connect`].
//!
//! A [`Client`] makes calls whose answers are documents. Its [`Streams`] do what takes longer.

mod connect;
mod error;
mod events;
mod line;
mod patience;
mod several;
mod silent;
mod streams;
mod upload;

pub use connect::{Connect, Duplex};
pub use error::ClientError;
pub use events::Event;
pub use hyper::body::Bytes;
pub use line::UPGRADE;
pub use patience::{Patience, Waiting};
pub use streams::{Relayed, Stream, Streams};

use crate::identity::Identity;
use crate::page::{List, next_of};
use connect::Target;
use error::broken;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, header};
use line::Line;
use patience::make_repeatable;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::sync::Arc;

/// A client of one server, over its Unix socket or a [`Connect`], or of several servers of which
/// any will do. Connections are kept for the next call; clones share them.
#[derive(Clone)]
pub struct Client {
    line: Line,
    /// How long a request that may yet succeed is repeated.
    patience: Patience,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Client").field(&self.line.targets.to_string()).finish()
    }
}

impl Client {
    /// Returns a client of the agent that listens on `socket`. It connects with the first call.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Client::of(Target::Unix(socket.into()))
    }

    /// Returns a client of the server at `address` (`HOST:PORT`), with connections made by `way`.
    /// It connects with the first call.
    pub fn over(address: impl Into<String>, way: Arc<dyn Connect>) -> Self {
        Client::of(Target::Other { address: address.into(), way })
    }

    fn of(target: Target) -> Self {
        Client { line: Line::to(target), patience: Patience::none() }
    }

    /// Returns a client that also asks the servers of `other` where its own cannot be reached. The
    /// server that answered last is asked first. A request that one server may have carried out
    /// goes to another server only where that is safe: it reads only, or it has an
    /// `Idempotency-Key`.
    pub fn or(self, other: Client) -> Self {
        Client { line: self.line.and(&other.line), ..self }
    }

    /// Returns the server that answered last: its socket, or `HOST:PORT`.
    pub fn server(&self) -> String {
        self.line.targets.last().to_string()
    }

    /// Returns the same client, with requests on behalf of `identity`. Servers allow that to
    /// coordinators only.
    pub fn on_behalf_of(&self, identity: Identity) -> Self {
        Client { line: self.line.on_behalf_of(identity), patience: self.patience.clone() }
    }

    /// `GET path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, &()).await
    }

    /// `GET path` of a list: returns one page and the path of the next one.
    pub async fn page<T: DeserializeOwned>(&self, path: &str) -> Result<List<T>, ClientError> {
        let doing = format!("GET {path}");
        let (head, bytes) = self.answer(Method::GET, path, &()).await?;
        let link = head.headers.get(header::LINK).and_then(|link| link.to_str().ok());
        let next = link.and_then(next_of).map(str::to_owned);
        let items = serde_json::from_slice(&bytes).map_err(|cause| broken(&doing, cause))?;
        Ok(List { items, next })
    }

    /// `GET path` of a list: returns the items of all pages.
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

    /// Returns the whole response of a request. A response that is not a success is an error. The
    /// request is repeated for as long as the client's patience allows.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(http::response::Parts, Bytes), ClientError> {
        let doing = format!("{method} {path}");
        let request = self.line.request(method, path, body, false);
        let mut request = request.map_err(|cause| broken(&doing, cause))?;
        let repeatable = make_repeatable(&mut request, &self.patience);
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
        let (response, sender) = self.line.accepted(doing, request).await?;
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.map_err(|cause| sender.target.fault(doing, &cause))?;
        self.line.keep(sender);
        Ok((head, bytes.to_bytes()))
    }

    /// Waits for `work`, the answer of the server that answered last, for as long as that server
    /// lives. Errors: [`ClientError::Silent`].
    pub async fn while_there<T>(&self, work: impl Future<Output = T>) -> Result<T, ClientError> {
        self.line.targets.last().answers(work).await
    }

    /// Returns the same client, which repeats requests where no coordinator leads or no server
    /// answers. Requests that create something get an idempotency key, so that they create it once.
    pub fn patient(self, patience: Patience) -> Client {
        Client { patience, ..self }
    }

    /// Returns how long the client repeats a request.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Begins the waiting of one request. Its time counts from the request's first failure.
    pub fn waiting(&self) -> Waiting {
        self.patience.waiting(self.line.targets.is_one())
    }

    /// Returns the calls that take longer: downloads, event streams, upgrades.
    pub fn streams(&self) -> Streams<'_> {
        Streams { line: &self.line, patience: &self.patience }
    }
}
