//! A stream that fails if its other side rests for too long.

use crate::Result;
use crate::error::{Error, Stalled};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a copy may stand still, with no byte in either direction, before it fails.
pub const COPY: Duration = Duration::from_secs(60);
/// How long a guest may take to answer a request for a program or for a connection to a port.
pub const ANSWER: Duration = Duration::from_secs(60);

/// Waits for a guest's answer, for [`ANSWER`] at most. Error: `guest_silent`.
pub async fn answer<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(ANSWER, work).await.unwrap_or(Err(Error::Silent(ANSWER)))
}

/// A stream that fails once a read or write has waited too long. No time passes while nobody waits.
#[derive(Debug)]
pub struct Patient<S> {
    stream: S,
    limit: Duration,
    /// Runs while somebody waits; the next two fields say who does.
    timer: Pin<Box<Sleep>>,
    reads: bool,
    writes: bool,
}

impl<S> Patient<S> {
    /// Wraps a stream that may stand still for `limit`.
    pub fn new(stream: S, limit: Duration) -> Patient<S> {
        let timer = Box::pin(tokio::time::sleep(limit));
        Patient { stream, limit, timer, reads: false, writes: false }
    }

    /// Returns the stream's answer, or an error if the wait has lasted too long.
    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        reads: bool,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let waited = self.reads || self.writes;
        let mine = if reads { &mut self.reads } else { &mut self.writes };
        *mine = outcome.is_pending();
        if outcome.is_ready() || !waited {
            // Progress in one direction is a sign of life for a wait in the other.
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
        if outcome.is_pending() && self.timer.as_mut().poll(cx).is_ready() {
            let stalled = Stalled(self.limit);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, stalled)));
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(cx, into);
        self.judge(cx, true, outcome)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, false, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, false, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_stream_that_stands_still_fails_and_one_that_moves_does_not() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = Patient::new(near, Duration::from_millis(300));
        // All together, this takes longer than a single wait may.
        let slowly = tokio::spawn(async move {
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                far.write_all(b"x").await.expect("duplex");
            }
            far
        });
        near.read_exact(&mut [0; 8]).await.expect("it moves");
        let far = slowly.await.expect("the task");
        let error = near.read_u8().await.expect_err("it stands still");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = near.write_all(&[0; 100]).await.expect_err("nobody reads");
        assert_eq!(Error::from(error).code(), mvm_code::Code::GuestSilent);
        drop(far);
    }
}
