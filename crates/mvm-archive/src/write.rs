//! Writes the format: GNU headers, with PAX records for what these cannot hold.

use crate::format::{BLOCK, EXTENTS, XATTR, padding};
use crate::{Entry, Extent, Kind, Time, pax};
use std::io::{self, Write};
use tar::{EntryType, GnuExtSparseHeader, Header};

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Writes an archive, entry by entry.
pub struct Writer<W> {
    to: W,
    /// Bytes of the last entry that are still to be written, and how many zeros follow them.
    left: u64,
    padding: u64,
}

impl<W: Write> Writer<W> {
    /// Makes a writer of an archive that goes to `to`, in pieces that may be small.
    pub fn new(to: W) -> Self {
        Writer { to, left: 0, padding: 0 }
    }

    /// Begins an entry. For a file with data, exactly as many bytes must follow.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other("the last entry is not whole"));
        }
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.set_mode(entry.mode & 0o7777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(u64::try_from(entry.modified.seconds).unwrap_or(0));
        let mut name = entry.name.clone();
        let mut target: &[u8] = &[];
        let mut extents = Vec::new();
        let kind = match &entry.kind {
            Kind::File { size, data } => {
                let length = data.iter().map(|extent| extent.length).sum();
                header.set_size(length);
                (self.left, self.padding) = (length, padding(length));
                match entry.kind == Kind::file(*size) {
                    true => EntryType::Regular,
                    false => {
                        extents = up_to_the_end(*size, data)?;
                        set_extents(&mut header, *size, &extents);
                        EntryType::GNUSparse
                    }
                }
            }
            Kind::Folder => {
                name.push(b'/');
                EntryType::Directory
            }
            Kind::Symlink(to) => {
                target = to;
                EntryType::Symlink
            }
            Kind::HardLink(to) => {
                target = to;
                EntryType::Link
            }
            Kind::Other(what) => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, *what));
            }
        };
        header.set_entry_type(kind);
        // A name that the header cuts off is preceded by a header with all of it.
        self.long(EntryType::GNULongName, &name, header.as_old().name.len())?;
        self.long(EntryType::GNULongLink, target, header.as_old().linkname.len())?;
        fill(&mut header.as_old_mut().name, &name);
        fill(&mut header.as_old_mut().linkname, target);
        self.records(entry)?;
        self.block(&mut header)?;
        self.more_extents(&extents)
    }

    /// Writes bytes of the present entry.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| io::Error::other("more bytes than the entry has"))?;
        self.to.write_all(bytes)?;
        if self.left == 0 && self.padding > 0 {
            self.to.write_all(&ZEROS[..self.padding as usize])?;
            self.padding = 0;
        }
        Ok(())
    }

    /// Fills `length` bytes of the present entry with zeros.
    pub fn zeros(&mut self, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let piece = length.min(ZEROS.len() as u64);
            self.data(&ZEROS[..piece as usize])?;
            length -= piece;
        }
        Ok(())
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        if self.left > 0 {
            return Err(io::Error::other("the last entry is not whole"));
        }
        self.to.write_all(&ZEROS[..2 * BLOCK])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn block(&mut self, header: &mut Header) -> io::Result<()> {
        header.set_cksum();
        self.to.write_all(header.as_bytes())
    }

    /// Writes a header that says more about the next entry.
    fn beside(&mut self, kind: EntryType, name: &[u8], bytes: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        fill(&mut header.as_old_mut().name, name);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        header.set_entry_type(kind);
        self.block(&mut header)?;
        self.to.write_all(bytes)?;
        self.to.write_all(&ZEROS[..padding(bytes.len() as u64) as usize])
    }

    fn long(&mut self, kind: EntryType, name: &[u8], room: usize) -> io::Result<()> {
        if name.len() <= room {
            return Ok(());
        }
        let ended = [name, &[0]].concat();
        self.beside(kind, b"././@LongLink", &ended)
    }

    fn records(&mut self, entry: &Entry) -> io::Result<()> {
        let mut records = Vec::new();
        let Time { seconds, nanos } = entry.modified;
        if nanos > 0 || seconds < 0 {
            pax::put(&mut records, b"mtime", pax::show_time(entry.modified).as_bytes());
        }
        for xattr in &entry.xattrs {
            pax::put(&mut records, &[XATTR, &xattr.name].concat(), &xattr.value);
        }
        match records.is_empty() {
            true => Ok(()),
            false => self.beside(EntryType::XHeader, b"././@PaxHeader", &records),
        }
    }

    fn more_extents(&mut self, extents: &[Extent]) -> io::Result<()> {
        let mut pieces = extents.get(EXTENTS.0..).unwrap_or_default().chunks(EXTENTS.1).peekable();
        while let Some(piece) = pieces.next() {
            let mut more = GnuExtSparseHeader::new();
            for (slot, extent) in more.sparse_mut().iter_mut().zip(piece) {
                slot.set_offset(extent.offset);
                slot.set_length(extent.length);
            }
            more.set_is_extended(pieces.peek().is_some());
            self.to.write_all(more.as_bytes())?;
        }
        Ok(())
    }
}

/// Fills a name's field; a longer name is cut off.
fn fill(field: &mut [u8], bytes: &[u8]) {
    let count = field.len().min(bytes.len());
    field[..count].copy_from_slice(&bytes[..count]);
}

fn set_extents(header: &mut Header, size: u64, extents: &[Extent]) {
    if let Some(header) = header.as_gnu_mut() {
        header.set_real_size(size);
        header.set_is_extended(extents.len() > EXTENTS.0);
        for (slot, extent) in header.sparse.iter_mut().zip(extents) {
            slot.set_offset(extent.offset);
            slot.set_length(extent.length);
        }
    }
}

/// Returns the extents in the form that the format needs: in order, each but the last in whole
/// blocks, and with an empty one at the end of a file that ends with a hole.
fn up_to_the_end(size: u64, data: &[Extent]) -> io::Result<Vec<Extent>> {
    let (mut extents, mut end) = (data.to_vec(), 0);
    for (index, extent) in data.iter().enumerate() {
        let whole = extent.length.is_multiple_of(BLOCK as u64) || index + 1 == data.len();
        if extent.offset < end || !whole {
            return Err(io::Error::other("extents overlap, or are not of whole blocks"));
        }
        end = extent.offset.saturating_add(extent.length);
    }
    if end > size {
        return Err(io::Error::other("extents go past the end of their file"));
    }
    if end < size {
        extents.push(Extent { offset: size, length: 0 });
    }
    Ok(extents)
}
