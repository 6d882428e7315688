//! Copies files in and out as archives, over any byte stream: the host's end, and what both ends
//! share.

use crate::frame::{self, Frame};
use crate::protocol::{Reply, Request};
use crate::{Error, Result};
use mvm_archive::Notes;
use std::io::{self, Read, Write};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// The size of a piece of an archive in bytes: large, for few frames and few switches between
/// threads.
const PIECE: usize = 256 * 1024;
/// How many pieces may wait between the thread that packs or unpacks and the stream.
const WAITING: usize = 2;

/// Unpacks `archive` below the folder `path` of the guest, which is made if it is missing. Returns
/// what the guest could not preserve.
pub async fn put(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: &str,
    mut archive: impl AsyncRead + Unpin,
) -> Result<Notes> {
    begin_put(stream, path).await?;
    let mut piece = vec![0; frame::HEAD + PIECE];
    loop {
        let count = archive.read(&mut piece[frame::HEAD..]).await;
        let count = count.map_err(|cause| here("read", cause))?;
        if count == 0 {
            return end_put(stream).await;
        }
        write_piece(stream, &mut piece[..frame::HEAD + count]).await?;
    }
}

/// Sends a piece of an archive, which follows space for a frame's head.
async fn write_piece(stream: &mut (impl AsyncWrite + Unpin), piece: &mut [u8]) -> io::Result<()> {
    frame::complete(piece);
    stream.write_all(piece).await?;
    stream.flush().await
}

/// Like [`put`], with the archive that `pack` writes on a thread of its own. Returns what either
/// side could not preserve.
pub async fn put_packed(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: &str,
    pack: impl FnOnce(&mut dyn Write) -> io::Result<Notes> + Send + 'static,
) -> Result<Notes> {
    begin_put(stream, path).await?;
    // If packing fails, no end is sent, so the guest does not take the archive for complete.
    let packed = send(stream, pack).await?;
    let mut notes = packed.map_err(|cause| here("pack", cause))?;
    notes.append(end_put(stream).await?);
    Ok(notes)
}

async fn begin_put(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str) -> Result<()> {
    frame::ask(stream, Request::Put { path: path.to_owned(), notes: true }).await
}

async fn end_put(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<Notes> {
    frame::write(stream, &Frame::End).await?;
    // A guest of an older version replies nothing.
    Ok(frame::reply::<Option<Notes>>(stream).await?.unwrap_or_default())
}

/// Writes the file or folder `path` of the guest to `archive`, whose entries begin with the last
/// component of `path`. Returns what the guest could not preserve. After an error, the archive is
/// incomplete.
pub async fn get(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: &str,
    mut archive: impl AsyncWrite + Unpin,
) -> Result<Notes> {
    frame::ask::<()>(stream, Request::Get { path: path.to_owned(), notes: true }).await?;
    let mut notes = Notes::default();
    while let Some(bytes) = next(stream, &mut notes).await? {
        archive.write_all(&bytes).await.map_err(|cause| here("write", cause))?;
    }
    archive.flush().await.map_err(|cause| here("write", cause))?;
    Ok(notes)
}

/// Like [`get`], with the archive read by `unpack` on a thread of its own. Returns what either side
/// could not preserve.
pub async fn get_unpacked(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: &str,
    unpack: impl FnOnce(&mut dyn Read) -> io::Result<Notes> + Send + 'static,
) -> Result<Notes> {
    frame::ask::<()>(stream, Request::Get { path: path.to_owned(), notes: true }).await?;
    let mut unpacking = Unpacking::begin(unpack);
    let mut notes = Notes::default();
    while let Some(bytes) = next(stream, &mut notes).await? {
        if !unpacking.take(bytes).await {
            break;
        }
    }
    notes.append(unpacking.end().await?.map_err(|cause| here("unpack", cause))?);
    Ok(notes)
}

/// Returns the next piece of an incoming archive; `None` at its end.
async fn next(stream: &mut (impl AsyncRead + Unpin), notes: &mut Notes) -> Result<Option<Vec<u8>>> {
    loop {
        match frame::read(stream).await? {
            Some(Frame::Data(bytes)) => return Ok(Some(bytes)),
            Some(Frame::End) => return Ok(None),
            // Unreadable notes are no reason to lose the files.
            Some(Frame::Reply(Reply::Ok(value))) => {
                *notes = serde_json::from_value(value).unwrap_or_default();
            }
            Some(Frame::Reply(Reply::Error { code, message })) => {
                return Err(crate::words::said(&code, &message));
            }
            Some(other) => return Err(Error::Broken(format!("{} in an archive", other.kind()))),
            None => return Err(Error::Broken("the archive ended too early".to_owned())),
        }
    }
}

/// Runs a packer on a thread of its own and sends what it writes, without an end. Returns the
/// packer's result.
pub(crate) async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    pack: impl FnOnce(&mut dyn Write) -> io::Result<Notes> + Send + 'static,
) -> Result<io::Result<Notes>> {
    let (to, mut from_packer) = mpsc::channel(WAITING);
    let packing = tokio::task::spawn_blocking(move || {
        let mut pieces = Pieces { to, piece: Pieces::empty() };
        let notes = pack(&mut pieces)?;
        pieces.flush()?;
        Ok(notes)
    });
    while let Some(mut piece) = from_packer.recv().await {
        write_piece(stream, &mut piece).await?;
    }
    packing.await.map_err(|e| Error::Broken(e.to_string()))
}

