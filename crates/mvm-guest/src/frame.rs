//! Frames of a stream: one byte kind, four bytes length (big endian), payload.
//!
//! The guest's channel and the connection between the CLI and the agent use the same frames; the
//! agent only copies bytes.

use crate::protocol::{Exit, Reply, Request};
use crate::words::said;
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest payload, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// The length of a frame's head, in bytes.
pub(crate) const HEAD: usize = 5;
/// The kind of a piece of an archive.
const DATA: u8 = 17;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A request from the host.
    Request(Request),
    /// The answer to a request.
    Reply(Reply),
    /// Bytes for the program's standard input.
    Stdin(Vec<u8>),
    /// The end of the standard input.
    StdinClosed,
    /// The new size of the terminal.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// A signal, by number, for the program's process group.
    Signal(i32),
    /// Bytes of the program's standard output (or terminal).
    Stdout(Vec<u8>),
    /// Bytes of the program's standard error.
    Stderr(Vec<u8>),
    /// The program has ended.
    Exit(Exit),
    /// A piece of an archive.
    Data(Vec<u8>),
    /// The end of an archive. For a kept program, the order to end.
    End,
    /// The number of bytes that the receiver has safe: of a kept program's output, or of its input.
    Ack(u64),
}

impl Frame {
    fn encode(&self) -> (u8, Vec<u8>) {
        // These are plain structs of strings and numbers, whose serialisation cannot fail.
        fn json(value: &impl serde::Serialize) -> Vec<u8> {
            serde_json::to_vec(value).unwrap_or_default()
        }
        match self {
            Frame::Request(request) => (1, json(request)),
            Frame::Reply(reply) => (2, json(reply)),
            Frame::Stdin(bytes) => (10, bytes.clone()),
            Frame::StdinClosed => (11, Vec::new()),
            Frame::Resize { rows, cols } => (12, [rows.to_be_bytes(), cols.to_be_bytes()].concat()),
            Frame::Signal(signal) => (13, signal.to_be_bytes().to_vec()),
            Frame::Stdout(bytes) => (14, bytes.clone()),
            Frame::Stderr(bytes) => (15, bytes.clone()),
            Frame::Exit(exit) => (16, json(exit)),
            Frame::Data(bytes) => (DATA, bytes.clone()),
            Frame::End => (18, Vec::new()),
            Frame::Ack(offset) => (19, offset.to_be_bytes().to_vec()),
        }
    }

    /// Returns the length of a piece of output as a frame, in bytes; for any other frame, the
    /// length of its head.
    pub fn length(&self) -> u64 {
        match self {
            Frame::Ack(_) => 5 + 8,
            other => 5 + other.output().len() as u64,
        }
    }

    /// Returns the bytes of a piece of a program's output; empty for any other frame.
    pub fn output(&self) -> &[u8] {
        match self {
            Frame::Stdout(bytes) | Frame::Stderr(bytes) => bytes,
            _ => &[],
        }
    }

    /// Returns the kind of the frame, for messages: the contents may be long, or secret.
    pub fn kind(&self) -> &'static str {
        match self {
            Frame::Request(_) => "a request",
            Frame::Reply(_) => "a reply",
            Frame::Stdin(_) | Frame::StdinClosed => "standard input",
            Frame::Resize { .. } => "a resize",
            Frame::Signal(_) => "a signal",
            Frame::Stdout(_) | Frame::Stderr(_) => "output",
            Frame::Exit(_) => "an exit",
            Frame::Data(_) | Frame::End => "a piece of an archive",
            Frame::Ack(_) => "an acknowledgement",
        }
    }

    fn decode(kind: u8, payload: Vec<u8>) -> Result<Frame> {
        Ok(match kind {
            1 => Frame::Request(parse(&payload)?),
            2 => Frame::Reply(parse(&payload)?),
            10 => Frame::Stdin(payload),
            11 => Frame::StdinClosed,
            12 => match payload[..] {
                [a, b, c, d] => Frame::Resize {
                    rows: u16::from_be_bytes([a, b]),
                    cols: u16::from_be_bytes([c, d]),
                },
                _ => return Err(malformed("a resize of other than 4 bytes")),
            },
            13 => match payload[..] {
                [a, b, c, d] => Frame::Signal(i32::from_be_bytes([a, b, c, d])),
                _ => return Err(malformed("a signal of other than 4 bytes")),
            },
            14 => Frame::Stdout(payload),
            15 => Frame::Stderr(payload),
            16 => Frame::Exit(parse(&payload)?),
            DATA => Frame::Data(payload),
            18 => Frame::End,
            19 => match payload.try_into() {
                Ok(offset) => Frame::Ack(u64::from_be_bytes(offset)),
                Err(_) => return Err(malformed("an acknowledgement of other than 8 bytes")),
            },
            other => return Err(malformed(&format!("a frame of unknown kind {other}"))),
        })
    }
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T> {
    serde_json::from_slice(payload).map_err(|cause| malformed(&cause.to_string()))
}

