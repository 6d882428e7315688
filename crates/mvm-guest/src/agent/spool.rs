//! The output of a kept program that the host has not acknowledged yet.
//!
//! The oldest output is in memory; what was ever sent stays there until it is acknowledged. While
//! no host is attached, output that no longer fits goes to a file on the guest's own disk. Both are
//! bounded: a program that prints more waits, as it would for a pipe that nobody reads.

use crate::frame::Frame;
use crate::protocol::Exit;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

/// How many bytes may be in memory.
const MEMORY: usize = 1 << 20;
/// How many bytes may be in the file; fewer if the disk has less space.
const DISK: u64 = 256 << 20;
/// The file may take 1/4 of the free space on the disk.
const SHARE: u64 = 4;
/// Bytes that each piece costs besides its content.
const COST: usize = 64;
/// The longest piece, in bytes.
const PIECE: usize = 32 * 1024;
/// Bytes before a piece in the file: its stream, and its length.
const HEAD: usize = 5;

/// The stream that output comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard output, or the terminal.
    Out,
    /// Standard error.
    Err,
}

impl Source {
    /// Returns a piece of this stream as a frame.
    pub fn frame(self, bytes: Vec<u8>) -> Frame {
        match self {
            Source::Out => Frame::Stdout(bytes),
            Source::Err => Frame::Stderr(bytes),
        }
    }
}

#[derive(Debug)]
struct Piece {
    source: Source,
    bytes: Vec<u8>,
}

/// The kept output of one program.
#[derive(Debug, Default)]
pub struct Spool {
    /// The offset of the first byte in memory: everything before was acknowledged.
    base: u64,
    memory: VecDeque<Piece>,
    held: usize,
    disk: Option<Overflow>,
    hosts: Hosts,
    /// Whether the last piece found no space.
    pub waits: bool,
    /// Whether a piece was dropped for want of space.
    pub lost: bool,
    /// How the program ended, set after all of its output; `None` while it runs.
    pub exit: Option<Exit>,
}

/// The hosts of a program.
#[derive(Debug, Default)]
struct Hosts {
    attached: usize,
    /// When the last one left; `None` if none was ever attached.
    left: Option<Instant>,
}

impl Spool {
    /// Stores a piece. Returns the piece while there is no space for it, to be tried again when
    /// something has changed. `dir` is the folder for the file.
    pub fn push(&mut self, source: Source, bytes: Vec<u8>, dir: &Path) -> Result<(), Vec<u8>> {
        let pushed = self.try_push(source, bytes, dir);
        self.waits = pushed.is_err();
        pushed
    }

    /// Counts a host that has attached.
    pub fn attach(&mut self) {
        self.hosts.attached += 1;
    }

    /// Counts a host that has left.
    pub fn detach(&mut self) {
        self.hosts.attached -= 1;
        self.hosts.left = Some(Instant::now());
    }

    /// Returns whether a host is attached.
    pub fn is_attached(&self) -> bool {
        self.hosts.attached > 0
    }

    /// Returns when the last host left, if output waits for one.
    pub fn abandoned(&self) -> Option<Instant> {
        self.hosts.left.filter(|_| self.waits && !self.is_attached())
    }

    /// Sets how the program ended. If output was lost, `words` are its last line.
    pub fn finish(&mut self, exit: Exit, words: &[u8]) {
        if self.lost {
            match self.disk.as_mut().filter(|disk| !disk.is_empty()) {
                // If the disk is full, the end is reported without it.
                Some(disk) => drop(disk.append(Source::Err, words)),
                // It is short, so it may exceed the bound.
                None => self.remember(Source::Err, words.to_vec()),
            }
        }
        (self.waits, self.exit) = (false, Some(exit));
    }

    fn try_push(&mut self, source: Source, bytes: Vec<u8>, dir: &Path) -> Result<(), Vec<u8>> {
        let behind = self.disk.as_ref().is_some_and(|disk| !disk.is_empty());
        if !behind && self.held < MEMORY {
            self.remember(source, bytes);
            return Ok(());
        }
        if self.is_attached() {
            return Err(bytes);
        }
        if self.disk.is_none() {
            // A disk on which no file can be made counts as full.
            self.disk = Overflow::new(dir).ok();
        }
        let appended = self.disk.as_mut().map(|disk| disk.append(source, &bytes));
        if matches!(appended, Some(Ok(()))) { Ok(()) } else { Err(bytes) }
    }

