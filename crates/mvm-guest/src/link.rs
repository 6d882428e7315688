//! The link below the streams: packets that survive a host which comes and goes.
//!
//! A virtio-serial port is one endless byte stream. The host's end may be killed in the middle of a
//! packet, and a machine restored from a snapshot believes in a session that is long over. So every
//! packet names its session, drawn by the host: `magic(4) kind(1) session(8) length(2) payload`.
//! The host repeats HELLO until the guest says WELCOME; a HELLO with a new session ends the old
//! one; bytes that are no packet are passed over. Bytes of a session that a side does not have are
//! answered with BYE, so that nobody waits for an agent or a node that was restarted. A PING is answered
//! with a PONG by guests that say in their WELCOME that they know it.

use crate::pulse::{Pulse, SPEAKS_PING};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::{Receiver, Sender};

const MAGIC: [u8; 4] = [0xf5, b'm', b'v', b'm'];
const HEADER: usize = 15;
/// The longest payload of a packet.
pub const MAX_PACKET: usize = 16 * 1024;
/// How long the host waits for a WELCOME before it says HELLO again: at first, and at most.
const REPEAT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(50));
/// Of so many HELLOs the second has a packet's worth of padding before it: that completes a packet
/// that a predecessor was killed in. Not each, since they pile up while a guest boots.
const PAD_EVERY: u32 = 4;

/// The most that a session may leave unread: all windows together, and control frames.
const MAX_QUEUE: usize = MAX_WINDOWS + (1 << 20);
const MAX_WINDOWS: usize = MAX_STREAMS * 256 * 1024;
/// How many requests may be under way at once.
const MAX_STREAMS: usize = 128;

/// How a session is cut into streams, on both sides: yamux, with windows that are bounded.
pub fn streams() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(Some(MAX_WINDOWS));
    config
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The host begins a session.
    Hello = 1,
    /// The guest has begun it.
    Welcome = 2,
    /// Bytes of the session.
    Data = 3,
    /// The sender does not have that session, or has it no longer.
    Bye = 4,
    /// The host asks for a sign of life.
    Ping = 5,
    /// The guest gives it.
    Pong = 6,
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is.
    pub kind: Kind,
    /// Its session.
    pub session: u64,
    /// Its bytes.
    pub payload: Vec<u8>,
}

impl Packet {
    /// A packet without payload.
    pub fn bare(kind: Kind, session: u64) -> Self {
        Packet { kind, session, payload: Vec::new() }
    }

    /// As it goes over the wire. The payload has at most [`MAX_PACKET`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&self.session.to_be_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// Finds packets in a stream of bytes, however it is cut and whatever lies between them.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    read: usize,
}

impl Decoder {
    /// Takes bytes in.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Forgets a packet begun: the byte stream starts anew.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.read = 0;
    }

    /// The next whole packet.
    pub fn next_packet(&mut self) -> Option<Packet> {
        loop {
            let rest = &self.buffer[self.read..];
            let start = rest.windows(4).position(|window| window == MAGIC);
            let Some(start) = start else {
                // The last three bytes may be the beginning of a magic.
                self.read += rest.len().saturating_sub(3);
                return None;
            };
            self.read += start;
            let head = self.buffer[self.read..].get(..HEADER)?;
            let kind = match head[4] {
                1 => Kind::Hello,
                2 => Kind::Welcome,
                3 => Kind::Data,
                4 => Kind::Bye,
                5 => Kind::Ping,
                6 => Kind::Pong,
                _ => {
                    self.read += 1;
                    continue;
                }
            };
            let session = head[5..13].iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
            let length = usize::from(head[13]) << 8 | usize::from(head[14]);
            if length > MAX_PACKET {
                self.read += 1;
                continue;
            }
            let begin = self.read + HEADER;
            let payload = self.buffer.get(begin..begin + length)?.to_vec();
            self.read = begin + length;
            return Some(Packet { kind, session, payload });
        }
    }
}

/// A guest that has just begun says BYE to this: to whatever session its predecessor had.
const ANY: u64 = 0;

/// A session's id that no other session is likely to have.
fn draw_session() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish().max(ANY + 1)
}

/// The raw byte stream: what comes in and what goes out.
#[derive(Debug)]
pub struct Wire {
    /// Bytes from the other side. An empty piece says that it hung up, though it may come back.
    pub incoming: Receiver<Vec<u8>>,
    /// Bytes to the other side.
    pub outgoing: Sender<Vec<u8>>,
}

