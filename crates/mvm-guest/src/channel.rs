//! The host's end of the guest channel.

use crate::exec::ExecStream;
use crate::link::{Wire, begin};
use crate::patience::{COPY, Patient};
use crate::protocol::{Adopt, ExecRequest, Hello, Request, Stats};
use crate::pulse::Pulse;
use crate::window::Window;
use crate::{Error, Result, frame, transfer};
use mvm_archive::Notes;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

/// One stream of the channel.
pub type Stream = Compat<yamux::Stream>;

/// How long to wait for a silent guest before connecting anew: at first, and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long a guest without support for pings may take to answer another request.
const ASKED: Duration = Duration::from_secs(60);

type Opened = oneshot::Sender<Result<yamux::Stream>>;

/// An open channel to one guest. Cheap to clone; closed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Channel {
    opens: mpsc::Sender<Opened>,
    close: watch::Sender<bool>,
    pulse: Arc<Pulse>,
}

impl Channel {
    /// Connects to the machine's socket and waits until the guest's agent answers. Errors:
    /// `guest_unreachable`, `guest_silent`, `guest_channel_broken`.
    ///
    /// While the guest stays silent, the connection is renewed now and then: if the last host went
    /// away while the guest's bytes were on their way, QEMU may hold them back for ever (it
    /// throttles the port until that connection ends).
    ///
    /// `window` is the file behind the machine's window, if it has one.
    pub async fn connect(
        socket: &Path,
        window: Option<&Path>,
        deadline: Duration,
    ) -> Result<Channel> {
        let ends = tokio::time::Instant::now() + deadline;
        let mut patience = PATIENCE.0;
        loop {
            let left = ends.saturating_duration_since(tokio::time::Instant::now());
            let stream = connect_by(socket, ends).await?;
            let window = window.map(Window::of_host);
            match Self::with_window(stream, window, patience.min(left)).await {
                Err(Error::Silent(_)) if patience < left => {}
                Err(Error::Silent(_)) => return Err(Error::Silent(deadline)),
                outcome => return outcome,
            }
            patience = (patience * 2).min(PATIENCE.1);
        }
    }

    /// Like [`Channel::connect`], over an open byte stream and without a window.
    pub async fn from_stream(
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        deadline: Duration,
    ) -> Result<Channel> {
        Self::with_window(stream, None, deadline).await
    }

    /// Like [`Channel::from_stream`], with the host's end of a window; it is used if the guest
    /// knows the other end.
    pub async fn with_window(
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        window: Option<Arc<Window>>,
        deadline: Duration,
    ) -> Result<Channel> {
        let (session, pulse) = begin(wire(stream), window, deadline).await?;
        Ok(Self::over(session, pulse))
    }

    fn over(session: DuplexStream, pulse: Arc<Pulse>) -> Channel {
        let (opens, requests) = mpsc::channel(16);
        let (close, mut closed) = watch::channel(false);
        let connection =
            yamux::Connection::new(session.compat(), crate::link::streams(), yamux::Mode::Client);
        tokio::spawn(async move {
            let closed = async {
                // When all clones are gone, `drive` ends by itself.
                if closed.wait_for(|closed| *closed).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = drive(connection, requests) => {}
                () = closed => {}
            }
        });
        Channel { opens, close, pulse }
    }

    /// Returns the guest's signs of life.
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Asks the guest for a sign of life: by a ping, or by a hello if it is too old for pings.
    pub fn ask(&self) {
        if self.pulse.answers_pings() {
            return self.pulse.ping();
        }
        if self.pulse.begin_asking() {
            let channel = self.clone();
            tokio::spawn(async move {
                let _ = tokio::time::timeout(ASKED, channel.hello()).await;
                channel.pulse.end_asking();
            });
        }
    }

    /// Returns whether the channel has broken or was closed. It stays open while a guest is paused.
    pub fn is_closed(&self) -> bool {
        self.opens.is_closed()
    }

    /// Ends the session and all its streams, and waits until the socket is closed.
    pub async fn close(&self) {
        self.close.send_replace(true);
        self.opens.closed().await;
    }

    /// Opens a stream, whose first frame must be a request. Error: `guest_channel_broken`.
    pub async fn open_raw(&self) -> Result<Stream> {
        let gone = || Error::Broken("it is closed".to_owned());
        let (opened, stream) = oneshot::channel();
        self.opens.send(opened).await.map_err(|_| gone())?;
        Ok(stream.await.map_err(|_| gone())??.compat())
    }

