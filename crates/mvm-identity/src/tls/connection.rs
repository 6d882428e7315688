//! Connections whose peers have presented certificates, on both sides.

use crate::revocations::{Open, Revocations};
use mvm_api::identity::Facts;
use std::future::Future;
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// A connection with the contents of its peer's certificate. It breaks when that certificate is
/// revoked.
pub struct Connection<S> {
    stream: S,
    facts: Facts,
    revocations: Arc<Revocations>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _open: Arc<Open>,
}

impl<S> Connection<S> {
    /// Wraps the stream to the holder of a certificate that the handshake has checked.
    pub fn new(stream: S, facts: Facts, revocations: Arc<Revocations>) -> Connection<S> {
        let open = revocations.opened(facts.serial.clone());
        let cut = Box::pin(open.cut.clone().cancelled_owned());
        Connection { stream, facts, revocations, cut, _open: open }
    }

    /// Returns the contents of the peer's certificate.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Returns the revocations that apply to the peer's certificate.
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
