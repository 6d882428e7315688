//! The guest's agent, which answers the requests that come over the channel.

mod adopt;
mod common;
pub mod disks;
mod exec;
mod files;
mod kept_programs;
mod net;
mod oom;
mod program;
mod protect;
mod spool;
mod ssh;
mod stats;
mod terminal;

pub use protect::{prefer, protect};

use crate::channel::Stream;
use crate::link::Wire;
use crate::protocol::{Hello, Request, VERSION};
use crate::serve::{self, Answer, reply};
use crate::window::Window;
use crate::{Error, Result};
use mvm_code::Code;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

/// What the agent may do to the machine that it runs on. In tests it may change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Powers {
    /// The agent is a child of PID 1 in a guest of its own.
    Guest,
    /// The agent is a process among others and refuses to change the machine.
    Tame,
}

/// The guest's agent.
pub struct Agent {
    powers: Powers,
    execs: AtomicU64,
    kept: kept_programs::Registry,
    ssh: ssh::Server,
    /// Notified when the node asks for the machine's shutdown.
    pub shutdown: Notify,
}

impl Agent {
    /// Makes an agent with these powers.
    pub fn new(powers: Powers) -> Arc<Agent> {
        if powers == Powers::Guest
            && let Err(error) = adopt::loopback()
        {
            eprintln!("mvm-guest: cannot bring the loopback up: {error}");
        }
        Arc::new(Agent {
            powers,
            execs: AtomicU64::new(0),
            kept: kept_programs::Registry::new(),
            ssh: ssh::Server::default(),
            shutdown: Notify::new(),
        })
    }

    /// Answers on the wire until it is gone, one session after the other. Large pieces go through
    /// the window, if there is one.
    pub async fn serve(self: Arc<Self>, wire: Wire, window: Option<Arc<Window>>) {
        if self.powers == Powers::Guest {
            self.ssh.resume().await;
        }
        serve::serve(self, wire, window).await;
    }

    /// Like [`Agent::serve`], over any byte stream.
    pub async fn serve_stream(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
    ) {
        self.serve(crate::channel::wire(stream), None).await;
    }
}

impl Answer for Agent {
    async fn answer(&self, request: Request, stream: &mut Stream) -> Result<()> {
        match request {
            Request::Exec(mut request) => match request.keep.take() {
                Some(keep) => self.kept.run(stream, request, keep).await,
                None => {
                    let _counted = Counted::new(&self.execs);
                    exec::run(stream, request).await
                }
            },
            Request::Put { path, notes } => files::put(stream, path, notes).await,
            Request::Get { path, notes } => files::get(stream, path, notes).await,
            Request::Connect { port } => net::connect(stream, port).await,
            Request::Hello => reply(stream, &self.hello()).await,
            Request::Stats => {
                let execs = self.execs.load(Ordering::Relaxed) + self.kept.running();
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
                serve::settle(stream, outcome).await
            }
            Request::Mount { serial, path } => {
                let outcome = self.in_guest(move || disks::mount(&serial, &path)).await;
                serve::settle(stream, outcome).await
            }
            Request::Unmount { path } => {
                let outcome = self.in_guest(move || disks::unmount(&path)).await;
                serve::settle(stream, outcome).await
            }
            Request::Shutdown => {
                reply(stream, &()).await?;
                self.shutdown.notify_one();
                Ok(())
            }
        }
    }
}

impl Agent {
    fn hello(&self) -> Hello {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        Hello {
            protocol: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot_id.unwrap_or_default().trim().to_owned(),
            uptime_ms: stats::uptime_ms(),
            life: self.kept.life(),
        }
    }

    /// Changes the machine if that is allowed, on a thread that may wait for a disk.
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
    Error::Guest { code: Code::NotAllowed, message: "this is not a guest".to_owned() }
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