    fn remember(&mut self, source: Source, bytes: Vec<u8>) {
        match self.memory.back_mut() {
            Some(last) if last.source == source && last.bytes.len() + bytes.len() <= PIECE => {
                self.held += bytes.len();
                last.bytes.extend(bytes);
            }
            _ => {
                self.held += bytes.len() + COST;
                self.memory.push_back(Piece { source, bytes });
            }
        }
    }

    /// The offset after everything that can be sent now.
    fn end(&self) -> u64 {
        self.base + (self.held - COST * self.memory.len()) as u64
    }

    /// Returns where a host that has everything before `offset` continues: there, or where the kept
    /// output begins. `None` if the program has not printed that much.
    fn place(&self, offset: u64) -> Option<u64> {
        (offset <= self.end()).then(|| offset.max(self.base))
    }

    /// Takes up where a host that has everything before `offset` continues, and forgets what it has.
    pub fn take_up(&mut self, offset: u64) -> Option<u64> {
        let place = self.place(offset)?;
        self.acknowledge(offset);
        Some(place)
    }

    /// Forgets everything before `offset`, which the host has.
    pub fn acknowledge(&mut self, offset: u64) {
        while let Some(first) = self.memory.front_mut() {
            let length = first.bytes.len() as u64;
            if self.base + length > offset {
                let gone = offset.saturating_sub(self.base) as usize;
                first.bytes.drain(..gone);
                self.held -= gone;
                self.base += gone as u64;
                break;
            }
            self.base += length;
            self.held -= first.bytes.len() + COST;
            self.memory.pop_front();
        }
        while self.held < MEMORY
            && let Some(piece) = self.disk.as_mut().and_then(Overflow::take)
        {
            self.remember(piece.source, piece.bytes);
        }
    }

    /// Returns the piece at `offset`, or the rest of it from there; `None` if nothing is there yet.
    pub fn at(&self, offset: u64) -> Option<Frame> {
        let mut begins = self.base;
        for piece in &self.memory {
            let ends = begins + piece.bytes.len() as u64;
            if offset < ends {
                let bytes = piece.bytes[(offset.max(begins) - begins) as usize..].to_vec();
                return Some(piece.source.frame(bytes));
            }
            begins = ends;
        }
        None
    }

    /// Returns whether a host that has everything before `offset` has everything.
    pub fn is_at_end(&self, offset: u64) -> bool {
        offset >= self.end() && self.disk.as_ref().is_none_or(Overflow::is_empty)
    }
}

/// A queue of pieces in an unlinked file.
#[derive(Debug)]
struct Overflow {
    file: File,
    most: u64,
    read: u64,
    written: u64,
}

impl Overflow {
    fn new(dir: &Path) -> io::Result<Overflow> {
        std::fs::create_dir_all(dir)?;
        let drawn = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let path = dir.join(format!(".mvm-output-{}", drawn.trim()));
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        let free = rustix::fs::fstatvfs(&file)?;
        let most = DISK.min(free.f_bavail.saturating_mul(free.f_frsize) / SHARE);
        Ok(Overflow { file, most, read: 0, written: 0 })
    }

    fn is_empty(&self) -> bool {
        self.read == self.written
    }

