//! One client of several servers: whichever of them answers.

use super::connect::Target;
use super::{Bytes, Client, ClientError, Idle, Sender};
use crate::routes::IDEMPOTENCY_KEY;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::{Request, Response};
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

/// Why a request has no answer of one server.
enum Failed {
    /// Another one may be asked; with the request, where this one has not been given it.
    GoOn(ClientError, Box<Request<Full<Bytes>>>),
    /// It may have been carried out, or others would say the same.
    Final(ClientError),
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
    fn in_turn(&self) -> impl Iterator<Item = (usize, &Arc<Target>)> {
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

    fn answered(&self, at: usize) {
        self.last.store(at, Ordering::Relaxed);
    }

    /// The next one is asked first from now on.
    fn gave_up(&self, at: usize) {
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
    async fn reach<B>(&self, target: &Target, doing: &str) -> Result<Sender<B>, ClientError>
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

impl Client {
    /// Sends the request to the server that has answered last, else to the next that can be reached.
    pub(super) async fn exchange(
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

    /// Sends the request to this server, over a kept connection where there is one. One that turns
    /// out to be closed is replaced by a new one, unless it may have been closed after a request was
    /// taken that changes something.
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
                    // Whom it does not let in, others do not either.
                    (error @ ClientError::Problem(_), _) | (error, None) => {
                        Err(Failed::Final(error))
                    }
                    (error, Some(unsent)) => Err(Failed::GoOn(error, Box::new(unsent))),
                }
            }
        }
    }
}

/// Why none of them has answered: the first fault that is more than silence, else whom nobody
/// answered for, each with its cause.
fn together(mut failures: Vec<ClientError>, doing: &str) -> ClientError {
    let telling = |error: &ClientError| !matches!(error, ClientError::Unreachable { .. });
    if let Some(at) = failures.iter().position(telling) {
        return failures.swap_remove(at);
    }
    let Some(ClientError::Unreachable { at: last, cause }) = failures.pop() else {
        return super::broken(doing, "there is no server to ask");
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
