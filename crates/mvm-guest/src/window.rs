//! The window: a small disk of the machine, over which host and guest hand each other large pieces.
//!
//! A virtio-serial port moves a page at a time and interrupts the guest for each. A piece of the
//! window is one request of a disk: the sender writes it into a free slot, announces it over the
//! port in order with all other bytes, and may reuse the slot once the other side has read it. Each
//! direction has slots of its own. What does not go through the window goes through the port: the
//! window only makes copies faster.
//!
//! The host reads what the guest has written, and trusts none of it: slots and lengths are checked
//! here.

use parking_lot::{Mutex, MutexGuard};
use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokio::sync::Notify;

/// The virtio serial of the disk.
pub const SERIAL: &str = "window";
/// How many pieces may be under way in each direction.
pub const SLOTS: usize = 4;
/// The longest piece, in bytes.
pub const SLOT: usize = 256 * 1024;
/// The size of the disk, in bytes.
pub const SIZE: u64 = (2 * SLOTS * SLOT) as u64;
/// Shorter pieces, in bytes, go through the port.
pub(crate) const WORTHWHILE: usize = 32 * 1024;
/// The unit of requests, in bytes: a guest bypasses its page cache, which could hold a slot's
/// former content, and so must access whole blocks, in memory and on the disk (open(2), O_DIRECT).
const BLOCK: usize = 4096;
/// How many buffers are kept for further pieces.
const SPARE: usize = 2 * SLOTS;

/// Which end of the window this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Host,
    Guest,
}

impl End {
    /// Returns where a slot begins that this end writes, or reads.
    fn offset(self, slot: usize, writes: bool) -> u64 {
        let to_guest = (self == End::Host) == writes;
        let first = if to_guest { 0 } else { SLOTS };
        ((first + slot) * SLOT) as u64
    }
}

/// One end of a machine's window.
#[derive(Debug)]
pub struct Window {
    end: End,
    path: PathBuf,
    file: Mutex<Option<Arc<File>>>,
    /// The latest turn that has written: a write that an earlier turn left behind must not follow
    /// it.
    writing: Mutex<u64>,
    turns: AtomicU64,
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Window {
    /// Makes the host's end of the window on the file behind the disk, which is opened when first
    /// used.
    pub fn of_host(path: &Path) -> Arc<Window> {
        Window::new(End::Host, path, None)
    }

    /// Opens the guest's end of the window: the disk.
    pub fn of_guest(device: &Path) -> Result<Arc<Window>> {
        let file = open(End::Guest, device)?;
        Ok(Window::new(End::Guest, device, Some(file)))
    }

    fn new(end: End, path: &Path, file: Option<File>) -> Arc<Window> {
        let path = path.to_owned();
        Arc::new(Window {
            end,
            path,
            file: Mutex::new(file.map(Arc::new)),
            writing: Mutex::default(),
            turns: AtomicU64::new(1),
            spare: Mutex::default(),
        })
    }

    /// Begins to use the window for a session.
    pub(crate) fn turn(self: &Arc<Window>) -> Turn {
        let number = self.turns.fetch_add(1, Ordering::Relaxed);
        Turn { window: self.clone(), number, busy: AtomicU32::new(0), freed: Notify::new() }
    }

    /// Returns an empty piece.
    pub(crate) fn piece(&self) -> Piece {
        let room = locked(&self.spare).pop().unwrap_or_else(|| vec![0; SLOT + BLOCK]);
        let start = room.as_ptr().align_offset(BLOCK).min(BLOCK);
        Piece { room, start, end: start }
    }

    /// Keeps a piece's buffer for reuse.
    pub(crate) fn recycle(&self, piece: Piece) {
        let mut spare = locked(&self.spare);
        if spare.len() < SPARE && piece.room.len() == SLOT + BLOCK {
            spare.push(piece.room);
        }
    }

    fn file(&self) -> Result<Arc<File>> {
        let mut file = locked(&self.file);
        if let Some(file) = &*file {
            return Ok(file.clone());
        }
        let opened = Arc::new(open(self.end, &self.path)?);
        *file = Some(opened.clone());
        Ok(opened)
    }

    fn write(&self, turn: u64, slot: usize, piece: &mut Piece) -> Result<()> {
        let file = self.file()?;
        let mut latest = locked(&self.writing);
        if turn < *latest {
            return Err(Error::other("a later session has begun"));
        }
        if self.end == End::Host && *latest == 0 {
            // Another channel to the same machine may still be writing.
            rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        }
        *latest = turn;
        file.write_all_at(piece.blocks(), self.end.offset(slot, true))
    }

    pub(crate) fn read(&self, announced: Announced) -> Result<Piece> {
        let file = self.file()?;
        let mut piece = self.piece();
        piece.end = piece.start + announced.length;
        file.read_exact_at(piece.blocks(), self.end.offset(announced.slot, false))?;
        Ok(piece)
    }
}

fn open(end: End, path: &Path) -> Result<File> {
    let direct = if end == End::Guest { libc::O_DIRECT } else { 0 };
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | direct;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// One session's use of the window.
#[derive(Debug)]
pub(crate) struct Turn {
    window: Arc<Window>,
    number: u64,
    /// Bits of the slots that the other side has not read yet.
    busy: AtomicU32,
    freed: Notify,
}

impl Turn {
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Waits for a free slot and takes it.
    pub(crate) async fn slot(&self) -> usize {
        loop {
            let slot = self.busy.load(Ordering::Relaxed).trailing_ones() as usize;
            if slot < SLOTS {
                self.busy.fetch_or(1 << slot, Ordering::Relaxed);
                return slot;
            }
            self.freed.notified().await;
        }
    }

    /// Frees a slot that the other side has read; returns false if that slot was not in use.
    pub(crate) fn free(&self, payload: &[u8]) -> bool {
        let &[slot] = payload else { return false };
        let known = usize::from(slot) < SLOTS;
        let had = known && self.busy.fetch_and(!(1 << slot), Ordering::Relaxed) & (1 << slot) != 0;
        self.freed.notify_one();
        had
    }

    /// Writes a piece into a slot. Returns the piece, and whether writing succeeded.
    pub(crate) async fn write(&self, slot: usize, mut piece: Piece) -> Option<(Piece, bool)> {
        let (window, number) = (self.window.clone(), self.number);
        let writing = move || {
            let written = window.write(number, slot, &mut piece);
            (piece, written.is_ok())
        };
        tokio::task::spawn_blocking(writing).await.ok()
    }

    /// Reads an announced piece. The future does not borrow the turn, so it can be awaited besides
    /// other things.
    pub(crate) fn read(
        &self,
        announced: Announced,
    ) -> impl Future<Output = Option<Piece>> + Send + use<> {
        let window = self.window.clone();
        async move {
            let reading = tokio::task::spawn_blocking(move || window.read(announced));
            reading.await.ok()?.ok()
        }
    }
}

/// Slot and length of a piece, as announced over the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    pub(crate) slot: usize,
    pub(crate) length: usize,
}

impl Announced {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut payload = vec![self.slot as u8];
        payload.extend_from_slice(&(self.length as u32).to_be_bytes());
        payload
    }

