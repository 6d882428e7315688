//! The guest's agent: answers the requests of the channel.

mod adopt;
pub mod disks;
mod exec;
mod files;
mod net;
mod ssh;
mod stats;
mod terminal;

use crate::frame::{self, Frame};
use crate::link::{Wire, accept};
use crate::protocol::{Hello, Reply, Request, VERSION};
use crate::{Error, Result};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::sync::Notify;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the agent may do to the machine that it runs on. Tests run it where it may do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Powers {
    /// PID 1's child in a guest of its own.
    Guest,
    /// A process among others: it refuses to change the machine.
    Tame,
}

/// The agent.
pub struct Agent {
    powers: Powers,
    execs: AtomicU64,
    ssh: ssh::Server,
    /// Notified when the node asks for the end of the machine.
    pub shutdown: Notify,
}

impl Agent {
    /// An agent with these powers.
    pub fn new(powers: Powers) -> Arc<Agent> {
        if powers == Powers::Guest
            && let Err(error) = adopt::loopback()
        {
            eprintln!("mvm-guest: cannot bring the loopback up: {error}");
        }
        Arc::new(Agent {
            powers,
            execs: AtomicU64::new(0),
            ssh: ssh::Server::default(),
            shutdown: Notify::new(),
        })
    }

    /// Answers on the wire until it is gone; one session after the other.
    pub async fn serve(self: Arc<Self>, wire: Wire) {
        if self.powers == Powers::Guest {
            self.ssh.resume().await;
        }
        accept(wire, |session| {
            tokio::spawn(serve_session(self.clone(), session));
        })
        .await;
    }

    /// The same over any byte stream.
    pub async fn serve_stream(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
    ) {
        self.serve(crate::channel::wire(stream)).await;
    }

    async fn answer(
        self: Arc<Self>,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin + Send),
    ) -> Result<()> {
        let request = match frame::read(stream).await? {
            Some(Frame::Request(request)) => request,
            Some(other) => {
                return Err(Error::Broken(format!("{} instead of a request", other.kind())));
            }
            None => return Ok(()),
        };
        match request {
            Request::Exec(request) => {
                let _counted = Counted::new(&self.execs);
                exec::run(stream, request).await
            }
            Request::Put { path } => files::put(stream, path).await,
            Request::Get { path } => files::get(stream, path).await,
            Request::Connect { port } => net::connect(stream, port).await,
            Request::Hello => reply(stream, &hello()).await,
            Request::Stats => {
                let execs = self.execs.load(Ordering::Relaxed);
                reply(stream, &stats::read(execs)).await
            }
            Request::Sync => {
                rustix::fs::sync();
                reply(stream, &()).await
            }
            Request::Adopt(identity) => {
                let outcome = match self.powers {
                    Powers::Guest => adopt::adopt(*identity, &self.ssh).await,
                    Powers::Tame => Err(not_here()),
                };
                settle(stream, outcome).await
            }
            Request::Mount { serial, path } => {
                let outcome = self.in_guest(move || disks::mount(&serial, &path)).await;
                settle(stream, outcome).await
            }
            Request::Unmount { path } => {
                let outcome = self.in_guest(move || disks::unmount(&path)).await;
                settle(stream, outcome).await
            }
            Request::Shutdown => {
                settle(stream, Ok(())).await?;
                self.shutdown.notify_one();
                Ok(())
            }
        }
    }
}

impl Agent {
    /// Changes the machine, where that is allowed; it may wait for a disk.
    async fn in_guest(&self, change: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        match self.powers {
            Powers::Guest => {
                let done = tokio::task::spawn_blocking(change).await;
                done.map_err(|e| Error::Broken(e.to_string()))?
            }
            Powers::Tame => Err(not_here()),
        }
    }
}

fn not_here() -> Error {
    Error::Guest { code: "not_allowed".to_owned(), message: "this is no guest".to_owned() }
}

async fn serve_session(agent: Arc<Agent>, session: DuplexStream) {
    let mut connection =
        yamux::Connection::new(session.compat(), crate::link::streams(), yamux::Mode::Server);
    let mut streams = tokio::task::JoinSet::new();
    // When the session ends, the set is dropped, and with it every request under way.
    while let Some(Ok(stream)) = std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        let agent = agent.clone();
        streams.spawn(async move {
            let mut stream = stream.compat();
            if let Err(error) = agent.answer(&mut stream).await {
                let _ = refuse(&mut stream, &error).await;
            }
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
        });
        while streams.try_join_next().is_some() {}
    }
}

struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Counted(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends a value as the reply.
async fn reply(to: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> Result<()> {
    let value = serde_json::to_value(value).map_err(|e| Error::Broken(e.to_string()))?;
    frame::write(to, &Frame::Reply(Reply::Ok(value))).await
}

/// Sends an error as the reply.
async fn refuse(to: &mut (impl AsyncWrite + Unpin), error: &Error) -> Result<()> {
    let message = match error {
        Error::Guest { message, .. } => message.clone(),
        other => other.to_string(),
    };
    frame::write(to, &Frame::Reply(Reply::Error { code: error.code().to_owned(), message })).await
}

async fn settle(to: &mut (impl AsyncWrite + Unpin), outcome: Result<()>) -> Result<()> {
    match outcome {
        Ok(()) => reply(to, &()).await,
        Err(error) => refuse(to, &error).await,
    }
}

/// An I/O error in the guest, with a code that the host can act on.
fn guest_error(doing: &str, cause: &std::io::Error) -> Error {
    let code = match cause.kind() {
        std::io::ErrorKind::NotFound => "not_found",
        std::io::ErrorKind::PermissionDenied => "permission_denied",
        std::io::ErrorKind::StorageFull => "no_space",
        std::io::ErrorKind::ResourceBusy => "busy",
        std::io::ErrorKind::ConnectionRefused => "connection_refused",
        _ => "guest_io",
    };
    Error::Guest { code: code.to_owned(), message: format!("{doing}: {cause}") }
}

fn hello() -> Hello {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Hello {
        protocol: VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id.trim().to_owned(),
        uptime_ms: stats::uptime_ms(),
    }
}
