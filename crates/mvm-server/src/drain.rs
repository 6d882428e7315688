//! Bodies that nobody reads. A server closes the connection of a request that it has not read to its
//! end, without a word, and the client finds out with its next request; so small ones are read.

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

/// A longer body is not read for its own sake, in bytes.
const SMALL: u64 = 64 << 10;
/// Nor is one that comes too slowly.
const SOON: Duration = Duration::from_secs(1);

/// A body that two hold: whoever handles the request, and who reads what is left of it.
#[derive(Clone)]
pub struct Left(Arc<Mutex<Body>>);

impl Left {
    /// Has the request's body be read to its end later, if it is a small one.
    pub fn of(request: &mut Request) -> Option<Left> {
        let length = request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?;
        length.parse::<u64>().ok().filter(|length| (1..=SMALL).contains(length))?;
        let left = Left(Arc::new(Mutex::new(std::mem::take(request.body_mut()))));
        *request.body_mut() = Body::new(left.clone());
        Some(left)
    }

    /// Reads it to its end.
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

    /// Reads one answer of a known length; gives its first line.
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
            // The body comes when the refusal is made already.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            stream.write_all(b"0123456789").await.expect("write");
            assert_eq!(answer(&mut stream).await, "HTTP/1.1 405 Method Not Allowed");
        }
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("write");
        assert_eq!(answer(&mut stream).await, "HTTP/1.1 200 OK");
    }
}
