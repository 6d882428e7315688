//! Reads small request bodies that the handler has left unread. Otherwise hyper closes the
//! connection without notice, and the client's next request on it fails.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The longest body that is read to its end, in bytes.
const SMALL: u64 = 64 << 10;
/// How long reading to the end may take.
const SOON: Duration = Duration::from_secs(1);

/// A request's body, shared by the handler and by the reader of the rest.
#[derive(Clone)]
pub struct Left(Arc<Mutex<Body>>);

impl Left {
    /// Shares the request's body so that its rest can be read later; `None` where it is longer than
    /// `SMALL` or of unknown length.
    pub fn of(request: &mut Request) -> Option<Left> {
        let length = request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?;
        length.parse::<u64>().ok().filter(|length| (1..=SMALL).contains(length))?;
        let left = Left(Arc::new(Mutex::new(std::mem::take(request.body_mut()))));
        *request.body_mut() = Body::new(left.clone());
        Some(left)
    }

    /// Reads the body to its end.
    pub async fn drain(mut self) {
        let read = async { while self.frame().await.is_some_and(|frame| frame.is_ok()) {} };
        let _ = tokio::time::timeout(SOON, read).await;
    }

    fn body(&self) -> parking_lot::MutexGuard<'_, Body> {
        self.0.lock()
    }
}

impl HttpBody for Left {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.body()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}

#[cfg(test)]
mod tests {
    use crate::request;
    use axum::Router;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// Reads one response of a known length; returns its first line.
    async fn answer(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        loop {
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.expect("a length").parse().expect("a number");
                if body.len() >= length {
                    return head.lines().next().unwrap_or_default().to_owned();
                }
            }
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.expect("read");
            assert!(count > 0, "closed after {text:?}");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }

    #[tokio::test]
    async fn a_connection_outlives_a_body_that_nobody_reads() {
        let app =
            Router::new().route("/x", get(|| async { "here" })).layer(from_fn(request::layer));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, app).await });
        let mut stream = TcpStream::connect(address).await.expect("connects");
        for _ in 0..5 {
            let head = "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n";
            stream.write_all(head.as_bytes()).await.expect("write");
            // The body arrives after the refusal.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            stream.write_all(b"0123456789").await.expect("write");
            assert_eq!(answer(&mut stream).await, "HTTP/1.1 405 Method Not Allowed");
        }
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("write");
        assert_eq!(answer(&mut stream).await, "HTTP/1.1 200 OK");
    }
}
