//! One front: a listener, and the connections that it has taken.

use super::Exposes;
use super::metrics::Metrics;
use crate::deadlines::DIAL;
use crate::instances::Session;
use crate::locks::locked;
use crate::{Result, now};
use mvm_api::Problem;
use mvm_guest::channel::Stream;
use mvm_model::expose::{Expose, Front as Decisions, Limits};
use mvm_model::{Code, InstanceId, PoolRef};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex as Lock};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How often what is idle is looked for, and leases are extended.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two tries to listen, or to take connections when none can be.
const PAUSE: Duration = Duration::from_millis(500);
/// What is read at once of a guest that speaks first.
const FIRST: usize = 16 << 10;

/// A front that is open.
pub struct Front {
    pub listen: SocketAddr,
    pub pool: PoolRef,
    pub to: u16,
    pub limits: Lock<Limits>,
    pub decisions: Lock<Decisions>,
    /// Why it does not listen, if it does not.
    pub refused: Lock<Option<String>>,
    /// Something happened that those who wait must look at.
    changed: Notify,
    /// Counts the wakes after which nobody could go on waiting, with the last one's problem.
    hopeless: Lock<(u64, Option<Problem>)>,
    closed: watch::Sender<bool>,
    metrics: Metrics,
}

impl Front {
    pub fn new(record: &Expose, metrics: Metrics) -> Arc<Front> {
        Arc::new(Front {
            listen: record.listen,
            pool: record.pool.clone(),
            to: record.to,
            limits: Lock::new(record.limits),
            decisions: Lock::default(),
            refused: Lock::default(),
            changed: Notify::new(),
            hopeless: Lock::default(),
            closed: watch::Sender::new(false),
            metrics,
        })
    }

