//! Counts how far a copy has progressed.

use std::io::{Read, Result, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what goes through an archive, for a display of progress.
#[derive(Debug, Default)]
pub struct Tally {
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl Tally {
    /// Returns the bytes of the archive so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of files, folders and links so far.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    pub(crate) fn entry(&self) {
        self.entries.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A reader or writer whose bytes are counted.
pub(crate) struct Tallied<S> {
    pub(crate) stream: S,
    pub(crate) tally: Arc<Tally>,
}

impl<S: Read> Read for Tallied<S> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let count = self.stream.read(into)?;
        self.tally.count(count);
        Ok(count)
    }
}

impl<S: Write> Write for Tallied<S> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = self.stream.write(bytes)?;
        self.tally.count(count);
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.stream.flush()
    }
}
