//! Accepting: handshakes in tasks of their own, each with a deadline, so that whoever is slow or
//! speaks rubbish holds up nobody else.

use crate::peer::Peer;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use mvm_api::Problem;
use mvm_identity::tls::{Connection, Credentials, prepare};
use mvm_identity::{Result, certificate};
use mvm_model::Code;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How many may be under way, in all and from one address.
const HANDSHAKES: usize = 256;
const HANDSHAKES_EACH: usize = 64;
/// How much of what a refused client still sends is read, so that it gets to read why.
const DRAIN: u64 = 64 * 1024;

type Accepted = (Connection<TlsStream<TcpStream>>, SocketAddr);

/// Listens on TCP addresses and gives connections whose peers have shown good certificates.
pub struct TlsListener {
    accepted: mpsc::Receiver<Accepted>,
    addresses: Vec<SocketAddr>,
    // Ends the accepting when it is dropped.
    _tasks: JoinSet<()>,
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        let (facts, revocations) = (stream.io().facts().clone(), stream.io().revocations().clone());
        Peer::Certificate { facts, revocations }
    }
}

impl TlsListener {
    /// Listens on all of the addresses with the identity that `credentials` holds at the time of each
    /// connection.
    pub async fn bind(
        addresses: &[SocketAddr],
        credentials: Arc<Credentials>,
    ) -> Result<TlsListener> {
        credentials.server()?;
        let (sender, accepted) = mpsc::channel(64);
        let gate = Arc::new(Gate::new());
        let (mut tasks, mut bound) = (JoinSet::new(), Vec::new());
        for address in addresses {
            let failed = |e| {
                Problem::new(Code::Socket, format!("cannot listen on {address}: {e}"))
                    .hint("choose an address of this machine and a port that is free")
            };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            bound.push(listener.local_addr().map_err(failed)?);
            tasks.spawn(accept_all(listener, credentials.clone(), gate.clone(), sender.clone()));
        }
        Ok(TlsListener { accepted, addresses: bound, _tasks: tasks })
    }

    /// The addresses, with the ports that the system has chosen where 0 was asked for.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = Connection<TlsStream<TcpStream>>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            // No address at all, then.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.addresses.first().copied().ok_or_else(|| Error::from(ErrorKind::NotConnected))
    }
}

/// Bounds the handshakes that are under way.
struct Gate {
    all: Arc<Semaphore>,
    each: Mutex<HashMap<IpAddr, usize>>,
}

/// One handshake's place.
struct Place {
    gate: Arc<Gate>,
    from: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Gate {
    fn new() -> Gate {
        Gate { all: Arc::new(Semaphore::new(HANDSHAKES)), each: Mutex::default() }
    }

    /// A place for a handshake with `from`; none where too many from there are under way.
    fn enter(self: &Arc<Self>, from: IpAddr, permit: OwnedSemaphorePermit) -> Option<Place> {
        let mut each = self.each.lock();
        let count = each.entry(from).or_default();
        if *count >= HANDSHAKES_EACH {
            return None;
        }
        *count += 1;
        Some(Place { gate: self.clone(), from, _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut each = self.gate.each.lock();
        if let Some(count) = each.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                each.remove(&self.from);
            }
        }
    }
}

async fn accept_all(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    gate: Arc<Gate>,
    to: mpsc::Sender<Accepted>,
) {
    loop {
        let Ok(permit) = gate.all.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, most likely: some will be closed.
                tracing::warn!("cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Some(place) = gate.enter(from.ip(), permit) else {
            tracing::warn!(%from, "too many handshakes at once: refused");
            continue;
        };
        let (credentials, to) = (credentials.clone(), to.clone());
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(HANDSHAKE, handshake(stream, &credentials)).await;
            let shaken = shaken.unwrap_or_else(|_| Err("it took too long".to_owned()));
            drop(place);
            match shaken {
                Ok(connection) => drop(to.send((connection, from)).await),
                Err(why) => tracing::info!(%from, "refused: {why}"),
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    credentials: &Credentials,
) -> std::result::Result<Connection<TlsStream<TcpStream>>, String> {
    let said = |e: &dyn std::fmt::Display| e.to_string();
    prepare(&stream).map_err(|e| said(&e))?;
    let config = credentials.server().map_err(|e| said(&e))?;
    let stream = match TlsAcceptor::from(config).accept(stream).into_fallible().await {
        Ok(stream) => stream,
        Err((error, stream)) => {
            drain(stream).await;
            return Err(error.to_string());
        }
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let first = certificates.first().ok_or("it showed no certificate")?;
    let facts = certificate::read(first).map_err(|e| said(&e))?;
    Ok(Connection::new(stream, facts, credentials.revocations()))
}

/// Closing a socket with bytes unread resets it, and the alert that says why would be lost.
async fn drain(mut stream: TcpStream) {
    if stream.shutdown().await.is_ok() {
        let _ = tokio::io::copy(&mut (&mut stream).take(DRAIN), &mut tokio::io::sink()).await;
    }
}
