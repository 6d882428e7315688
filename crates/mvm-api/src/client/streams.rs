//! Calls that take longer: downloads, raw streams, and forwarded requests.

use super::error::{ClientError, broken};
use super::line::Line;
use super::patience::{Patience, Waiting};
use crate::routes::IDEMPOTENCY_KEY;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::time::Duration;

/// Forwarded responses up to this size, in bytes, are read whole.
const WHOLE: u64 = 1 << 20;
/// The pause before a stream resumes: at first, and at most.
pub(super) const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often a download resumes without a new byte.
const TRIES: u32 = 5;

/// An upgraded connection: bytes in both directions.
pub type Stream = TokioIo<hyper::upgrade::Upgraded>;

/// The body of a forwarded response: read whole, or streamed.
pub type Relayed = Either<Full<Bytes>, Incoming>;

/// The calls of a client that take longer than one request.
#[derive(Clone, Copy)]
pub struct Streams<'a> {
    pub(super) line: &'a Line,
    pub(super) patience: &'a Patience,
}

impl Streams<'_> {
    pub(super) fn waiting(self) -> Waiting {
        self.patience.waiting(self.line.targets.is_one())
    }

    /// `GET path`, then calls `each` with every piece of the body as it arrives.
    pub async fn download(
        self,
        path: &str,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), ClientError> {
        let (response, sender) = self.line.send(Method::GET, path, &()).await?;
        let mut body = response.into_body();
        while let Some(frame) = sender.target.answers(body.frame()).await? {
            let frame = frame.map_err(|cause| sender.target.fault(path, &cause))?;
            if let Some(data) = frame.data_ref() {
                each(data);
            }
        }
        Ok(())
    }

    /// `GET path` of a body that only grows and always starts at its beginning: calls `each` once
    /// with every piece. Where the connection breaks, another one goes on after the last byte; a
    /// client with patience waits for a server that has the body.
    pub async fn download_on(
        self,
        path: &str,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), ClientError> {
        let (mut had, mut pause, mut tries) = (0_usize, AGAIN.0, TRIES);
        let mut waiting = self.waiting();
        loop {
            let (mut at, before) = (0, had);
            let take = |piece: &[u8]| {
                let known = had.saturating_sub(at).min(piece.len());
                at += piece.len();
                if known < piece.len() {
                    had = at;
                    each(&piece[known..]);
                }
            };
            let Err(error) = self.download(path, take).await else { return Ok(()) };
            if had > before {
                (pause, tries) = (AGAIN.0, TRIES);
                waiting.went_on();
            }
            if waiting.after(error.code(), &error, true).await {
                continue;
            }
            match error {
                ClientError::Problem(_) => return Err(error),
                ClientError::Unreachable { .. } if had == 0 => return Err(error),
                error if tries == 0 => return Err(error),
                _ if had == before => tries -= 1,
                _ => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    /// `POST path` with `Upgrade`: returns the raw stream.
    pub async fn upgrade(self, path: &str, body: &impl Serialize) -> Result<Stream, ClientError> {
        let doing = format!("POST {path}");
        let request = self.line.request(Method::POST, path, body, true);
        self.switch(&doing, request.map_err(|cause| broken(&doing, cause))?).await
    }

    /// Sends a request whose answer is a raw stream, for as long as the client's patience allows.
    async fn switch(
        self,
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
        self,
        doing: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<Stream, ClientError> {
        let (response, _sender) = self.line.accepted(doing, request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(broken(doing, "the agent did not switch protocols"));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|cause| broken(doing, cause))?;
        Ok(TokioIo::new(upgraded))
    }

    /// Like [`Streams::upgrade`], with an idempotency key: a repetition with the same key is the
    /// same request.
    pub async fn upgrade_keyed(
        self,
        path: &str,
        body: &impl Serialize,
        key: &str,
    ) -> Result<Stream, ClientError> {
        let doing = format!("POST {path}");
        let request = self.line.request(Method::POST, path, body, true);
        let mut request = request.map_err(|cause| broken(&doing, cause))?;
        let key = HeaderValue::from_str(key).map_err(|cause| broken(&doing, cause))?;
        request.headers_mut().insert(IDEMPOTENCY_KEY, key);
        self.switch(&doing, request).await
    }

    /// Forwards a request and returns the response, whatever its status. A response of a known,
    /// small length is read whole; others are streamed.
    pub async fn relay(
        self,
        mut request: Request<Bytes>,
    ) -> Result<Response<Relayed>, ClientError> {
        let doing = self.line.sign(&mut request)?;
        let (response, sender) = self.line.exchange(&doing, request.map(Full::new)).await?;
        let whole = response.body().size_hint().exact().is_some_and(|size| size <= WHOLE);
        if !whole || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response.map(Either::Right));
        }
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|cause| sender.target.fault(&doing, &cause))?;
        self.line.keep(sender);
        Ok(Response::from_parts(parts, Either::Left(Full::new(body.to_bytes()))))
    }

    /// Like [`Streams::relay`], but streams the request's body, too, over a connection of its own.
    pub async fn relay_stream<B>(
        self,
        mut request: Request<B>,
    ) -> Result<Response<Incoming>, ClientError>
    where
        B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let doing = self.line.sign(&mut request)?;
        let (mut sender, target) = self.line.targets.connect(&doing).await?;
        let response = sender.send_request(request).await;
        response.map_err(|cause| target.fault(&doing, &cause))
    }
}