fn malformed(what: &str) -> Error {
    Error::Broken(format!("the other side sent {what}"))
}

/// Encodes a frame for the stream.
pub fn bytes(frame: &Frame) -> Vec<u8> {
    let (kind, payload) = frame.encode();
    let mut bytes = Vec::with_capacity(5 + payload.len());
    bytes.push(kind);
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&payload);
    bytes
}

/// Writes the head of a frame into the [`HEAD`] bytes before a piece of an archive.
pub(crate) fn complete(piece: &mut [u8]) {
    let length = (piece.len() - HEAD) as u32;
    piece[0] = DATA;
    piece[1..HEAD].copy_from_slice(&length.to_be_bytes());
}

/// Writes one frame and flushes.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> Result<()> {
    to.write_all(&bytes(frame)).await?;
    to.flush().await?;
    Ok(())
}

/// Reads one frame; `None` at the end of the stream. An end within a frame is an error. Not
/// cancel-safe: give it a task of its own.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Frame>> {
    let mut head = [0u8; 5];
    let begun = from.read(&mut head).await?;
    if begun == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[begun..]).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > MAX_PAYLOAD {
        return Err(malformed(&format!("a frame of {length} bytes")));
    }
    let mut payload = Vec::with_capacity(length);
    while payload.len() < length {
        let left = (length - payload.len()) as u64;
        if (&mut *from).take(left).read_buf(&mut payload).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
    }
    Frame::decode(head[0], payload).map(Some)
}

/// Sends a request and reads the reply.
pub async fn ask<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: Request,
) -> Result<T> {
    write(stream, &Frame::Request(request)).await?;
    reply(stream).await
}

/// Reads a reply. Errors: the guest's, or `guest_channel_broken` for any other frame.
pub async fn reply<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> Result<T> {
    match read(from).await? {
        Some(Frame::Reply(Reply::Ok(value))) => {
            serde_json::from_value(value).map_err(|cause| malformed(&cause.to_string()))
        }
        Some(Frame::Reply(Reply::Error { code, message })) => Err(said(&code, &message)),
        Some(other) => Err(malformed(&format!("{} where a reply was due", other.kind()))),
        None => Err(Error::Broken("the guest closed the stream without a reply".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(work)
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut from = &bytes[..];
            while let Ok(Some(_)) = block(read(&mut from)) {}
        }

        #[test]
        fn what_is_written_is_read(bytes in prop::collection::vec(any::<u8>(), 0..2000), n in any::<i32>()) {
            let frames = [Frame::Stdin(bytes.clone()), Frame::Signal(n), Frame::Data(bytes), Frame::End, Frame::Ack(n as u64),
                Frame::Resize { rows: n as u16, cols: 7 }, Frame::Exit(Exit { code: Some(n), signal: None })];
            let mut wire = Vec::new();
            for frame in &frames {
                block(write(&mut wire, frame)).expect("write");
            }
            let mut from = &wire[..];
            for frame in &frames {
                let found = block(read(&mut from)).expect("read");
                prop_assert_eq!(found.as_ref(), Some(frame));
            }
            prop_assert_eq!(block(read(&mut from)).expect("end"), None);
        }

        #[test]
        fn a_frame_that_is_cut_off_is_no_end(piece in prop::collection::vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>()) {
            let wire = bytes(&Frame::Stdout(piece));
            let cut = 1 + cut.index(wire.len() - 1);
            prop_assert!(block(read(&mut &wire[..cut])).is_err());
        }
    }
}
