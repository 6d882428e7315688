//! Several servers of which any will do.

use super::connect::{Sender, Target};
use super::error::{ClientError, broken};
use hyper::body::{Body, Bytes};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::timeout;

/// How long a connection may take where there are other servers to ask.
const PATIENCE: Duration = Duration::from_secs(3);

/// The servers, any of which will do.
pub(super) struct Targets {
    /// The servers; at least one.
    all: Vec<Arc<Target>>,
    /// The index of the server that answered last.
    last: AtomicUsize,
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.all.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(","))
    }
}

impl Targets {
    pub fn new(one: Target) -> Targets {
        Targets { all: vec![Arc::new(one)], last: AtomicUsize::new(0) }
    }

    /// Returns these servers, then the others.
    pub fn and(&self, others: &Targets) -> Targets {
        let all = self.all.iter().chain(&others.all).cloned().collect();
        Targets { all, last: AtomicUsize::new(self.last.load(Ordering::Relaxed)) }
    }

    /// Returns all servers once, beginning with the one that answered last.
    pub fn in_turn(&self) -> impl Iterator<Item = (usize, &Arc<Target>)> {
        let (first, count) = (self.last.load(Ordering::Relaxed), self.all.len());
        (0..count).map(move |step| {
            let at = (first + step) % count;
            (at, &self.all[at])
        })
    }

    /// Returns the server that answered last.
    pub fn last(&self) -> &Target {
        &self.all[self.last.load(Ordering::Relaxed) % self.all.len()]
    }

    /// Returns whether there is no other server to ask.
    pub fn is_one(&self) -> bool {
        self.all.len() == 1
    }

    pub fn answered(&self, at: usize) {
        self.last.store(at, Ordering::Relaxed);
    }

    /// Notes that a server failed: the next one is asked first from now on.
    pub fn gave_up(&self, at: usize) {
        self.last.store((at + 1) % self.all.len(), Ordering::Relaxed);
    }

    /// Connects to one of the servers, for a request that is sent once.
    pub async fn connect<B>(&self, doing: &str) -> Result<(Sender<B>, Arc<Target>), ClientError>
    where
        B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let mut failures = Vec::new();
        for (at, target) in self.in_turn() {
            match self.reach(target, doing).await {
                Ok(sender) => {
                    self.answered(at);
                    return Ok((sender, target.clone()));
                }
                Err(error) => failures.push(error),
            }
        }
        Err(together(failures, doing))
    }

    /// Connects to this server; with a shorter limit where there are others.
    pub async fn reach<B>(&self, target: &Target, doing: &str) -> Result<Sender<B>, ClientError>
    where
        B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        if self.is_one() {
            return target.connect(doing).await;
        }
        timeout(PATIENCE, target.connect(doing)).await.unwrap_or_else(|_| {
            let cause = std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer");
            Err(ClientError::Unreachable { at: target.to_string(), cause })
        })
    }
}

/// Joins the errors of all servers: the first that is more than silence; else all of them, each
/// server with its cause.
pub(super) fn together(mut failures: Vec<ClientError>, doing: &str) -> ClientError {
    let telling = |error: &ClientError| !matches!(error, ClientError::Unreachable { .. });
    if let Some(at) = failures.iter().position(telling) {
        return failures.swap_remove(at);
    }
    let Some(ClientError::Unreachable { at: last, cause }) = failures.pop() else {
        return broken(doing, "there is no server to ask");
    };
    let mut at: Vec<String> = failures
        .iter()
        .map(|error| match error {
            ClientError::Unreachable { at, cause } => format!("{at} ({cause})"),
            other => other.to_string(),
        })
        .collect();
    at.push(last);
    ClientError::Unreachable { at: at.join(", "), cause }
}