/// The host's end: begins a session, then moves bytes until either side closes. Gives the session's
/// bytes as a stream, and the guest's signs of life. Any WELCOME counts only with our own session.
pub async fn begin(mut wire: Wire, deadline: Duration) -> Result<(DuplexStream, Arc<Pulse>)> {
    let session = draw_session();
    let hello = Packet::bare(Kind::Hello, session).encode();
    let mut decoder = Decoder::default();
    let now = tokio::time::Instant::now;
    let ends = now() + deadline;
    let mut said = 0u32;
    let welcome = loop {
        if now() >= ends {
            return Err(Error::Silent(deadline));
        }
        let words = if said % PAD_EVERY == 1 { padded(&hello) } else { hello.clone() };
        // A full pipe means that the guest does not read yet: what is in it will do.
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
    let (near, far) = tokio::io::duplex(4 * MAX_PACKET);
    tokio::spawn(async move {
        // Whatever ends the session, its streams see the end of their connection.
        let _ = pump(&mut wire, &mut decoder, session, far, Some(&heard)).await;
        let _ = wire.outgoing.try_send(Packet::bare(Kind::Bye, session).encode());
    });
    Ok((near, pulse))
}

/// A packet behind as much padding as a packet can be long.
fn padded(packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; MAX_PACKET + HEADER];
    bytes.extend_from_slice(packet);
    bytes
}

/// Gives what the guest says in its WELCOME.
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

/// The guest's end: calls `each` with the bytes of every session that a host begins.
pub async fn accept(mut wire: Wire, mut each: impl FnMut(DuplexStream)) {
    let mut decoder = Decoder::default();
    // A host may be waiting for an answer of an agent that has died.
    if wire.outgoing.send(Packet::bare(Kind::Bye, ANY).encode()).await.is_err() {
        return;
    }
    let Some(mut session) = between_sessions(&mut wire, &mut decoder).await else { return };
    loop {
        if wire.outgoing.send(welcome(session)).await.is_err() {
            return;
        }
        let (near, far) = tokio::io::duplex(4 * MAX_PACKET);
        each(near);
        session = match pump(&mut wire, &mut decoder, session, far, None).await {
            Ended::NewSession(next) => next,
            Ended::Closed => match between_sessions(&mut wire, &mut decoder).await {
                Some(next) => next,
                None => return,
            },
            Ended::WireGone => return,
        };
    }
}

/// The guest's answer to a HELLO.
fn welcome(session: u64) -> Vec<u8> {
    Packet { kind: Kind::Welcome, session, payload: vec![SPEAKS_PING] }.encode()
}

/// Waits for a HELLO, and tells hosts that believe in another session that they are wrong.
async fn between_sessions(wire: &mut Wire, decoder: &mut Decoder) -> Option<u64> {
    loop {
        while let Some(packet) = decoder.next_packet() {
            match packet.kind {
                Kind::Hello => return Some(packet.session),
                Kind::Data | Kind::Ping => say_bye(&wire.outgoing, packet.session),
                Kind::Welcome | Kind::Pong | Kind::Bye => {}
            }
        }
        take_in(decoder, &wire.incoming.recv().await?);
    }
}

/// What cannot be sent at once will be asked for again.
fn say_bye(outgoing: &Sender<Vec<u8>>, session: u64) {
    let _ = outgoing.try_send(Packet::bare(Kind::Bye, session).encode());
}

/// Feeds the decoder; says whether the other side is there.
fn take_in(decoder: &mut Decoder, bytes: &[u8]) -> bool {
    if bytes.is_empty() {
        decoder.clear();
    } else {
        decoder.feed(bytes);
    }
    !bytes.is_empty()
}

/// Why a session ended.
enum Ended {
    /// Its stream was closed on this side.
    Closed,
    /// The host has begun another.
    NewSession(u64),
    /// The byte stream is gone.
    WireGone,
}

/// Moves bytes between the wire and the session's stream.
async fn pump(
    wire: &mut Wire,
    decoder: &mut Decoder,
    session: u64,
    far: DuplexStream,
    pulse: Option<&Pulse>,
) -> Ended {
    let (mut from_session, mut to_session) = tokio::io::split(far);
    let outgoing = wire.outgoing.clone();
    let send = async {
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            match from_session.read(&mut buffer).await {
                Ok(0) | Err(_) => return Ended::Closed,
                Ok(count) => {
                    let payload = buffer[..count].to_vec();
                    let packet = Packet { kind: Kind::Data, session, payload }.encode();
                    if outgoing.send(packet).await.is_err() {
                        return Ended::WireGone;
                    }
                }
            }
        }
    };
    let receive = receive(&mut wire.incoming, &outgoing, decoder, session, &mut to_session, pulse);
    tokio::select! {
        ended = send => ended,
        ended = receive => ended,
    }
}

