//! The link below the streams: packets that survive a host that comes and goes.
//!
//! A virtio-serial port is one endless byte stream. The host's end may be killed in the middle of a
//! packet, and a machine restored from a snapshot believes in a session that is long over. So every
//! packet names its session, chosen by the host: `magic(4) kind(1) session(8) length(2) payload`.
//! The host repeats HELLO until the guest answers WELCOME; a HELLO with a new session ends the old
//! one; bytes that are not a packet are skipped. Bytes of an unknown session are answered with BYE,
//! so that nobody waits for a restarted agent or node. A guest whose WELCOME announces it answers a
//! PING with a PONG. If HELLO and WELCOME both announce a window ([`crate::window`]), a PIECE
//! stands for bytes in it, and a TAKEN says that they were read.

pub use crate::packet::{Decoder, Kind, MAX_PACKET, Packet, Wire};

use crate::packet::{ANY, padded, take_in};
use crate::pulse::{Pulse, SPEAKS_PING};
use crate::pump::{Ended, Session, pump};
use crate::window::{SLOT, Window};
use crate::{Error, Result};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::DuplexStream;

/// How long the host waits for a WELCOME before it repeats HELLO: at first, and at most.
const REPEAT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(50));
/// Of this many HELLOs, the second is preceded by a packet's worth of padding, which completes a
/// packet that an earlier host was killed in. Not every HELLO is padded, since they pile up while a
/// guest boots.
const PAD_EVERY: u32 = 4;

/// The most bytes that a session may leave unread: all windows together, and control frames.
const MAX_QUEUE: usize = MAX_WINDOWS + (1 << 20);
const MAX_WINDOWS: usize = MAX_STREAMS * 256 * 1024;
/// How many requests may be under way at once.
const MAX_STREAMS: usize = 128;
/// The longest frame of a stream, in bytes: short enough not to burden a small machine's memory or
/// delay other streams, long enough that a copy needs few of them.
const MAX_FRAME: usize = 64 * 1024;
/// Announces, in a HELLO or WELCOME, that its sender can use a window.
const HAS_WINDOW: u8 = 2;

/// Returns how a session is cut into streams on both sides: by yamux, with bounded windows.
pub fn streams() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(Some(MAX_WINDOWS));
    config.set_split_send_size(MAX_FRAME);
    config
}

/// Returns a session id that no other session is likely to have.
fn draw_session() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish().max(ANY + 1)
}

/// Runs the host's end: begins a session, then moves bytes until either side closes. Returns the
/// session's bytes as a stream, and the guest's signs of life. A WELCOME for another session is
/// ignored. Errors: `guest_silent`, `guest_channel_broken`.
pub async fn begin(
    mut wire: Wire,
    window: Option<Arc<Window>>,
    deadline: Duration,
) -> Result<(DuplexStream, Arc<Pulse>)> {
    let session = draw_session();
    let payload = window.iter().map(|_| HAS_WINDOW).collect();
    let hello = Packet { kind: Kind::Hello, session, payload }.encode();
    let mut decoder = Decoder::default();
    let now = tokio::time::Instant::now;
    let ends = now() + deadline;
    let mut said = 0u32;
    let welcome = loop {
        if now() >= ends {
            return Err(Error::Silent(deadline));
        }
        let words = if said % PAD_EVERY == 1 { padded(&hello) } else { hello.clone() };
        // A full pipe means that the guest does not read yet; the HELLOs in it suffice.
        let _ = wire.outgoing.try_send(words);
        said += 1;
        let pause = (REPEAT.0 * said).min(REPEAT.1).min(ends.saturating_duration_since(now()));
        let answered =
            tokio::time::timeout(pause, welcomed(&mut wire, &mut decoder, session)).await;
        match answered {
            Ok(Ok(welcome)) => break welcome,
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
    };
    let pulse = Arc::new(Pulse::new(session, &wire.outgoing, &welcome));
    let heard = pulse.clone();
    let window = window.filter(|_| welcome.contains(&HAS_WINDOW));
    let (near, far) = pipe(window.is_some());
    tokio::spawn(async move {
        // Whatever ends the session, its streams see the end of their connection.
        let ours = Session {
            id: session,
            window: window.as_ref().map(Window::turn),
            welcome: Vec::new(),
            pulse: Some(&heard),
            max_queue: MAX_QUEUE,
        };
        let _ = pump(&mut wire, &mut decoder, &ours, far).await;
        let _ = wire.outgoing.try_send(Packet::bare(Kind::Bye, session).encode());
    });
    Ok((near, pulse))
}

/// Returns the two ends of a session's bytes; with a window, their buffer holds two of its pieces.
fn pipe(window: bool) -> (DuplexStream, DuplexStream) {
    tokio::io::duplex(if window { 2 * SLOT } else { 4 * MAX_PACKET })
}

/// Waits for the guest's WELCOME and returns its payload.
async fn welcomed(wire: &mut Wire, decoder: &mut Decoder, session: u64) -> Result<Vec<u8>> {
    loop {
        while let Some(packet) = decoder.next_packet() {
            if packet.kind == Kind::Welcome && packet.session == session {
                return Ok(packet.payload);
            }
        }
        match wire.incoming.recv().await {
            Some(bytes) => decoder.feed(&bytes),
            None => return Err(Error::Broken("the machine closed its channel".to_owned())),
        }
    }
}

/// Runs the guest's end: calls `each` with the bytes of every session that a host begins.
pub async fn accept(
    mut wire: Wire,
    window: Option<Arc<Window>>,
    mut each: impl FnMut(DuplexStream),
) {
    let mut decoder = Decoder::default();
    // A host may be waiting for an answer of an agent that has died.
    if wire.outgoing.send(Packet::bare(Kind::Bye, ANY).encode()).await.is_err() {
        return;
    }
    let Some(mut hello) = between_sessions(&mut wire, &mut decoder).await else { return };
    loop {
        let window = window.as_ref().filter(|_| hello.payload.contains(&HAS_WINDOW));
        let (near, far) = pipe(window.is_some());
        let mut payload = vec![SPEAKS_PING];
        payload.extend(window.map(|_| HAS_WINDOW));
        let welcome = Packet { kind: Kind::Welcome, session: hello.session, payload }.encode();
        if wire.outgoing.send(welcome.clone()).await.is_err() {
            return;
        }
        each(near);
        let session = Session {
            id: hello.session,
            window: window.map(Window::turn),
            welcome,
            pulse: None,
            max_queue: MAX_QUEUE,
        };
        hello = match pump(&mut wire, &mut decoder, &session, far).await {
            Ended::NewSession(next) => next,
            Ended::Closed => match between_sessions(&mut wire, &mut decoder).await {
                Some(next) => next,
                None => return,
            },
            Ended::WireGone => return,
        };
    }
}

/// Waits for a HELLO, and answers packets of other sessions with BYE.
async fn between_sessions(wire: &mut Wire, decoder: &mut Decoder) -> Option<Packet> {
    loop {
        while let Some(packet) = decoder.next_packet() {
            match packet.kind {
                Kind::Hello => return Some(packet),
                // If the answer cannot be sent now, the host will ask again.
                Kind::Data | Kind::Piece | Kind::Ping => {
                    let bye = Packet::bare(Kind::Bye, packet.session).encode();
                    let _ = wire.outgoing.try_send(bye);
                }
                Kind::Welcome | Kind::Pong | Kind::Bye | Kind::Taken => {}
            }
        }
        take_in(decoder, &wire.incoming.recv().await?);
    }
}
