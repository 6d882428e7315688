//! A proxy between a client and a server that can lose one direction, or everything.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to bytes that reach the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loses {
    /// They are passed on.
    Nothing,
    /// The server's answers never arrive; the client's requests do.
    Answers,
    /// The client's requests wait until this mode ends.
    Time,
    /// Open connections are cut, and new ones, too.
    Connections,
}

/// How long the rest of a client's bytes lags behind a held request, which the client may cancel in
/// that time.
const LINGER: Duration = Duration::from_millis(500);

/// The proxy; it ends with all its connections when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Loses>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on loopback and passes on to `target`.
    pub async fn start(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("address");
        let (mode, told) = watch::channel(Loses::Nothing);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let told = told.clone();
                connections.spawn(async move {
                    if let Ok(server) = TcpStream::connect(target).await {
                        carry(client, server, told).await;
                    }
                });
            }
        });
        Proxy { address, mode, task }
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets what is lost from now on.
    pub fn set(&self, mode: Loses) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, server: TcpStream, mode: watch::Receiver<Loses>) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut cut = mode.clone();
    tokio::select! {
        _ = cut.wait_for(|mode| *mode == Loses::Connections) => {}
        // Held requests arrive even if the client has hung up meanwhile.
        () = pass(from_client, to_server, mode.clone(), Loses::Time) => {}
        () = pass(from_server, to_client, mode, Loses::Answers) => {}
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Loses>,
    hinders: Loses,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        if *mode.borrow_and_update() == Loses::Answers && hinders == Loses::Answers {
            continue;
        }
        let held = hinders == Loses::Time && *mode.borrow() == Loses::Time;
        if held && mode.wait_for(|mode| *mode != Loses::Time).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        if held {
            tokio::time::sleep(LINGER).await;
        }
    }
}
