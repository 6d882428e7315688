//! Moves the bytes of a session between its streams and the wire: packets, and pieces in the
//! window.

use crate::packet::{ANY, Decoder, Kind, MAX_PACKET, Packet, Wire, padded, take_in};
use crate::pulse::Pulse;
use crate::window::{Announced, Piece, SLOTS, Turn, WORTHWHILE};
use futures::future::{FutureExt, OptionFuture};
use std::collections::VecDeque;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::{Receiver, Sender};

/// A session, and what the pump needs besides its bytes.
pub(crate) struct Session<'a> {
    pub(crate) id: u64,
    /// The window, if both sides have it.
    pub(crate) window: Option<Turn>,
    /// The guest's answer to a repeated HELLO; empty on the host.
    pub(crate) welcome: Vec<u8>,
    pub(crate) pulse: Option<&'a Pulse>,
    /// The most bytes that the session may leave unread.
    pub(crate) max_queue: usize,
}

/// Why a session ended.
pub(crate) enum Ended {
    /// The stream was closed on this side, or the other side broke the protocol.
    Closed,
    /// The host has begun another session with this HELLO.
    NewSession(Packet),
    /// The byte stream is gone.
    WireGone,
}

/// Moves bytes between the wire and the session's stream.
pub(crate) async fn pump(
    wire: &mut Wire,
    decoder: &mut Decoder,
    session: &Session<'_>,
    far: DuplexStream,
) -> Ended {
    let (from_session, mut to_session) = tokio::io::split(far);
    let outgoing = wire.outgoing.clone();
    tokio::select! {
        ended = send(session, from_session, &outgoing) => ended,
        ended = receive(session, &mut wire.incoming, &outgoing, decoder, &mut to_session) => ended,
    }
}

async fn send(
    session: &Session<'_>,
    mut from: impl AsyncRead + Unpin,
    outgoing: &Sender<Vec<u8>>,
) -> Ended {
    let mut window = session.window.as_ref();
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return Ended::Closed,
            Ok(count) => count,
        };
        let Some(turn) = window.filter(|_| count == MAX_PACKET) else {
            if !send_packets(session.id, &buffer[..count], outgoing).await {
                return Ended::WireGone;
            }
            continue;
        };
        let piece = gather(turn, &buffer, &mut from);
        let length = piece.bytes().len();
        let (piece, in_window) = match length < WORTHWHILE {
            true => (piece, None),
            false => {
                let slot = turn.slot().await;
                let Some((piece, written)) = turn.write(slot, piece).await else {
                    return Ended::Closed;
                };
                if !written {
                    // The rest of the session does without the window.
                    window = None;
                }
                (piece, written.then_some(Announced { slot, length }))
            }
        };
        let sent = match in_window {
            Some(announced) => {
                let packet =
                    Packet { kind: Kind::Piece, session: session.id, payload: announced.encode() };
                outgoing.send(packet.encode()).await.is_ok()
            }
            None => send_packets(session.id, piece.bytes(), outgoing).await,
        };
        turn.window().recycle(piece);
        if !sent {
            return Ended::WireGone;
        }
    }
}

/// Returns the bytes read so far, and those that can be read without waiting.
fn gather(turn: &Turn, begun: &[u8], from: &mut (impl AsyncRead + Unpin)) -> Piece {
    let mut piece = turn.window().piece();
    piece.rest()[..begun.len()].copy_from_slice(begun);
    piece.grow(begun.len());
    while !piece.rest().is_empty() {
        // The next read finds an end again.
        match from.read(piece.rest()).now_or_never() {
            Some(Ok(count @ 1..)) => piece.grow(count),
            _ => break,
        }
    }
    piece
}

async fn send_packets(session: u64, bytes: &[u8], outgoing: &Sender<Vec<u8>>) -> bool {
    for part in bytes.chunks(MAX_PACKET) {
        let packet = Packet::data(session, part);
        if outgoing.send(packet).await.is_err() {
            return false;
        }
    }
    true
}

