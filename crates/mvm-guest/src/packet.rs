//! Packets: the units on the wire between a host and a guest, and how to find them in it.

use tokio::sync::mpsc::{Receiver, Sender};

const MAGIC: [u8; 4] = [0xf5, b'm', b'v', b'm'];
const HEADER: usize = 15;
/// The longest payload of a packet, in bytes.
pub const MAX_PACKET: usize = 16 * 1024;

/// The kind of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The host begins a session.
    Hello = 1,
    /// The guest has begun the session.
    Welcome = 2,
    /// Bytes of the session.
    Data = 3,
    /// The sender does not have that session, or has it no longer.
    Bye = 4,
    /// The host asks for a sign of life.
    Ping = 5,
    /// The guest's sign of life.
    Pong = 6,
    /// Bytes of the session are in a slot of the window.
    Piece = 7,
    /// Those bytes were read: the slot is free.
    Taken = 8,
}

/// One packet of the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The kind of the packet.
    pub kind: Kind,
    /// The session that it belongs to.
    pub session: u64,
    /// The bytes of its payload.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Makes a packet without payload.
    pub fn bare(kind: Kind, session: u64) -> Self {
        Packet { kind, session, payload: Vec::new() }
    }

    /// Encodes the packet for the wire. The payload may have at most [`MAX_PACKET`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self.kind, self.session, &self.payload)
    }

    /// Encodes bytes of a session, at most [`MAX_PACKET`], for the wire.
    pub(crate) fn data(session: u64, bytes: &[u8]) -> Vec<u8> {
        encode(Kind::Data, session, bytes)
    }
}

fn encode(kind: Kind, session: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.push(kind as u8);
    bytes.extend_from_slice(&session.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Finds packets in a stream of bytes, however it is cut and whatever lies between them.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    read: usize,
}

impl Decoder {
    /// Appends bytes from the wire.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Drops an incomplete packet, because the byte stream starts anew.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.read = 0;
    }

    /// Returns the next complete packet; `None` if there is none yet.
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
                7 => Kind::Piece,
                8 => Kind::Taken,
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

/// A session id that stands for all sessions: an agent that has just begun sends BYE for it,
/// whatever session its predecessor had.
pub(crate) const ANY: u64 = 0;

/// The raw byte stream, as a pair of channels.
#[derive(Debug)]
pub struct Wire {
    /// Bytes from the other side. An empty piece means that it hung up, though it may come back.
    pub incoming: Receiver<Vec<u8>>,
    /// Bytes to the other side.
    pub outgoing: Sender<Vec<u8>>,
}

/// Puts as many bytes of padding before a packet as a packet can be long.
pub(crate) fn padded(packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; MAX_PACKET + HEADER];
    bytes.extend_from_slice(packet);
    bytes
}

/// Feeds the decoder; returns whether the other side is connected.
pub(crate) fn take_in(decoder: &mut Decoder, bytes: &[u8]) -> bool {
    if bytes.is_empty() {
        decoder.clear();
    } else {
        decoder.feed(bytes);
    }
    !bytes.is_empty()
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
            // Twice, as a host repeats a HELLO that gets no answer.
            decoder.feed(&words);
            decoder.feed(&words);
            let found: Vec<_> = std::iter::from_fn(|| decoder.next_packet()).collect();
            prop_assert!(found.iter().any(|p| p.kind == Kind::Hello && p.session == 5));
        }
    }
}
