//! Connections that know who is at their other end, on both sides.

use crate::revocations::{Open, Revocations};
use mvm_api::identity::Facts;
use std::future::Future;
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// A connection whose peer is known. It breaks when the peer's certificate is revoked.
pub struct Connection<S> {
    stream: S,
    facts: Facts,
    revocations: Arc<Revocations>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _open: Arc<Open>,
}

impl<S> Connection<S> {
    /// The stream to the holder of a certificate that the handshake has checked.
    pub fn new(stream: S, facts: Facts, revocations: Arc<Revocations>) -> Connection<S> {
        let open = revocations.opened(facts.serial.clone());
        let cut = Box::pin(open.cut.clone().cancelled_owned());
        Connection { stream, facts, revocations, cut, _open: open }
    }

    /// What the certificate of whoever is at the other end says.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Where to see whether that still counts.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    fn poll_cut(&mut self, context: &mut Context<'_>) -> std::io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => {
                Err(Error::new(ErrorKind::ConnectionAborted, "its certificate was revoked"))
            }
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.poll_cut(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.poll_cut(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.poll_cut(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
