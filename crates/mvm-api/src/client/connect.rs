//! Addresses of servers, and connections to them.

use super::error::{ClientError, broken, deepest};
use crate::problem::Problem;
use async_trait::async_trait;
use http_body_util::{BodyExt, Full};
use hyper::Response;
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use mvm_model::Code;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

/// A stream of bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// Makes connections to a server that has no Unix socket, for example over TLS.
#[async_trait]
pub trait Connect: Send + Sync {
    /// Makes a new connection.
    async fn connect(&self) -> std::io::Result<Box<dyn Duplex>>;

    /// Counts the identities that were shown to the server. A kept connection of an earlier
    /// generation is not used again.
    fn generation(&self) -> u64;

    /// Returns the problem that this transport makes of a connection's error; `None` where the
    /// error comes from the operating system or from HTTP.
    fn fault(&self, error: &(dyn std::error::Error + 'static)) -> Option<Problem>;
}

/// Sends requests over one connection.
pub(super) type Sender<B = Full<Bytes>> = SendRequest<B>;

/// The address of a server, and how to connect to it.
pub(super) enum Target {
    Unix(PathBuf),
    Other { address: String, way: Arc<dyn Connect> },
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Unix(socket) => socket.display().fmt(f),
            Target::Other { address, .. } => f.write_str(address),
        }
    }
}

impl Target {
    /// Returns the problem that the transport makes of an error; `None` where the error comes from
    /// the operating system or from HTTP.
    fn problem_of(&self, cause: &(dyn std::error::Error + 'static)) -> Option<Problem> {
        match self {
            Target::Unix(_) => None,
            Target::Other { way, .. } => way.fault(cause),
        }
    }

    pub(super) fn generation(&self) -> u64 {
        match self {
            Target::Unix(_) => 0,
            Target::Other { way, .. } => way.generation(),
        }
    }

    /// Turns an error of the connection into a client's error. A TLS error about certificates
    /// becomes a problem of its own.
    pub(super) fn fault(
        &self,
        doing: &str,
        cause: &(dyn std::error::Error + 'static),
    ) -> ClientError {
        match self.problem_of(cause) {
            Some(problem) => ClientError::Problem(Box::new(problem)),
            None => broken(doing, deepest(cause)),
        }
    }

    pub(super) async fn connect<B>(&self, doing: &str) -> Result<Sender<B>, ClientError>
    where
        B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let unreachable = |cause: std::io::Error| match self.problem_of(&cause) {
            Some(problem) => ClientError::Problem(Box::new(problem)),
            None => ClientError::Unreachable { at: self.to_string(), cause },
        };
        match self {
            Target::Unix(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
                self.speak(doing, stream).await
            }
            Target::Other { way, .. } => {
                let stream = way.connect().await.map_err(unreachable)?;
                self.speak(doing, stream).await
            }
        }
    }

    async fn speak<B>(
        &self,
        doing: &str,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Sender<B>, ClientError>
    where
        B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|cause| self.fault(doing, &cause))?;
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    /// Reads the problem document of a response that is not a success.
    pub(super) async fn refusal(
        &self,
        response: Response<Incoming>,
        doing: &str,
    ) -> Result<ClientError, ClientError> {
        let status = response.status();
        let bytes = self.collect(response, doing).await?;
        let problem = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            let problem = Problem::new(Code::Unexpected, String::from_utf8_lossy(&bytes));
            Problem { status: status.as_u16(), ..problem }
        });
        Ok(ClientError::Problem(Box::new(problem)))
    }

    pub(super) async fn collect(
        &self,
        response: Response<Incoming>,
        doing: &str,
    ) -> Result<Bytes, ClientError> {
        let body = response.into_body().collect().await;
        Ok(body.map_err(|cause| self.fault(doing, &cause))?.to_bytes())
    }
}
