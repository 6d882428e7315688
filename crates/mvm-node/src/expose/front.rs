//! A front: a listener, and the connections that it has accepted.

use super::metrics::Metrics;
use super::seats::{Seat, Seats};
use super::servers::Servers;
use crate::Result;
use crate::deadlines::DIAL;
use crate::error::FrontError;
use crate::instances::Session;
use crate::locks::locked;
use mvm_guest::channel::Stream;
use mvm_model::expose::Expose;
use mvm_model::{InstanceId, PoolRef};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex as Lock};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How often idle instances are ended, and leases are extended.
const PERIOD: Duration = Duration::from_secs(1);
/// The pause between two attempts to listen, or to accept connections after an error.
const PAUSE: Duration = Duration::from_millis(500);
/// The size of the first read from a guest that speaks first, in bytes.
const FIRST: usize = 16 << 10;

/// Binds the listener. The error says why it cannot.
pub(super) async fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|cause| FrontError::of_bind(listen, cause).into())
}

/// The address and pool of a front, and the guest's port.
struct Route {
    listen: SocketAddr,
    pool: PoolRef,
    /// The port on the guest's loopback.
    to: u16,
}

/// An open front.
pub(super) struct Front {
    route: Route,
    servers: Arc<Servers>,
    pub seats: Arc<Seats>,
    /// Why the front does not listen, where it does not.
    pub refused: Lock<Option<String>>,
    closed: watch::Sender<bool>,
    metrics: Metrics,
}

impl Front {
    /// Makes a front that does not serve yet.
    pub fn new(record: &Expose, servers: Arc<Servers>, metrics: Metrics) -> Arc<Front> {
        let seats = Seats::new(record.limits, servers.clock().clone());
        Arc::new(Front {
            route: Route { listen: record.listen, pool: record.pool.clone(), to: record.to },
            servers,
            seats,
            refused: Lock::default(),
            closed: watch::Sender::new(false),
            metrics,
        })
    }

    /// Stops listening and ends the connections. Returns when no instance is being woken or put to
    /// sleep for the front.
    pub async fn close(&self) {
        self.closed.send_replace(true);
        self.seats.wait_until_settled().await;
    }

    /// Serves until the front is closed. Without a listener, one is bound as soon as possible.
    pub async fn run(self: Arc<Self>, listener: Option<TcpListener>) {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            _ = closed.wait_for(|closed| *closed) => {}
            () = self.serve(listener) => {}
        }
        tracing::info!(listen = %self.route.listen, pool = %self.route.pool, "front closed");
    }

    async fn serve(self: &Arc<Self>, listener: Option<TcpListener>) {
        let listener = match listener {
            Some(listener) => listener,
            None => self.bind_with_retries().await,
        };
        let Route { listen, pool, to } = &self.route;
        tracing::info!(%listen, %pool, to, "front open");
        let mut connections = JoinSet::new();
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                taken = listener.accept() => match taken {
                    Ok((client, _)) => {
                        connections.spawn(self.clone().serve_connection(client));
                    }
                    Err(error) => {
                        tracing::warn!(%listen, "cannot take a connection: {error}");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                _ = period.tick() => self.update_servers().await,
            }
        }
    }

    async fn bind_with_retries(&self) -> TcpListener {
        loop {
            match bind(self.route.listen).await {
                Ok(listener) => {
                    *locked(&self.refused) = None;
                    return listener;
                }
                Err(error) => {
                    let said = locked(&self.refused).replace(error.to_string());
                    if said.is_none() {
                        tracing::error!(pool = %self.route.pool, "{error}; it is tried again");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection from its beginning to its end.
    async fn serve_connection(self: Arc<Self>, mut client: TcpStream) {
        let began = Instant::now();
        let _ = client.set_nodelay(true);
        end_by_reset(&client, true);
        let patience = Duration::from_secs(self.seats.limits().wake_timeout_s);
        let reached = match tokio::time::timeout(patience, self.reach()).await {
            Ok(reached) => reached,
            Err(_) => Err(FrontError::WakeTimeout { seconds: patience.as_secs() }.into()),
        };
        let Route { listen, pool, .. } = &self.route;
        let (_seat, _session, mut guest) = match reached {
            Ok(reached) => reached,
            Err(error) => {
                tracing::warn!(%listen, %pool, "reset: {error}");
                return;
            }
        };
        let _open = self.metrics.open(pool);
        let first = || self.metrics.first_byte(pool, began.elapsed());
        if pass(&mut client, &mut guest, first).await.is_ok() {
            end_by_reset(&client, false);
        }
    }

    /// Opens a stream to the guest's port, through an instance that is awake for it.
    async fn reach(self: &Arc<Self>) -> Result<(Seat, Session, Stream)> {
        loop {
            let wake = || drop(tokio::spawn(self.clone().wake()));
            let seat = self.seats.seat(wake).await?;
            if !self.servers.is_held(seat.id, self.route.listen) {
                // Somebody has taken the instance away in the meantime.
                self.seats.lose(seat.id);
                continue;
            }
            let slot = self.servers.slot(seat.id);
            let session = slot.session();
            let channel = slot.gate.lock().await.channel().await?;
            let stream = slot.waits.guest(DIAL, channel.dial(self.route.to)).await?;
            return Ok((seat, session, stream));
        }
    }

    /// Wakes an instance. This runs in a task of its own, so that it ends in order whatever happens
    /// to the waiting connections.
    async fn wake(self: Arc<Self>) {
        let Route { listen, pool, .. } = &self.route;
        let woken = self.servers.wake_for(pool, *listen).await;
        self.metrics.count_wake(pool, woken.is_ok());
        if let Err(error) = &woken {
            tracing::warn!(%listen, %pool, "cannot wake: {error}");
        }
        self.seats.note_wake(woken);
    }

    /// Runs once per period: ends idle instances, extends the leases of those that serve, and
    /// notices those that were taken away. The work goes on in tasks of its own.
    async fn update_servers(self: &Arc<Self>) {
        for id in self.seats.over() {
            let front = self.clone();
            tokio::spawn(async move {
                front.servers.end(id).await;
                front.seats.ended(id);
            });
        }
        let decisions = self.seats.decisions();
        let serving: Vec<InstanceId> = decisions.servers().map(|(id, _)| id).collect();
        let due = self.servers.due(&self.route.pool, self.route.listen, &serving);
        due.lost.iter().for_each(|id| self.seats.lose(*id));
        let servers = self.servers.clone();
        let _ = tokio::spawn(async move { servers.apply(due).await }).await;
    }
}

/// Sets how the connection ends when it is dropped: by a reset, which tells the client that it was
/// cut off, or in order. The kernel does so even if the agent is killed.
fn end_by_reset(client: &TcpStream, reset: bool) {
    let linger = reset.then_some(Duration::ZERO);
    if let Err(error) = rustix::net::sockopt::set_socket_linger(client, linger) {
        tracing::debug!("linger: {error}");
    }
}

/// Copies in both directions until both have ended. Calls `first` when the first byte passes.
async fn pass(
    client: &mut TcpStream,
    guest: &mut Stream,
    first: impl FnOnce(),
) -> std::io::Result<()> {
    let mut early = vec![0; FIRST];
    let spoken = tokio::select! {
        ready = client.readable() => ready.map(|()| 0)?,
        read = guest.read(&mut early) => read?,
    };
    first();
    client.write_all(&early[..spoken]).await?;
    tokio::io::copy_bidirectional(client, guest).await.map(drop)
}
