//! Adds the reason to a session whose machine was ended by the agent.

use crate::Error;
use mvm_guest::frame::{self, Frame};
use mvm_guest::protocol::Reply;
use std::io::Result;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Length of a frame's kind and length fields.
const HEAD: usize = 5;

/// A guest's stream of frames. If it ends between two frames and there is a reason, an error frame
/// with the reason is added, in the form of the guest's own errors.
pub(super) struct FinalFrame<G, W> {
    guest: G,
    why: W,
    /// The bytes read of a frame's head.
    head: [u8; HEAD],
    have: usize,
    /// The number of payload bytes still to come.
    left: usize,
    sent: bool,
    frame: Vec<u8>,
}

impl<G, W: Fn() -> Option<Arc<Error>>> FinalFrame<G, W> {
    pub(super) fn new(guest: G, why: W) -> Self {
        let (head, frame) = ([0; HEAD], Vec::new());
        FinalFrame { guest, why, head, have: 0, left: 0, sent: false, frame }
    }

    /// Returns the added frame, once, and only where the stream ended between two frames.
    pub(super) fn take_frame(&mut self) -> Vec<u8> {
        if self.sent || self.have > 0 || self.left > 0 {
            return std::mem::take(&mut self.frame);
        }
        let Some(why) = (self.why)() else { return Vec::new() };
        self.sent = true;
        frame::bytes(&Frame::Reply(Reply::Error {
            code: why.code().to_string(),
            message: why.detail(),
        }))
    }

    fn track(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let part = self.left.min(bytes.len());
                (self.left, bytes) = (self.left - part, &bytes[part..]);
                continue;
            }
            self.head[self.have] = bytes[0];
            (self.have, bytes) = (self.have + 1, &bytes[1..]);
            if self.have == HEAD {
                let [_, length @ ..] = self.head;
                (self.have, self.left) = (0, u32::from_be_bytes(length) as usize);
            }
        }
    }
}

impl<G, W> AsyncRead for FinalFrame<G, W>
where
    G: AsyncRead + Unpin,
    W: Fn() -> Option<Arc<Error>> + Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = into.filled().len();
        let read = match self.frame.is_empty() {
            true => ready!(Pin::new(&mut self.guest).poll_read(cx, into)),
            false => Ok(()),
        };
        if into.filled().len() > before {
            let came = into.filled()[before..].to_vec();
            self.track(&came);
            return Poll::Ready(read);
        }
        let mut frame = self.take_frame();
        if frame.is_empty() {
            return Poll::Ready(read);
        }
        let rest = frame.split_off(frame.len().min(into.remaining()));
        into.put_slice(&frame);
        self.frame = rest;
        Poll::Ready(Ok(()))
    }
}

impl<G: AsyncWrite + Unpin, W: Unpin> AsyncWrite for FinalFrame<G, W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.guest).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.guest).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.guest).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::MachineError;
    use tokio::io::AsyncReadExt;

    async fn through(bytes: &[u8], why: Option<Arc<Error>>) -> Vec<u8> {
        let mut guest = FinalFrame::new(bytes, move || why.clone());
        let mut came = Vec::new();
        // The reads are in pieces that split every frame.
        let mut piece = [0; 3];
        while let count @ 1.. = guest.read(&mut piece).await.expect("memory") {
            came.extend(&piece[..count]);
        }
        came
    }

    #[tokio::test]
    async fn a_session_that_is_cut_between_two_frames_ends_with_the_reason() {
        let why = Arc::new(Error::from(MachineError::Silent { seconds: 60 }));
        let sent = frame::bytes(&Frame::Stdout(b"hello".to_vec()));
        assert_eq!(through(&sent, None).await, sent);
        let came = through(&sent, Some(why.clone())).await;
        let last = came.strip_prefix(&sent[..]).expect("all that the guest sent");
        let last = frame::read(&mut &last[..]).await.expect("memory");
        let (code, message) = (why.code(), why.detail());
        assert_eq!(last, Some(Frame::Reply(Reply::Error { code: code.to_string(), message })));
        // No frame can be added within another.
        for cut in [1, 5, sent.len() - 1] {
            assert_eq!(through(&sent[..cut], Some(why.clone())).await, &sent[..cut]);
        }
    }
}
