//! Server-sent events, and streams of them that resume after a broken connection.

use super::error::{ClientError, broken};
use super::line::is_success;
use super::streams::{AGAIN, Streams};
use crate::position::LAST_EVENT_ID;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The server counts as gone after this silence; it sends something every 15 s.
const SILENCE: Duration = Duration::from_secs(45);

/// One event of a server-sent event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The event's name.
    pub name: String,
    /// The event's data: JSON text.
    pub data: String,
    /// The event's id: a stream resumes after it. Empty where the event has none.
    pub id: String,
}

impl Streams<'_> {
    /// `POST path`, then calls `each` with every server-sent event until the stream ends.
    pub async fn events(
        self,
        path: &str,
        body: &impl Serialize,
        each: impl FnMut(Event),
    ) -> Result<(), ClientError> {
        let request = self.line.request(Method::POST, path, body, false);
        self.stream(&format!("POST {path}"), request, each).await
    }

    /// `GET path`, then calls `each` with every server-sent event until the stream ends.
    pub async fn follow(self, path: &str, each: impl FnMut(Event)) -> Result<(), ClientError> {
        let request = self.line.request(Method::GET, path, &(), false);
        self.stream(&format!("GET {path}"), request, each).await
    }

    /// Like [`Streams::follow`], for a stream that has no end. Where the connection breaks, `lost`
    /// is called with the cause, and a new connection goes on after the last event. Returns an
    /// error where the first connection fails for longer than the client's patience, or where the
    /// server refuses.
    pub async fn resume(
        self,
        path: &str,
        mut each: impl FnMut(Event),
        mut lost: impl FnMut(&ClientError),
    ) -> Result<(), ClientError> {
        let doing = format!("GET {path}");
        let (mut last, mut pause, mut begun) = (String::new(), AGAIN.0, false);
        let mut broke = None;
        let mut waiting = self.waiting();
        loop {
            let mut request = self.line.request(Method::GET, path, &(), false);
            if let (Ok(request), false) = (&mut request, last.is_empty()) {
                let id = last.parse().map_err(|cause| broken(&doing, cause))?;
                request.headers_mut().insert(LAST_EVENT_ID, id);
            }
            let hear = |event: Event| {
                (pause, begun, broke) = (AGAIN.0, true, None);
                if !event.id.is_empty() {
                    last.clone_from(&event.id);
                }
                each(event);
            };
            let error = match self.stream(&doing, request, hear).await {
                Ok(()) => broken(&doing, "the stream has ended"),
                Err(ClientError::Problem(problem)) if problem.status < 500 => {
                    return Err(ClientError::Problem(problem));
                }
                Err(error @ ClientError::Unreachable { .. }) if !begun => {
                    waiting.again(error, true).await?;
                    continue;
                }
                Err(error) => error,
            };
            begun = true;
            lost(&error);
            self.patience.gone(error.code(), broke.get_or_insert_with(Instant::now).elapsed());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    async fn stream(
        self,
        doing: &str,
        request: Result<Request<Full<Bytes>>, String>,
        mut each: impl FnMut(Event),
    ) -> Result<(), ClientError> {
        let request = request.map_err(|cause| broken(doing, cause))?;
        let late = |_| broken(doing, "the server has fallen silent");
        let (response, sender) =
            timeout(SILENCE, self.line.exchange(doing, request)).await.map_err(late)??;
        if !is_success(response.status()) {
            return Err(sender.target.refusal(response, doing).await?);
        }
        let mut body = response.into_body();
        let mut parser = EventParser::default();
        while let Some(frame) = timeout(SILENCE, body.frame()).await.map_err(late)? {
            let frame = frame.map_err(|cause| sender.target.fault(doing, &cause))?;
            if let Some(data) = frame.data_ref() {
                parser.feed(data, &mut each);
            }
        }
        Ok(())
    }
}

/// Parses a server-sent event stream (WHATWG HTML, section 9.2), as far as the agent uses it.
#[derive(Default)]
struct EventParser {
    line: Vec<u8>,
    name: String,
    data: String,
    id: String,
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
            let (data, id) = (std::mem::take(&mut self.data), std::mem::take(&mut self.id));
            if !data.is_empty() {
                each(Event { name, data, id });
            }
        } else if let Some(name) = line.strip_prefix("event:") {
            self.name = name.trim_start().to_owned();
        } else if let Some(id) = line.strip_prefix("id:") {
            self.id = id.trim_start().to_owned();
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
        let text =
            b"id: 7\nevent: progress\ndata: {\"a\":1}\n\n: comment\n\nevent: result\ndata: 2\n\n";
        let all = |step: usize| {
            let mut events = Vec::new();
            let mut parser = EventParser::default();
            for piece in text.chunks(step) {
                parser.feed(piece, &mut |event| events.push((event.id, event.name, event.data)));
            }
            events
        };
        for step in 1..text.len() {
            assert_eq!(
                all(step),
                [
                    ("7".to_owned(), "progress".to_owned(), "{\"a\":1}".to_owned()),
                    (String::new(), "result".to_owned(), "2".to_owned())
                ]
            );
        }
    }
}
