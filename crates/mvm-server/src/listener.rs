//! Accepts connections. Each handshake runs in a task of its own with a deadline, so a slow or
//! broken client does not delay the others.

use crate::Result;
use crate::peer::Peer;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use mvm_identity::certificate;
use mvm_identity::tls::{Connection, Credentials, prepare};
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
/// The most handshakes under way: in all, and from one address.
const HANDSHAKES: usize = 256;
const HANDSHAKES_EACH: usize = 64;
/// How many bytes a refused client may still send, so that it gets to read the reason.
const DRAIN: u64 = 64 * 1024;

type Accepted = (Connection<TlsStream<TcpStream>>, SocketAddr);

/// Listens on TCP addresses and returns connections whose peers have presented valid certificates.
pub struct TlsListener {
    accepted: mpsc::Receiver<Accepted>,
    addresses: Vec<SocketAddr>,
    // Accepting ends when this is dropped.
    _tasks: JoinSet<()>,
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        let (facts, revocations) = (stream.io().facts().clone(), stream.io().revocations().clone());
        Peer::Certificate { facts, revocations }
    }
}

impl TlsListener {
    /// Listens on all of the addresses. Each connection uses the identity that `credentials` holds
    /// at the time.
    pub async fn bind(
        addresses: &[SocketAddr],
        credentials: Arc<Credentials>,
    ) -> Result<TlsListener> {
        credentials.server()?;
        let (sender, accepted) = mpsc::channel(64);
        let gate = Arc::new(Gate::new());
        let (mut tasks, mut bound) = (JoinSet::new(), Vec::new());
        for address in addresses {
            let failed = |cause| crate::Error::Listen { address: *address, cause };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            bound.push(listener.local_addr().map_err(failed)?);
            tasks.spawn(accept_all(listener, credentials.clone(), gate.clone(), sender.clone()));
        }
        Ok(TlsListener { accepted, addresses: bound, _tasks: tasks })
    }

    /// Returns the addresses, with the chosen ports where port 0 was requested.
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
            // There is no address, so no connection ever arrives.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.addresses.first().copied().ok_or_else(|| Error::from(ErrorKind::NotConnected))
    }
}

/// Limits the handshakes under way.
struct Gate {
    all: Arc<Semaphore>,
    each: Mutex<HashMap<IpAddr, usize>>,
}

/// The slot of one handshake.
struct HandshakeSlot {
    gate: Arc<Gate>,
    from: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Gate {
    fn new() -> Gate {
        Gate { all: Arc::new(Semaphore::new(HANDSHAKES)), each: Mutex::default() }
    }

    /// Takes a slot for a handshake with `from`; `None` where too many from there are under way.
    fn enter(
        self: &Arc<Self>,
        from: IpAddr,
        permit: OwnedSemaphorePermit,
    ) -> Option<HandshakeSlot> {
        let mut each = self.each.lock();
        let count = each.entry(from).or_default();
        if *count >= HANDSHAKES_EACH {
            return None;
        }
        *count += 1;
        Some(HandshakeSlot { gate: self.clone(), from, _permit: permit })
    }
}

impl Drop for HandshakeSlot {
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
                // The most likely cause is too many open files, some of which will be closed.
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

/// Reads what the client still sends. Closing a socket with unread bytes resets it, and the client
/// would lose the alert with the reason.
async fn drain(mut stream: TcpStream) {
    if stream.shutdown().await.is_ok() {
        let _ = tokio::io::copy(&mut (&mut stream).take(DRAIN), &mut tokio::io::sink()).await;
    }
}
