//! The client: HTTP/1.1 over the agent's Unix socket.

use crate::problem::Problem;
use http_body_util::{BodyExt, Full};
pub use hyper::body::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// The protocol named in `Upgrade:` for raw streams.
pub const UPGRADE: &str = "mvm-stream";

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error("no agent answers on {socket}: {cause}")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
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
    /// The agent refused or failed.
    #[error("{0}")]
    Problem(Box<Problem>),
}

impl ClientError {
    /// This error as a problem document.
    pub fn into_problem(self) -> Problem {
        match self {
            ClientError::Problem(problem) => *problem,
            ClientError::Unreachable { .. } => {
                Problem::new(503, "agent_unreachable", self.to_string())
                    .hint("see `mvm agent status`, or start it with `mvm agent serve`")
            }
            ClientError::Broken { .. } => Problem::new(502, "connection_broken", self.to_string())
                .hint("the agent's log says more: see `mvm agent status` for its root"),
        }
    }
}

/// An upgraded connection: bytes both ways.
pub type Stream = TokioIo<hyper::upgrade::Upgraded>;

/// One event of a server-sent event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its data: JSON text.
    pub data: String,
}

/// Speaks to the agent on one socket. Each call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the agent that listens on `socket`. Connects with the first call.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Client { socket: socket.into() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, &()).await
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
        let response = self.send(method, path, body, false).await?;
        let bytes = collect(response, &doing).await?;
        serde_json::from_slice(&bytes).map_err(|cause| broken(&doing, cause))
    }

    /// `POST path`, then calls `each` with every server-sent event until the stream ends.
    pub async fn events(
        &self,
        path: &str,
        body: &impl Serialize,
        each: impl FnMut(Event),
    ) -> Result<(), ClientError> {
        self.stream(Method::POST, path, body, each).await
    }

    /// `GET path`, then calls `each` with every server-sent event until the stream ends.
    pub async fn follow(&self, path: &str, each: impl FnMut(Event)) -> Result<(), ClientError> {
        self.stream(Method::GET, path, &(), each).await
    }

    async fn stream(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        mut each: impl FnMut(Event),
    ) -> Result<(), ClientError> {
        let doing = format!("{method} {path}");
        let response = self.send(method, path, body, false).await?;
        let mut body = response.into_body();
        let mut parser = EventParser::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|cause| broken(&doing, cause))?;
            if let Some(data) = frame.data_ref() {
                parser.feed(data, &mut each);
            }
        }
        Ok(())
    }

    /// `GET path`, then calls `each` with every piece of the body as it comes.
    pub async fn download(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), ClientError> {
        let response = self.send(Method::GET, path, &(), false).await?;
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|cause| broken(path, cause))?;
            if let Some(data) = frame.data_ref() {
                each(data);
            }
        }
        Ok(())
    }

    /// `POST path` with `Upgrade`: gives the raw stream.
    pub async fn upgrade(&self, path: &str, body: &impl Serialize) -> Result<Stream, ClientError> {
        let doing = format!("POST {path}");
        let response = self.send(Method::POST, path, body, true).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(broken(&doing, "the agent did not switch protocols"));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|cause| broken(&doing, cause))?;
        Ok(TokioIo::new(upgraded))
    }

    /// `PUT path` with the bytes that come in as its body, until `pieces` is closed.
    pub async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        pieces: mpsc::Receiver<std::io::Result<Bytes>>,
    ) -> Result<T, ClientError> {
        let doing = format!("PUT {path}");
        let request = Request::put(path).header(header::CONTENT_TYPE, "application/x-tar");
        let response = self.exchange(request, Pieces(pieces), &doing).await?;
        let bytes = collect(response, &doing).await?;
        serde_json::from_slice(&bytes).map_err(|cause| broken(&doing, cause))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        upgrade: bool,
    ) -> Result<Response<Incoming>, ClientError> {
        let doing = format!("{method} {path}");
        let bytes = if method == Method::GET || method == Method::DELETE {
            Bytes::new()
        } else {
            serde_json::to_vec(body).map_err(|cause| broken(&doing, cause))?.into()
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json");
        if upgrade {
            request =
                request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, UPGRADE);
        }
        self.exchange(request, Full::new(bytes), &doing).await
    }

    /// Sends a request over a connection of its own; an answer that is no success is a problem.
    async fn exchange<B>(
        &self,
        request: http::request::Builder,
        body: B,
        doing: &str,
    ) -> Result<Response<Incoming>, ClientError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|cause| ClientError::Unreachable { socket: self.socket.clone(), cause })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|cause| broken(doing, cause))?;
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        let request = request.header(header::HOST, "mvm").body(body);
        let request = request.map_err(|cause| broken(doing, cause))?;
        let response = sender.send_request(request).await.map_err(|cause| broken(doing, cause))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let bytes = collect(response, doing).await?;
        let problem = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            Problem::new(status.as_u16(), "unexpected", String::from_utf8_lossy(&bytes))
        });
        Err(ClientError::Problem(Box::new(problem)))
    }
}

/// A body that comes in pieces; one that is an error breaks it off.
struct Pieces(mpsc::Receiver<std::io::Result<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    }
}

async fn collect(response: Response<Incoming>, doing: &str) -> Result<Bytes, ClientError> {
    Ok(response.into_body().collect().await.map_err(|cause| broken(doing, cause))?.to_bytes())
}

fn broken(doing: &str, cause: impl ToString) -> ClientError {
    ClientError::Broken { doing: doing.to_owned(), cause: cause.to_string() }
}

/// Parses a server-sent event stream (WHATWG HTML, section 9.2), as far as the agent uses it.
#[derive(Default)]
struct EventParser {
    line: Vec<u8>,
    name: String,
    data: String,
}

impl EventParser {
    fn feed(&mut self, bytes: &[u8], each: &mut impl FnMut(Event)) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.line_done(&String::from_utf8_lossy(&line), each);
            } else if byte != b'\r' {
                self.line.push(byte);
            }
        }
    }

    fn line_done(&mut self, line: &str, each: &mut impl FnMut(Event)) {
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            let data = std::mem::take(&mut self.data);
            if !data.is_empty() {
                each(Event { name, data });
            }
        } else if let Some(name) = line.strip_prefix("event:") {
            self.name = name.trim_start().to_owned();
        } else if let Some(data) = line.strip_prefix("data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_cut() {
        let text = b"event: progress\ndata: {\"a\":1}\n\n: comment\n\nevent: result\ndata: 2\n\n";
        let all = |step: usize| {
            let mut events = Vec::new();
            let mut parser = EventParser::default();
            for piece in text.chunks(step) {
                parser.feed(piece, &mut |event| events.push((event.name, event.data)));
            }
            events
        };
        for step in 1..text.len() {
            assert_eq!(
                all(step),
                [
                    ("progress".to_owned(), "{\"a\":1}".to_owned()),
                    ("result".to_owned(), "2".to_owned())
                ]
            );
        }
    }
}