/// Cuts what is written into pieces, each with space for a frame's head before it, and sends them
/// on.
struct Pieces {
    to: mpsc::Sender<Vec<u8>>,
    piece: Vec<u8>,
}

impl Pieces {
    fn empty() -> Vec<u8> {
        let mut piece = Vec::with_capacity(frame::HEAD + PIECE);
        piece.resize(frame::HEAD, 0);
        piece
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = frame::HEAD + PIECE - self.piece.len();
        let count = bytes.len().min(room);
        self.piece.extend_from_slice(&bytes[..count]);
        if count == room {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.len() > frame::HEAD {
            let piece = std::mem::replace(&mut self.piece, Pieces::empty());
            self.to.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(())
    }
}

/// An unpacker that runs on a thread of its own.
pub(crate) struct Unpacking {
    to: mpsc::Sender<Vec<u8>>,
    task: tokio::task::JoinHandle<io::Result<Notes>>,
}

impl Unpacking {
    pub(crate) fn begin(
        unpack: impl FnOnce(&mut dyn Read) -> io::Result<Notes> + Send + 'static,
    ) -> Unpacking {
        let (to, from) = mpsc::channel(WAITING);
        let mut arriving = Arriving { from, piece: Vec::new(), read: 0 };
        Unpacking { to, task: tokio::task::spawn_blocking(move || unpack(&mut arriving)) }
    }

    /// Passes bytes on; returns false once the unpacker has failed and takes no more.
    pub(crate) async fn take(&mut self, bytes: Vec<u8>) -> bool {
        self.to.send(bytes).await.is_ok()
    }

    /// Ends the archive and waits for the unpacker's result.
    pub(crate) async fn end(self) -> Result<io::Result<Notes>> {
        drop(self.to);
        self.task.await.map_err(|e| Error::Broken(e.to_string()))
    }
}

/// The pieces of an incoming archive, as a reader.
struct Arriving {
    from: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    read: usize,
}

impl Read for Arriving {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read == self.piece.len() {
            match self.from.blocking_recv() {
                Some(piece) => (self.piece, self.read) = (piece, 0),
                None => return Ok(0),
            }
        }
        let count = into.len().min(self.piece.len() - self.read);
        into[..count].copy_from_slice(&self.piece[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

fn here(doing: &'static str, cause: io::Error) -> Error {
    Error::Archive { doing, cause }
}