    fn append(&mut self, source: Source, bytes: &[u8]) -> io::Result<()> {
        let length = (HEAD + bytes.len()) as u64;
        if self.written + length > self.most {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut piece = Vec::with_capacity(HEAD + bytes.len());
        piece.push(u8::from(source == Source::Err));
        piece.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        piece.extend_from_slice(bytes);
        self.file.write_all_at(&piece, self.written)?;
        self.written += length;
        Ok(())
    }

    fn take(&mut self) -> Option<Piece> {
        if self.is_empty() {
            return None;
        }
        let mut head = [0; HEAD];
        self.file.read_exact_at(&mut head, self.read).ok()?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, self.read + HEAD as u64).ok()?;
        self.read += (HEAD + length) as u64;
        if self.is_empty() {
            // Gives the space back to the guest. If that fails, the file keeps its length.
            let _ = self.file.set_len(0);
            (self.read, self.written) = (0, 0);
        }
        Some(Piece { source: if head[0] == 0 { Source::Out } else { Source::Err }, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A step in the life of a spool.
    #[derive(Clone, Debug)]
    enum Step {
        Print(bool, usize),
        /// The host reads on, and acknowledges this many bytes of it.
        Read(usize, u64),
        /// The host is killed: what it had read but not acknowledged is sent again.
        Killed,
        Attach(bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (any::<bool>(), 1usize..PIECE).prop_map(|(e, n)| Step::Print(e, n)),
            3 => (0usize..40, 0u64..300_000).prop_map(|(n, back)| Step::Read(n, back)),
            1 => Just(Step::Killed),
            2 => any::<bool>().prop_map(Step::Attach),
        ];
        prop::collection::vec(step, 0..160)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However the output is read, acknowledged and read again, what arrives is what was
        /// printed.
        #[test]
        fn nothing_is_lost_and_nothing_comes_twice(steps in steps()) {
            let dir = tempfile::tempdir().expect("directory");
            let mut spool = Spool::default();
            spool.attach();
            let (mut printed, mut kept, mut cursor) = (Vec::new(), Vec::new(), 0u64);
            let mut next = 0u8;
            let read = |spool: &Spool, cursor: &mut u64, kept: &mut Vec<(bool, u8)>| {
                let Some(frame) = spool.at(*cursor) else { return false };
                let (error, bytes) = match frame {
                    Frame::Stdout(bytes) => (false, bytes),
                    Frame::Stderr(bytes) => (true, bytes),
                    _ => unreachable!(),
                };
                kept.truncate(*cursor as usize);
                *cursor += bytes.len() as u64;
                kept.extend(bytes.into_iter().map(|byte| (error, byte)));
                true
            };
            for step in steps {
                match step {
                    Step::Print(error, count) => {
                        let bytes: Vec<u8> = (0..count).map(|_| { next = next.wrapping_add(1); next }).collect();
                        let source = if error { Source::Err } else { Source::Out };
                        match spool.push(source, bytes.clone(), dir.path()) {
                            Ok(()) => printed.extend(bytes.into_iter().map(|byte| (error, byte))),
                            Err(back) => prop_assert_eq!(back, bytes),
                        }
                    }
                    Step::Read(count, back) => {
                        for _ in 0..count {
                            read(&spool, &mut cursor, &mut kept);
                        }
                        spool.acknowledge(cursor.saturating_sub(back));
                    }
                    Step::Killed => {
                        cursor = spool.place(spool.base).expect("a place");
                    }
                    Step::Attach(attached) => spool.hosts.attached = usize::from(attached),
                }
                prop_assert!(spool.held <= MEMORY + PIECE + COST);
            }
            prop_assert_eq!(spool.place(spool.end() + 1), None);
            while !spool.is_at_end(cursor) {
                read(&spool, &mut cursor, &mut kept);
                spool.acknowledge(cursor);
            }
            prop_assert!(kept == printed);
            prop_assert!(spool.disk.as_ref().is_none_or(|disk| disk.file.metadata().expect("file").len() == 0));
        }
    }

    #[test]
    fn a_disk_that_takes_nothing_keeps_the_program_waiting() {
        let mut spool = Spool::default();
        let nowhere = Path::new("/proc/no/such");
        let mut taken = 0;
        while spool.push(Source::Out, vec![7; PIECE], nowhere).is_ok() {
            taken += PIECE as u64;
        }
        assert!((MEMORY as u64 - PIECE as u64..=(MEMORY + PIECE) as u64).contains(&taken));
        spool.acknowledge(taken);
        assert!(spool.push(Source::Out, vec![7; PIECE], nowhere).is_ok());
    }

    #[test]
    fn what_is_in_the_file_is_bounded() {
        let dir = tempfile::tempdir().expect("directory");
        let mut disk = Overflow::new(dir.path()).expect("file");
        disk.most = 100;
        assert!(disk.append(Source::Out, &[1; 60]).is_ok());
        assert!(disk.append(Source::Err, &[2; 60]).is_err());
        assert_eq!(disk.take().expect("a piece").bytes, [1; 60]);
        assert!(disk.append(Source::Err, &[2; 60]).is_ok());
        assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 0, "no name");
    }
}
