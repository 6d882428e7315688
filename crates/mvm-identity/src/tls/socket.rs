//! How a connection's socket behaves, on both sides.

use rustix::net::sockopt;
use std::time::Duration;
use tokio::net::TcpStream;

/// After so long without a word from the other machine, asked for by us, a connection is broken.
/// Without it a link that is cut would hold up whoever waits for an answer for a quarter of an hour.
const VANISHED: Duration = Duration::from_secs(15);
/// After what silence a connection is asked whether it is still there, and how often then.
const ASKED: Duration = Duration::from_secs(5);

/// Sends at once, and notices a machine that has vanished.
pub fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, ASKED)?;
    sockopt::set_tcp_keepintvl(stream, ASKED)?;
    // Of what was sent as well as of what was asked: it stands in for the number of questions, too.
    sockopt::set_tcp_user_timeout(stream, VANISHED.as_millis() as u32)?;
    Ok(())
}
