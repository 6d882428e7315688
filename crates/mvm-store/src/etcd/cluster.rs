//! The members of the cluster: which one gets a request, and what its failures mean.

use super::options::EtcdOptions;
use crate::{Error, Result};
use backon::{ExponentialBuilder, Retryable};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::Code;

/// Interval of pings: often enough to notice a dead member while watching, but not more often than
/// every five seconds, since etcd then hangs up.
const PING: Duration = Duration::from_secs(6);

/// One connection per member; requests go to one member until it fails, then to the next.
pub struct Cluster {
    pub options: EtcdOptions,
    clients: Vec<Mutex<Option<Client>>>,
    current: AtomicUsize,
}

/// Why a request got no result.
#[derive(Debug)]
pub enum Failure {
    /// The member refused: nothing was done, and asking again gives the same.
    Refused(Error),
    /// Nothing was done; another member, or this one later, may do it.
    Unsent(String),
    /// It is unknown whether the request was carried out, or still will be.
    Lost(String),
}

impl Cluster {
    pub fn new(options: EtcdOptions) -> Cluster {
        let clients = options.endpoints.iter().map(|_| Mutex::new(None)).collect();
        Cluster { options, clients, current: AtomicUsize::new(0) }
    }

    /// Returns the number of the member that requests go to now.
    pub fn member(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Sends a request to that member once. Any failure but a refusal makes the next request go to
    /// another member.
    pub async fn attempt<T, F>(
        &self,
        member: usize,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let client = self.client(member).await?;
        let limit = self.options.request_timeout;
        let failure = match tokio::time::timeout(limit, call(client)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => self.judge(error),
            Err(_) => Failure::Lost(format!("no answer within {limit:?}")),
        };
        if !matches!(failure, Failure::Refused(_)) {
            tracing::debug!(
                member = self.options.endpoints[member],
                ?failure,
                "etcd member failed"
            );
            self.abandon(member);
        }
        Err(failure)
    }

    /// Sends a request until there is an answer, or patience ends; only for requests that may be
    /// repeated.
    pub async fn ask<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        (|| self.attempt(self.member(), &call))
            .retry(self.backoff())
            .when(|failure| !matches!(failure, Failure::Refused(_)))
            .await
            .map_err(|failure| match failure {
                Failure::Refused(error) => error,
                Failure::Unsent(cause) | Failure::Lost(cause) => self.unreachable(cause),
            })
    }

    /// Returns the delays between tries.
    pub fn backoff(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(20))
            .with_max_delay(Duration::from_secs(1))
            .with_total_delay(Some(self.options.patience))
            .without_max_times()
            .with_jitter()
    }

    pub fn unreachable(&self, cause: String) -> Error {
        Error::Unreachable { path: self.name(), cause }
    }

    /// Returns the cluster's name in errors.
    pub fn name(&self) -> String {
        self.options.endpoints.join(",")
    }

    /// Returns a connection to that member, opened when first used. The certificate's files are
    /// read for each new connection, so that renewed ones need no restart.
    async fn client(&self, member: usize) -> Result<Client, Failure> {
        let kept = || self.clients[member].lock();
        if let Some(client) = kept().clone() {
            return Ok(client);
        }
        let connection = self.connection().await.map_err(|e| {
            Failure::Refused(Error::Engine { path: self.name(), cause: e.to_string() })
        })?;
        let endpoint = [self.options.endpoints[member].as_str()];
        let client =
            Client::connect(endpoint, Some(connection)).await.map_err(|e| self.judge(e))?;
        *kept() = Some(client.clone());
        Ok(client)
    }

    async fn connection(&self) -> std::io::Result<ConnectOptions> {
        let options = ConnectOptions::new()
            .with_connect_timeout(self.options.request_timeout)
            .with_keep_alive(PING, self.options.request_timeout)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true);
        let Some(tls) = &self.options.tls else { return Ok(options) };
        let named = |path: &std::path::Path, e: std::io::Error| {
            std::io::Error::new(e.kind(), format!("{}: {e}", path.display()))
        };
        let read =
            async |path: &std::path::Path| tokio::fs::read(path).await.map_err(|e| named(path, e));
        let authority = Certificate::from_pem(read(&tls.authority).await?);
        let identity = Identity::from_pem(read(&tls.certificate).await?, read(&tls.key).await?);
        Ok(options.with_tls(TlsOptions::new().ca_certificate(authority).identity(identity)))
    }

    /// Closes the connection once nobody uses it, and lets requests go to the next member.
    pub fn abandon(&self, member: usize) {
        *self.clients[member].lock() = None;
        let next = (member + 1) % self.clients.len();
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Returns what an error of the client means for the request.
    pub fn judge(&self, error: etcd_client::Error) -> Failure {
        let path = self.name();
        let status = match error {
            etcd_client::Error::GRpcStatus(status) => status,
            etcd_client::Error::TransportError(e) => return lost(&e),
            etcd_client::Error::IoError(e) => return lost(&e),
            etcd_client::Error::WatchError(cause)
            | etcd_client::Error::LeaseKeepAliveError(cause) => return Failure::Lost(cause),
            other => {
                return Failure::Refused(Error::Engine { path, cause: other.to_string() });
            }
        };
        let cause = status.message().to_owned();
        match status.code() {
            Code::ResourceExhausted if cause.contains("database space exceeded") => {
                Failure::Refused(Error::NoSpace { path })
            }
            Code::ResourceExhausted if cause.contains("too many requests") => {
                Failure::Unsent(cause)
            }
            Code::InvalidArgument if cause.contains("too many operations") => too_large(cause),
            Code::InvalidArgument if cause.contains("request is too large") => too_large(cause),
            Code::ResourceExhausted if cause.contains("larger than max") => too_large(cause),
            Code::OutOfRange if cause.contains("compacted") => {
                Failure::Refused(Error::Compacted { after: 0 })
            }
            Code::OutOfRange
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::ResourceExhausted => Failure::Refused(Error::Engine { path, cause }),
            _ => lost(&status),
        }
    }
}

fn too_large(cause: String) -> Failure {
    Failure::Refused(Error::TooLarge { cause })
}

/// Tells a request that was never sent from one whose answer was lost.
fn lost(error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut said = error.to_string();
    let mut refused = false;
    let mut inner = error.source();
    while let Some(cause) = inner {
        let io = cause.downcast_ref::<std::io::Error>();
        refused |= io.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
        said = format!("{said}: {cause}");
        inner = cause.source();
    }
    if refused { Failure::Unsent(said) } else { Failure::Lost(said) }
}
