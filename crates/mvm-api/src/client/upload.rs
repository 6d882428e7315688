//! Request bodies that are sent while they are made.

use super::error::{ClientError, broken};
use super::line::is_success;
use super::streams::Streams;
use hyper::body::{Body, Bytes, Frame};
use hyper::{Method, header};
use serde::de::DeserializeOwned;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// A body that arrives in pieces. An error among them aborts the request.
struct Pieces(mpsc::Receiver<std::io::Result<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    }
}

impl Streams<'_> {
    /// `PUT path` with `pieces` as the body, until the channel is closed. Uses a connection of its
    /// own.
    pub async fn upload<T: DeserializeOwned>(
        self,
        path: &str,
        pieces: mpsc::Receiver<std::io::Result<Bytes>>,
    ) -> Result<T, ClientError> {
        let doing = format!("PUT {path}");
        let request = self.line.begin(Method::PUT, path);
        let request = request.header(header::CONTENT_TYPE, "application/x-tar");
        let request = request.body(Pieces(pieces)).map_err(|cause| broken(&doing, cause))?;
        let (mut sender, target) = self.line.targets.connect(&doing).await?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|cause| target.fault(&doing, &cause))?;
        if !is_success(response.status()) {
            return Err(target.refusal(response, &doing).await?);
        }
        let bytes = target.collect(response, &doing).await?;
        serde_json::from_slice(&bytes).map_err(|cause| broken(&doing, cause))
    }
}
