//! The guest's end of the channel: sessions, their streams, and the request at the head of each.
//! Simulated guests use it, too.

use crate::channel::Stream;
use crate::frame::{self, Frame};
use crate::link::{Wire, accept};
use crate::protocol::{Reply, Request};
use crate::window::Window;
use crate::{Error, Result};
use serde::Serialize;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

/// Something that answers requests.
pub trait Answer: Send + Sync + 'static {
    /// Answers one request on its stream, which is closed afterwards. A returned error is sent to
    /// the host.
    fn answer(
        &self,
        request: Request,
        stream: &mut Stream,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// Answers on the wire until it is gone, one session after the other.
pub async fn serve(answers: Arc<impl Answer>, wire: Wire, window: Option<Arc<Window>>) {
    accept(wire, window, |session| {
        tokio::spawn(serve_session(answers.clone(), session));
    })
    .await;
}

/// Like [`serve`], over any byte stream.
pub async fn serve_stream(
    answers: Arc<impl Answer>,
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
) {
    serve(answers, crate::channel::wire(stream), None).await;
}

async fn serve_session(answers: Arc<impl Answer>, session: DuplexStream) {
    let mut connection =
        yamux::Connection::new(session.compat(), crate::link::streams(), yamux::Mode::Server);
    let mut streams = tokio::task::JoinSet::new();
    // When the session ends, the set is dropped, and with it every request under way.
    while let Some(Ok(stream)) = std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        let answers = answers.clone();
        streams.spawn(async move {
            let mut stream = stream.compat();
            if let Err(error) = one(&*answers, &mut stream).await {
                let _ = refuse(&mut stream, &error).await;
            }
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
        });
        while streams.try_join_next().is_some() {}
    }
}

async fn one(answers: &impl Answer, stream: &mut Stream) -> Result<()> {
    match frame::read(stream).await? {
        Some(Frame::Request(request)) => answers.answer(request, stream).await,
        Some(other) => Err(Error::Broken(format!("{} instead of a request", other.kind()))),
        None => Ok(()),
    }
}

/// Sends a value as the reply.
pub async fn reply(to: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> Result<()> {
    let value = serde_json::to_value(value).map_err(|e| Error::Broken(e.to_string()))?;
    frame::write(to, &Frame::Reply(Reply::Ok(value))).await
}

/// Sends an error as the reply.
pub async fn refuse(to: &mut (impl AsyncWrite + Unpin), error: &Error) -> Result<()> {
    let message = match error {
        Error::Guest { message, .. } => message.clone(),
        other => other.to_string(),
    };
    frame::write(to, &Frame::Reply(Reply::Error { code: error.code().to_string(), message })).await
}

/// Sends an empty reply, or the error.
pub async fn settle(to: &mut (impl AsyncWrite + Unpin), outcome: Result<()>) -> Result<()> {
    match outcome {
        Ok(()) => reply(to, &()).await,
        Err(error) => refuse(to, &error).await,
    }
}