async fn receive(
    session: &Session<'_>,
    incoming: &mut Receiver<Vec<u8>>,
    outgoing: &Sender<Vec<u8>>,
    decoder: &mut Decoder,
    to_session: &mut (impl AsyncWrite + Unpin),
) -> Ended {
    let mut inbox =
        Inbox { session, outgoing, queue: Queue::default(), repeated: 0, reading: None };
    // Slots that have been read but not yet reported to the other side.
    let mut taken = VecDeque::with_capacity(SLOTS);
    loop {
        // Packets after a piece wait for it, so that bytes stay in order.
        while inbox.reading.is_none()
            && let Some(packet) = decoder.next_packet()
        {
            if let Some(ended) = inbox.packet(packet) {
                return ended;
            }
        }
        if inbox.queue.bytes > session.max_queue {
            return Ended::Closed;
        }
        let idle = inbox.reading.is_none();
        let reading =
            OptionFuture::from(inbox.reading.as_mut().map(|(_, reading)| reading.as_mut()));
        tokio::select! {
            piece = reading, if !idle => {
                let (Some(Some(piece)), Some((slot, _))) = (piece, inbox.reading.take()) else {
                    return Ended::Closed;
                };
                inbox.queue.add(piece);
                taken.push_back(slot);
            }
            room = outgoing.reserve(), if !taken.is_empty() => match (room, taken.pop_front()) {
                (Ok(room), Some(slot)) => {
                    let payload = vec![slot as u8];
                    room.send(Packet { kind: Kind::Taken, session: session.id, payload }.encode());
                }
                _ => return Ended::WireGone,
            },
            bytes = incoming.recv(), if idle => match bytes {
                Some(bytes) if take_in(decoder, &bytes) => {
                    session.pulse.into_iter().for_each(Pulse::beat);
                }
                Some(_) => return Ended::Closed,
                None => return Ended::WireGone,
            },
            written = to_session.write(inbox.queue.front()), if inbox.queue.bytes > 0 => match written {
                Ok(count) if count > 0 => inbox.queue.advance(count, session.window.as_ref()),
                _ => return Ended::Closed,
            },
        }
    }
}

type Reading = Pin<Box<dyn Future<Output = Option<Piece>> + Send>>;

/// Processes incoming packets.
struct Inbox<'a> {
    session: &'a Session<'a>,
    outgoing: &'a Sender<Vec<u8>>,
    queue: Queue,
    /// How often the HELLO was repeated.
    repeated: u32,
    /// The piece that is being read, and its slot.
    reading: Option<(usize, Reading)>,
}

impl Inbox<'_> {
    fn packet(&mut self, packet: Packet) -> Option<Ended> {
        let Session { id, window, welcome, .. } = self.session;
        let ours = packet.session == *id;
        let bare = |kind| Packet::bare(kind, packet.session).encode();
        match packet.kind {
            Kind::Data if ours => self.queue.push(packet.payload),
            Kind::Piece if ours => {
                let announced = Announced::decode(&packet.payload);
                let (Some(turn), Some(announced)) = (window, announced) else {
                    return Some(Ended::Closed);
                };
                self.reading = Some((announced.slot, Box::pin(turn.read(announced))));
            }
            Kind::Taken if ours => {
                if !window.as_ref().is_some_and(|turn| turn.free(&packet.payload)) {
                    return Some(Ended::Closed);
                }
            }
            // The answer comes before anything that the streams send. If there is no space for it,
            // bytes are on their way, which serve as well.
            Kind::Ping if ours => _ = self.outgoing.try_send(bare(Kind::Pong)),
            Kind::Data | Kind::Piece | Kind::Ping => _ = self.outgoing.try_send(bare(Kind::Bye)),
            Kind::Hello if !ours => return Some(Ended::NewSession(packet)),
            Kind::Hello => {
                // The HELLO was repeated before our WELCOME arrived. Every eighth answer is padded,
                // in case the host began to listen inside what looks like a packet.
                self.repeated += 1;
                let often = self.repeated.is_multiple_of(8);
                let words = if often { padded(welcome) } else { welcome.clone() };
                let _ = self.outgoing.try_send(words);
            }
            Kind::Bye if ours || packet.session == ANY => return Some(Ended::Closed),
            Kind::Bye | Kind::Welcome | Kind::Pong | Kind::Taken => {}
        }
        None
    }
}

/// Bytes that the session has not taken yet. The wire is read all the same: a HELLO may be next,
/// and two sides that each wait for the other to read would wait for ever. The queue stays short,
/// since the streams above have windows ([`crate::link::streams`]).
#[derive(Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// Whether the last piece may be appended to.
    open: bool,
}

impl Queue {
    /// Appends bytes. Small ones are joined: a hostile side must not make us hold millions of
    /// pieces.
    fn push(&mut self, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        match self.pieces.back_mut() {
            Some(last) if self.open && last.bytes().len() < MAX_PACKET => last.append(&bytes),
            _ => self.pieces.push_back(Piece::of(bytes)),
        }
        self.open = true;
    }

    fn add(&mut self, piece: Piece) {
        self.bytes += piece.bytes().len();
        self.pieces.push_back(piece);
        self.open = false;
    }

    fn front(&self) -> &[u8] {
        self.pieces.front().map_or(&[], Piece::bytes)
    }

    fn advance(&mut self, count: usize, window: Option<&Turn>) {
        let Some(first) = self.pieces.front_mut() else { return };
        first.advance(count);
        self.bytes -= count;
        if first.bytes().is_empty()
            && let Some(empty) = self.pieces.pop_front()
            && let Some(turn) = window
        {
            turn.window().recycle(empty);
        }
    }
}