    /// Listens no more, ends its connections, and returns when nothing is being woken or put to
    /// sleep for it.
    pub async fn close(&self) {
        self.closed.send_replace(true);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if locked(&self.decisions).is_settled() {
                return;
            }
            changed.await;
        }
    }

    /// Serves until it is closed; without a listener, one is bound as soon as that can be done.
    pub async fn run(self: Arc<Self>, exposes: Arc<Exposes>, listener: Option<TcpListener>) {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            _ = closed.wait_for(|closed| *closed) => {}
            () = self.serve(exposes, listener) => {}
        }
        tracing::info!(listen = %self.listen, pool = %self.pool, "front closed");
    }

    async fn serve(self: &Arc<Self>, exposes: Arc<Exposes>, listener: Option<TcpListener>) {
        let listener = match listener {
            Some(listener) => listener,
            None => self.bind_in_the_end().await,
        };
        tracing::info!(listen = %self.listen, pool = %self.pool, to = self.to, "front open");
        let mut connections = JoinSet::new();
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                taken = listener.accept() => match taken {
                    Ok((client, _)) => {
                        connections.spawn(self.clone().carry(exposes.clone(), client));
                    }
                    Err(error) => {
                        tracing::warn!(listen = %self.listen, "cannot take a connection: {error}");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                _ = period.tick() => exposes.tend(self).await,
            }
        }
    }

    async fn bind_in_the_end(&self) -> TcpListener {
        loop {
            match super::bind(self.listen).await {
                Ok(listener) => {
                    *locked(&self.refused) = None;
                    return listener;
                }
                Err(problem) => {
                    let said = locked(&self.refused).replace(problem.to_string());
                    if said.is_none() {
                        tracing::error!(pool = %self.pool, "{problem}; it is tried again");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Takes one connection from its beginning to its end.
    async fn carry(self: Arc<Self>, exposes: Arc<Exposes>, mut client: TcpStream) {
        let began = Instant::now();
        let _ = client.set_nodelay(true);
        end_by_reset(&client, true);
        let patience = Duration::from_secs(locked(&self.limits).wake_timeout_s);
        let reached = match tokio::time::timeout(patience, self.reach(&exposes)).await {
            Ok(reached) => reached,
            Err(_) => Err(Problem::new(
                Code::WakeTimeout,
                format!("no instance within {} s", patience.as_secs()),
            )),
        };
        let (_seat, _session, mut guest) = match reached {
            Ok(reached) => reached,
            Err(problem) => {
                tracing::warn!(listen = %self.listen, pool = %self.pool, "reset: {problem}");
                return;
            }
        };
        let _open = self.metrics.open(&self.pool);
        let first = || self.metrics.first_byte(&self.pool, began.elapsed());
        if pass(&mut client, &mut guest, first).await.is_ok() {
            end_by_reset(&client, false);
        }
    }

    /// A stream to the guest's port, through an instance that is awake for it.
    async fn reach(self: &Arc<Self>, exposes: &Arc<Exposes>) -> Result<(Seat, Session, Stream)> {
        loop {
            let seat = self.seat(exposes).await?;
            if !exposes.is_held(seat.id, self.listen).await {
                // Taken away by somebody in the meantime.
                locked(&self.decisions).lose(seat.id);
                continue;
            }
            let slot = exposes.slot(seat.id);
            let session = slot.session();
            let channel = slot.gate.lock().await.channel().await?;
            let stream = slot.waits.guest(DIAL, channel.dial(self.to)).await?;
            return Ok((seat, session, stream));
        }
    }

    /// Waits for a place at an instance, and sees that one is woken if need be.
    async fn seat(self: &Arc<Self>, exposes: &Arc<Exposes>) -> Result<Seat> {
        let waiting = Waiting::begin(self)?;
        let begun = locked(&self.hopeless).0;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let retry_at = {
                let limits = *locked(&self.limits);
                let mut decisions = locked(&self.decisions);
                if let Some(id) = decisions.assign(&limits) {
                    return Ok(waiting.seated(id));
                }
                while decisions.wake(&limits, now()) {
                    tokio::spawn(self.clone().wake(exposes.clone()));
                }
                decisions.retry_at().saturating_sub(now())
            };
            let (failures, problem) = locked(&self.hopeless).clone();
            if let Some(problem) = problem.filter(|_| failures != begun) {
                return Err(problem);
            }
            let retry = async {
                match retry_at {
                    0 => std::future::pending().await,
                    wait => tokio::time::sleep(Duration::from_millis(wait)).await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = retry => {}
            }
        }
    }

    /// In a task of its own: what it begins is brought to an end whatever becomes of those who wait.
    async fn wake(self: Arc<Self>, exposes: Arc<Exposes>) {
        let woken = exposes.wake_for(&self.pool, self.listen).await;
        self.metrics.woken(&self.pool, woken.is_ok());
        match woken {
            Ok(id) => locked(&self.decisions).woken(id, now()),
            Err(problem) => {
                tracing::warn!(listen = %self.listen, pool = %self.pool, "cannot wake: {problem}");
                if !locked(&self.decisions).failed(now()) {
                    let mut hopeless = locked(&self.hopeless);
                    *hopeless = (hopeless.0 + 1, Some(problem));
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// The instances that nobody has been connected to for long enough: they are to be ended.
    pub fn over(&self) -> Vec<InstanceId> {
        let limits = *locked(&self.limits);
        locked(&self.decisions).end(&limits, now())
    }

    /// An instance was ended.
    pub fn ended(&self, id: InstanceId) {
        locked(&self.decisions).ended(id);
        self.changed.notify_waiters();
    }

    /// An instance is not ours any more.
    pub fn lose(&self, id: InstanceId) {
        locked(&self.decisions).lose(id);
        self.changed.notify_waiters();
    }
}

/// A connection that waits for an instance, until it is dropped or seated.
struct Waiting<'a>(Option<&'a Arc<Front>>);

impl Waiting<'_> {
    fn begin(front: &Arc<Front>) -> Result<Waiting<'_>> {
        if locked(&front.decisions).arrive() {
            return Ok(Waiting(Some(front)));
        }
        Err(Problem::new(Code::Busy, "too many connections wait already"))
    }

    fn seated(mut self, id: InstanceId) -> Seat {
        // Counted at the instance from now on.
        let front = self.0.take().cloned();
        Seat { front, id }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(front) = self.0 {
            locked(&front.decisions).leave();
        }
    }
}

/// A connection's place at an instance, until it is dropped.
struct Seat {
    front: Option<Arc<Front>>,
    id: InstanceId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(front) = &self.front {
            locked(&front.decisions).close(self.id, now());
            front.changed.notify_waiters();
        }
    }
}

/// How the connection ends when it is dropped: by a reset, which says that it was cut off, or in
/// order. The kernel keeps to it when the agent is killed, too.
fn end_by_reset(client: &TcpStream, reset: bool) {
    let linger = reset.then_some(Duration::ZERO);
    if let Err(error) = rustix::net::sockopt::set_socket_linger(client, linger) {
        tracing::debug!("linger: {error}");
    }
}

/// Copies both ways until both have ended; tells when the first byte goes either way.
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
