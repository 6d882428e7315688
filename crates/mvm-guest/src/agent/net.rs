//! Connections to the guest's own ports.

use super::common::guest_error;
use crate::Result;
use crate::serve::reply;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How often a refused connection is tried again, and the pause between: the server may be
/// starting.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(25);

/// Connects to the port and copies bytes both ways.
pub async fn connect(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), port: u16) -> Result<()> {
    let mut tries = 0;
    let mut server = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            Ok(server) => break server,
            Err(cause) if cause.kind() == ErrorKind::ConnectionRefused && tries < TRIES => {
                tries += 1;
            }
            Err(cause) => return Err(guest_error(&format!("connect to port {port}"), &cause)),
        }
        tokio::time::sleep(PAUSE).await;
    };
    let _ = server.set_nodelay(true);
    reply(stream, &()).await?;
    tokio::io::copy_bidirectional(stream, &mut server).await?;
    Ok(())
}
