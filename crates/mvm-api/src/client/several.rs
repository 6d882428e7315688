//! Several servers, any of which will do: whichever of them answers.

use super::connect::{Sender, Target};
use super::error::{ClientError, broken};
use hyper::body::{Body, Bytes};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::timeout;

/// How long a connection may take to be made where there are others to ask.
const PATIENCE: Duration = Duration::from_secs(3);

/// The servers, any of which will do.
pub(super) struct Targets {
    /// At least one.
    all: Vec<Arc<Target>>,
    /// Which of them has answered last.
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

    /// These, then the others.
    pub fn and(&self, others: &Targets) -> Targets {
        let all = self.all.iter().chain(&others.all).cloned().collect();
        Targets { all, last: AtomicUsize::new(self.last.load(Ordering::Relaxed)) }
    }

    /// All of them once: first the one that has answered last.
    pub fn in_turn(&self) -> impl Iterator<Item = (usize, &Arc<Target>)> {
        let (first, count) = (self.last.load(Ordering::Relaxed), self.all.len());
        (0..count).map(move |step| {
            let at = (first + step) % count;
            (at, &self.all[at])
        })
    }

    /// The one that has answered last.
    pub fn last(&self) -> &Target {
        &self.all[self.last.load(Ordering::Relaxed) % self.all.len()]
    }

    /// There is no other to ask.
    pub fn is_one(&self) -> bool {
        self.all.len() == 1
    }

    pub fn answered(&self, at: usize) {
        self.last.store(at, Ordering::Relaxed);
    }

    /// The next one is asked first from now on.
    pub fn gave_up(&self, at: usize) {
        self.last.store((at + 1) % self.all.len(), Ordering::Relaxed);
    }

    /// A connection to one of them, for a request that is sent once.
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

    /// A connection to this one; where there are others, it has less time.
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

/// Why none of them has answered: the first fault that is more than silence, else whom nobody
/// answered for, each with its cause.
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
