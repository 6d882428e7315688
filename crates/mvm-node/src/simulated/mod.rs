//! A simulated guest, which speaks the guest protocol for machines of the simulated hypervisor.
//!
//! The guest is silent while its vCPUs are paused. Its files are in the machine's memory, so sleep
//! and clones preserve them. It runs nothing on the host: a few commands are simulated
//! ([`script`]), and all others are not found. It has no SSH server.

mod exec;
mod files;
#[cfg(test)]
pub mod hostile;
mod inside;
mod kept_program;
mod program;
mod script;
mod silence;

pub use silence::Silence;

use inside::{Inside, refusal};
use mvm_guest::Result;
use mvm_guest::channel::Stream;
use mvm_guest::protocol::{Adopt, Hello, Request, Stats, VERSION};
use mvm_guest::serve::{Answer, reply, serve_stream};
use mvm_hypervisor::sim::{Guest, GuestChannel};
use mvm_model::Code;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, watch};

/// The guest's port that echoes what it is sent (RFC 862). All others refuse connections.
const ECHO_PORT: u16 = 7;
/// The maximum number of bytes in flight between a guest and its host.
const PIPE: usize = 4096;

/// Serves the channels of simulated machines.
#[derive(Clone, Debug, Default)]
pub struct SimulatedGuest {
    /// When a guest falls silent.
    pub silence: Silence,
}

#[async_trait::async_trait]
impl Guest for SimulatedGuest {
    async fn serve(&self, channel: GuestChannel) {
        pass_through(channel, self.silence.clone(), Arc::new).await;
    }
}

/// Serves one connection. `answers` makes the handler of requests from the machine's inside.
async fn pass_through<T: Answer>(
    channel: GuestChannel,
    silence: Silence,
    answers: impl FnOnce(Inside) -> Arc<T>,
) {
    let GuestChannel { running, stream, machine, .. } = channel;
    let number = machine.number();
    silence.trip(number).await;
    let (near, far) = tokio::io::duplex(PIPE);
    let (from_host, to_host) = stream.into_split();
    let (from_guest, to_guest) = tokio::io::split(near);
    let told = Notify::new();
    let inside =
        answers(Inside { running: running.clone(), machine, silence: silence.clone(), told });
    let never = Silence::default();
    tokio::select! {
        () = pass(from_host, to_guest, running.clone(), &never, number) => {}
        () = pass(from_guest, to_host, running, &silence, number) => {}
        () = serve_stream(inside, far) => {}
    }
}

/// Copies bytes while the vCPUs run and the guest is not silent.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut running: watch::Receiver<bool>,
    silence: &Silence,
    machine: u64,
) {
    let mut buffer = [0; PIPE];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        silence.wait_unless_heard(machine).await;
        let runs = running.wait_for(|runs| *runs).await.is_ok();
        if !runs || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

impl Answer for Inside {
    async fn answer(&self, request: Request, stream: &mut Stream) -> Result<()> {
        self.silence.trip(self.machine.number()).await;
        match request {
            Request::Hello => reply(stream, &self.hello()).await,
            Request::Adopt(identity) => {
                self.adopt(&identity)?;
                reply(stream, &()).await
            }
            Request::Exec(mut request) => match request.keep.take() {
                // A program with standard input is not kept, since it is not simulated how much
                // input it has read.
                Some(keep) if !request.stdin => {
                    kept_program::run(self, stream, request, keep).await
                }
                _ => exec::run(self, stream, request).await,
            },
            Request::Put { path, notes } => files::put(&self.machine, stream, &path, notes).await,
            Request::Get { path, notes } => files::get(&self.machine, stream, &path, notes).await,
            Request::Stats => reply(stream, &self.stats()).await,
            Request::Connect { port } => connect(stream, port).await,
            // The files are in memory, whatever disk they would be on.
            Request::Sync | Request::Mount { .. } | Request::Unmount { .. } => {
                reply(stream, &()).await
            }
            Request::Shutdown => {
                reply(stream, &()).await?;
                self.machine.power_off();
                Ok(())
            }
        }
    }
}

impl Inside {
    fn hello(&self) -> Hello {
        Hello {
            protocol: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: "simulated".to_owned(),
            uptime_ms: self.machine.uptime_ms(),
            life: self.life(),
        }
    }

    /// Returns the id of the guest's life. Kept programs are in the memory, and live as long as it.
    fn life(&self) -> Option<String> {
        let life = files::change_all(&self.machine, |memory| {
            if memory.life.is_empty() {
                memory.life = crate::random::hex_digits(16).unwrap_or_default();
            }
            memory.life.clone()
        });
        life.ok().filter(|life| !life.is_empty())
    }

    /// Stores the given names and the address. Time, entropy and SSH keys are not simulated.
    fn adopt(&self, identity: &Adopt) -> Result<()> {
        let address = identity.network.as_ref().map(|network| &network.address);
        let named = [
            ("/etc/hostname", identity.hostname.as_ref()),
            ("/etc/machine-id", identity.machine_id.as_ref()),
            ("/etc/address", address),
        ];
        let given: Vec<_> =
            named.iter().filter_map(|(path, text)| Some((*path, (*text)?))).collect();
        if given.is_empty() {
            return Ok(());
        }
        files::change(&self.machine, |files| {
            for (path, text) in given {
                files.write(path, 0o644, format!("{text}\n").into_bytes());
            }
        })
    }

    fn stats(&self) -> Stats {
        let mem_total_kib = self.machine.mem_mib().kib();
        let uptime_ms = self.machine.uptime_ms();
        Stats {
            mem_total_kib,
            mem_available_kib: mem_total_kib * 3 / 4,
            uptime_ms,
            cpu_total_ticks: uptime_ms / 10,
            cpu_idle_ticks: uptime_ms / 10,
            ..Stats::default()
        }
    }
}

async fn connect(stream: &mut Stream, port: u16) -> Result<()> {
    if port != ECHO_PORT {
        let message = format!("connect to port {port}: a simulated guest serves {ECHO_PORT} only");
        return Err(refusal(Code::ConnectionRefused, message));
    }
    reply(stream, &()).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    tokio::io::copy(&mut from, &mut to).await?;
    Ok(())
}