async fn receive(
    incoming: &mut Receiver<Vec<u8>>,
    outgoing: &Sender<Vec<u8>>,
    decoder: &mut Decoder,
    session: u64,
    to_session: &mut (impl AsyncWrite + Unpin),
    pulse: Option<&Pulse>,
) -> Ended {
    let mut repeated = 0u32;
    let mut queue = Queue::default();
    loop {
        while let Some(packet) = decoder.next_packet() {
            let ours = packet.session == session;
            match packet.kind {
                Kind::Data if ours => {
                    queue.push(packet.payload);
                }
                // Before whatever the streams have to say. Where there is no room, bytes are on their
                // way, which do as well.
                Kind::Ping if ours => {
                    let _ = outgoing.try_send(Packet::bare(Kind::Pong, session).encode());
                }
                Kind::Data | Kind::Ping => say_bye(outgoing, packet.session),
                Kind::Hello if !ours => return Ended::NewSession(packet.session),
                Kind::Hello => {
                    // It was repeated before our WELCOME came through. Now and then with padding,
                    // in case the host began to listen inside what looks like a packet.
                    repeated += 1;
                    let welcome = welcome(session);
                    let often = repeated.is_multiple_of(8);
                    let _ = outgoing.try_send(if often { padded(&welcome) } else { welcome });
                }
                Kind::Bye if ours || packet.session == ANY => return Ended::Closed,
                Kind::Bye | Kind::Welcome | Kind::Pong => {}
            }
        }
        if queue.bytes > MAX_QUEUE {
            return Ended::Closed;
        }
        tokio::select! {
            bytes = incoming.recv() => match bytes {
                Some(bytes) if take_in(decoder, &bytes) => pulse.into_iter().for_each(Pulse::beat),
                Some(_) => return Ended::Closed,
                None => return Ended::WireGone,
            },
            written = to_session.write(queue.front()), if queue.bytes > 0 => match written {
                Ok(count) if count > 0 => queue.advance(count),
                _ => return Ended::Closed,
            },
        }
    }
}

/// Bytes that the session has not taken yet. The wire is read all the same: a HELLO may be next,
/// and two sides that each wait for the other to read would wait for ever. It stays short, since
/// the streams above have windows ([`streams`]).
#[derive(Default)]
struct Queue {
    pieces: VecDeque<Vec<u8>>,
    /// How much of the first piece has been taken.
    taken: usize,
    bytes: usize,
}

impl Queue {
    /// Small pieces are put together: a hostile side must not make us hold millions.
    fn push(&mut self, piece: Vec<u8>) {
        self.bytes += piece.len();
        match self.pieces.back_mut() {
            Some(last) if last.len() < MAX_PACKET => last.extend_from_slice(&piece),
            _ => self.pieces.push_back(piece),
        }
    }

    fn front(&self) -> &[u8] {
        self.pieces.front().and_then(|piece| piece.get(self.taken..)).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        self.taken += count;
        self.bytes -= count;
        if self.front().is_empty() {
            self.pieces.pop_front();
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packets_are_found_in_any_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
            cut in 1..50usize,
            garbage in prop::collection::vec(0..0xf5u8, 0..40),
        ) {
            let packets: Vec<Packet> = payloads.into_iter()
                .map(|payload| Packet { kind: Kind::Data, session: 77, payload }).collect();
            let mut wire = garbage.clone();
            for packet in &packets {
                wire.extend(packet.encode());
                wire.extend(&garbage);
            }
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for piece in wire.chunks(cut) {
                decoder.feed(piece);
                found.extend(std::iter::from_fn(|| decoder.next_packet()));
            }
            prop_assert_eq!(found, packets);
        }

        #[test]
        fn garbage_never_panics_and_never_hides_a_padded_hello(
            garbage in prop::collection::vec(any::<u8>(), 0..500),
        ) {
            let mut decoder = Decoder::default();
            decoder.feed(&garbage);
            while decoder.next_packet().is_some() {}
            let mut words = vec![0; MAX_PACKET + HEADER];
            words.extend(Packet::bare(Kind::Hello, 5).encode());
            // Twice, as a host that gets no answer does.
            decoder.feed(&words);
            decoder.feed(&words);
            let found: Vec<_> = std::iter::from_fn(|| decoder.next_packet()).collect();
            prop_assert!(found.iter().any(|p| p.kind == Kind::Hello && p.session == 5));
        }
    }
}