    async fn call<T: DeserializeOwned>(&self, request: Request) -> Result<T> {
        let mut stream = self.open_raw().await?;
        frame::ask(&mut stream, request).await
    }

    /// Asks the agent for its version and identity.
    pub async fn hello(&self) -> Result<Hello> {
        let mut hello: Hello = self.call(Request::Hello).await?;
        for words in [&mut hello.version, &mut hello.boot_id].into_iter().chain(&mut hello.life) {
            *words = mvm_archive::plain(words, 64);
        }
        Ok(hello)
    }

    /// Gives the guest its own identity. Idempotent.
    pub async fn adopt(&self, identity: &Adopt) -> Result<()> {
        self.call(Request::Adopt(Box::new(identity.clone()))).await
    }

    /// Starts a program.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecStream> {
        ExecStream::begin(self.open_raw().await?, request).await
    }

    /// Unpacks a tar archive below a folder of the guest. Returns what could not be preserved.
    pub async fn put(&self, path: &str, archive: impl AsyncRead + Unpin) -> Result<Notes> {
        transfer::put(&mut Patient::new(self.open_raw().await?, COPY), path, archive).await
    }

    /// Writes a file or folder of the guest to `archive`, as a tar archive whose entries begin with
    /// the last component of `path`. Returns what could not be preserved.
    pub async fn get(&self, path: &str, archive: impl AsyncWrite + Unpin) -> Result<Notes> {
        transfer::get(&mut Patient::new(self.open_raw().await?, COPY), path, archive).await
    }

    /// Connects to a TCP port of the guest's loopback. A refused connection is tried again for
    /// about 5 s, since its server may be starting.
    pub async fn dial(&self, port: u16) -> Result<Stream> {
        let mut stream = self.open_raw().await?;
        frame::ask::<()>(&mut stream, Request::Connect { port }).await?;
        Ok(stream)
    }

    /// Asks what the guest uses.
    pub async fn stats(&self) -> Result<Stats> {
        self.call(Request::Stats).await
    }

    /// Makes the guest write everything to its disks.
    pub async fn sync(&self) -> Result<()> {
        self.call(Request::Sync).await
    }

    /// Mounts the disk with this serial at a folder of the guest.
    pub async fn mount(&self, serial: &str, path: &str) -> Result<()> {
        self.call(Request::Mount { serial: serial.to_owned(), path: path.to_owned() }).await
    }

    /// Unmounts a disk of the guest, once everything is written.
    pub async fn unmount(&self, path: &str) -> Result<()> {
        self.call(Request::Unmount { path: path.to_owned() }).await
    }

    /// Asks the guest to shut down; it answers before it begins.
    pub async fn shutdown(&self) -> Result<()> {
        self.call(Request::Shutdown).await
    }
}

async fn connect_by(socket: &Path, ends: tokio::time::Instant) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(cause) if tokio::time::Instant::now() >= ends => {
                return Err(Error::Unreachable { socket: socket.to_owned(), cause });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Turns a byte stream into the pair of channels that the link needs.
pub fn wire(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Wire {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (to_link, incoming) = mpsc::channel::<Vec<u8>>(8);
    let (outgoing, mut from_link) = mpsc::channel::<Vec<u8>>(8);
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            // This also ends when nobody receives any more, so that the socket is closed.
            let count = tokio::select! {
                read = reader.read(&mut buffer) => read.unwrap_or(0),
                () = to_link.closed() => 0,
            };
            if count == 0 || to_link.send(buffer[..count].to_vec()).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(bytes) = from_link.recv().await {
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    });
    Wire { incoming, outgoing }
}

/// Opens streams on request and drives the connection until it ends.
async fn drive(
    mut connection: yamux::Connection<Compat<DuplexStream>>,
    mut requests: mpsc::Receiver<Opened>,
) {
    let mut waiting: Option<Opened> = None;
    std::future::poll_fn(|cx| {
        loop {
            if waiting.is_none() {
                match requests.poll_recv(cx) {
                    Poll::Ready(Some(opened)) => waiting = Some(opened),
                    // Nobody has the channel any more. Dropping the connection ends the open
                    // streams; closing it by yamux's protocol would leave their readers waiting for
                    // ever.
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            if let Some(opened) = waiting.take() {
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(stream) => {
                        let stream = stream.map_err(|e| Error::Broken(e.to_string()));
                        let _ = opened.send(stream);
                        continue;
                    }
                    Poll::Pending => waiting = Some(opened),
                }
            }
            match connection.poll_next_inbound(cx) {
                // Guests may not open streams: such a stream is dropped.
                Poll::Ready(Some(Ok(_))) => continue,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