    /// Decodes an announcement; `None` if the slot does not exist or is smaller than the length.
    pub(crate) fn decode(payload: &[u8]) -> Option<Announced> {
        let &[slot, a, b, c, d] = payload else { return None };
        let (slot, length) = (usize::from(slot), u32::from_be_bytes([a, b, c, d]) as usize);
        (slot < SLOTS && (1..=SLOT).contains(&length)).then_some(Announced { slot, length })
    }
}

/// Bytes under way; if the buffer came from a window, a disk can read and write it directly.
#[derive(Debug)]
pub(crate) struct Piece {
    room: Vec<u8>,
    start: usize,
    end: usize,
}

impl Piece {
    /// Makes a piece of bytes in a buffer of their own.
    pub(crate) fn of(room: Vec<u8>) -> Piece {
        let end = room.len();
        Piece { room, start: 0, end }
    }

    /// Returns the bytes of the piece.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.room[self.start..self.end]
    }

    /// Returns the free part of the buffer; call [`Piece::grow`] after filling it.
    pub(crate) fn rest(&mut self) -> &mut [u8] {
        let most = self.room.len().saturating_sub(BLOCK) + self.start;
        &mut self.room[self.end..most]
    }

    /// Adds the first `count` bytes of the free part to the piece.
    pub(crate) fn grow(&mut self, count: usize) {
        self.end += count;
    }

    /// Drops the first `count` bytes.
    pub(crate) fn advance(&mut self, count: usize) {
        self.start += count;
    }

    /// Appends to a piece whose bytes are in a buffer of their own.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.room.extend_from_slice(bytes);
        self.end = self.room.len();
    }

    /// Returns the piece in whole blocks. The bytes after its end are whatever the buffer held,
    /// which the other side has seen before or sent itself.
    fn blocks(&mut self) -> &mut [u8] {
        let length = (self.end - self.start).next_multiple_of(BLOCK);
        &mut self.room[self.start..self.start + length]
    }
}

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_announced_is_within_its_slot(payload in prop::collection::vec(any::<u8>(), 0..8)) {
            if let Some(announced) = Announced::decode(&payload) {
                prop_assert!(announced.slot < SLOTS && (1..=SLOT).contains(&announced.length));
                let end = End::Host.offset(announced.slot, false) + announced.length as u64;
                prop_assert!(end <= SIZE);
                prop_assert_eq!(announced.encode(), payload);
            }
        }

        #[test]
        fn what_is_announced_is_understood(slot in 0..SLOTS, length in 1..=SLOT) {
            let announced = Announced { slot, length };
            prop_assert_eq!(Announced::decode(&announced.encode()), Some(announced));
        }
    }

    /// Each end writes where the other reads, and no slot overlaps another.
    #[test]
    fn the_slots_of_both_directions_are_apart() {
        let mut offsets: Vec<u64> = (0..SLOTS)
            .flat_map(|slot| {
                assert_eq!(End::Host.offset(slot, true), End::Guest.offset(slot, false));
                assert_eq!(End::Host.offset(slot, false), End::Guest.offset(slot, true));
                [End::Host.offset(slot, true), End::Guest.offset(slot, true)]
            })
            .collect();
        offsets.sort_unstable();
        let apart = (0..2 * SLOTS as u64).map(|index| index * SLOT as u64);
        assert!(apart.eq(offsets));
    }

    /// A write that an earlier session left behind does not follow those of the next one.
    #[test]
    fn an_earlier_session_does_not_write_after_a_later_one() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("window");
        File::create(&path).and_then(|file| file.set_len(SIZE)).expect("window");
        let window = Window::of_host(&path);
        let (early, late) = (window.turn(), window.turn());
        let mut piece = window.piece();
        piece.rest()[..3].copy_from_slice(b"new");
        piece.grow(3);
        window.write(late.number, 0, &mut piece).expect("the later one");
        window.write(early.number, 0, &mut window.piece()).expect_err("the earlier one");
        let other = Window::of_host(&path);
        let turn = other.turn();
        other.write(turn.number, 0, &mut other.piece()).expect_err("another channel");
        drop((window, early, late));
        other.write(turn.number, 1, &mut other.piece()).expect("the next channel");
        let mut held = [0; 3];
        File::open(&path).and_then(|file| file.read_exact_at(&mut held, 0)).expect("read");
        assert_eq!(&held, b"new");
    }
}
