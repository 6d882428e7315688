//! Socket options of connections, for both sides.

use rustix::net::sockopt;
use std::time::Duration;
use tokio::net::TcpStream;

/// A connection breaks once the other machine has not answered probes for this long. Without it, a
/// cut link would delay the error for a quarter of an hour.
const VANISHED: Duration = Duration::from_secs(15);
/// The silence after which a connection is probed, and the pause between probes.
const ASKED: Duration = Duration::from_secs(5);

/// Disables Nagle's algorithm, and enables the detection of a vanished machine.
pub fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, ASKED)?;
    sockopt::set_tcp_keepintvl(stream, ASKED)?;
    // The timeout applies to sent data as well as to probes, so it replaces their number (tcp(7),
    // TCP_USER_TIMEOUT).
    sockopt::set_tcp_user_timeout(stream, VANISHED.as_millis() as u32)?;
    Ok(())
}
