//! Reads the format: what [`crate::Writer`] writes, and other archives of GNU tar and of pax(1).

use crate::format::{BLOCK, MOST_AFTER, MOST_BESIDE, MOST_EXTENTS, MOST_HEADERS, XATTR, padding};
use crate::{Entry, Extent, Kind, Time, Xattr, pax};
use std::io::{self, Read};
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

/// Reads an archive, entry by entry. The bytes may be anything: whatever is not an archive is an
/// error.
pub struct Reader<R> {
    from: R,
    /// Bytes of the last entry that were not read yet, and how many bytes after them fill their
    /// block.
    left: u64,
    padding: u64,
    begun: bool,
}

/// What headers before an entry's own say of it.
#[derive(Default)]
struct Beside {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<Time>,
    xattrs: Vec<Xattr>,
}

impl<R: Read> Reader<R> {
    /// Makes a reader of the archive that comes from `from`, which should be buffered.
    pub fn new(from: R) -> Self {
        Reader { from, left: 0, padding: 0, begun: false }
    }

    /// Returns the next entry; `None` at the end. The unread rest of the last one is skipped.
    pub fn entry(&mut self) -> io::Result<Option<Entry>> {
        let mut beside = Beside::default();
        let mut headers = 0;
        loop {
            self.pass()?;
            let mut block = [0; BLOCK];
            if !self.block(&mut block)? {
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            headers += 1;
            if headers > MOST_HEADERS {
                return Err(broken("too many headers before an entry"));
            }
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => beside.name = Some(self.text(header)?),
                EntryType::GNULongLink => beside.target = Some(self.text(header)?),
                // Each may have attributes that are kept, so a second one would double the bound.
                EntryType::XHeader if !beside.xattrs.is_empty() => {
                    return Err(broken("two headers with attributes before an entry"));
                }
                EntryType::XHeader => {
                    let bytes = self.beside(header)?;
                    beside.read(&bytes)?;
                }
                // A global header holds nothing that is needed here.
                EntryType::XGlobalHeader => drop(self.beside(header)?),
                _ => return self.begin(header, beside).map(Some),
            }
        }
    }

    /// Reads bytes of the entry; returns 0 when none are left. A file's holes are not among them.
    pub fn data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.from.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(cut());
        }
        self.left -= count as u64;
        Ok(count)
    }

    /// Returns how many bytes of the entry were not read yet, whatever kind it is.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Reads what may follow the archive's end, and returns the source.
    pub fn finish(mut self) -> io::Result<R> {
        // One byte more than is allowed tells a source that goes on from one that ends there.
        let rest = io::copy(&mut (&mut self.from).take(MOST_AFTER + 1), &mut io::sink())?;
        if rest > MOST_AFTER {
            return Err(broken("bytes after its end"));
        }
        Ok(self.from)
    }

    fn begin(&mut self, header: &Header, beside: Beside) -> io::Result<Entry> {
        let stored = match beside.size {
            Some(size) => size,
            None => header.entry_size().map_err(|_| broken("a size"))?,
        };
        let old = header.as_ustar().is_none() && header.as_gnu().is_none();
        let target = || match &beside.target {
            Some(target) => target.clone(),
            None => header.link_name_bytes().unwrap_or_default().into_owned(),
        };
        let mut name = match &beside.name {
            Some(name) => name.clone(),
            None => header.path_bytes().into_owned(),
        };
        let slash = name.ends_with(b"/");
        while name.len() > 1 && name.ends_with(b"/") {
            name.pop();
        }
        (self.left, self.padding) = (stored, padding(stored));
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Folder,
            EntryType::Regular | EntryType::Continuous if slash && old => Kind::Folder,
            EntryType::Regular | EntryType::Continuous => Kind::file(stored),
            EntryType::GNUSparse => self.sparse(header, stored)?,
            EntryType::Symlink => Kind::Symlink(target()),
            EntryType::Link => Kind::HardLink(target()),
            EntryType::Fifo => Kind::Other("a FIFO"),
            EntryType::Char | EntryType::Block => Kind::Other("a device"),
            _ => Kind::Other("of a kind that is not known"),
        };
        let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        let modified = beside.modified.unwrap_or(Time { seconds, nanos: 0 });
        let mode = header.mode().map_err(|_| broken("permissions"))? & 0o7777;
        Ok(Entry { name, kind, mode, modified, xattrs: beside.xattrs })
    }

    fn sparse(&mut self, header: &Header, stored: u64) -> io::Result<Kind> {
        let header = header.as_gnu().ok_or_else(|| broken("a sparse file without its header"))?;
        let mut data = Vec::new();
        take_extents(&mut data, &header.sparse)?;
        let mut extended = header.is_extended();
        while extended {
            let mut more = GnuExtSparseHeader::new();
            self.from.read_exact(more.as_mut_bytes()).map_err(early)?;
            take_extents(&mut data, more.sparse())?;
            extended = more.is_extended();
            if data.len() > MOST_EXTENTS + 1 {
                return Err(broken("a file with too many holes"));
            }
        }
        let size = header.real_size()?;
        let mut end = 0;
        for extent in &data {
            if extent.offset < end {
                return Err(broken("a sparse file whose parts overlap"));
            }
            end = extent.offset.checked_add(extent.length).ok_or_else(|| broken("a size"))?;
        }
        data.retain(|extent| extent.length > 0);
        // The parts are in order and do not overflow, so the sum is at most the end.
        let sum: u64 = data.iter().map(|extent| extent.length).sum();
        if end > size || sum != stored {
            return Err(broken("a sparse file whose parts are not its size"));
        }
        Ok(Kind::File { size, data })
    }

    /// Skips the rest of the last entry.
    fn pass(&mut self) -> io::Result<()> {
        let rest = self.left.checked_add(self.padding).ok_or_else(|| broken("a size"))?;
        if rest > 0 && io::copy(&mut (&mut self.from).take(rest), &mut io::sink())? < rest {
            return Err(cut());
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// Reads a header's block; returns false at the end of the archive, which is a block of zeros.
    /// A source without any byte is an empty archive.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let first = loop {
            match self.from.read(block) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome?,
            }
        };
        if first == 0 && !self.begun {
            return Ok(false);
        }
        self.begun = true;
        self.from.read_exact(&mut block[first..]).map_err(early)?;
        Ok(first > 0 && block.iter().any(|byte| *byte != 0))
    }

    /// Reads the content of a header that precedes an entry's own.
    fn beside(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let size = header.entry_size().map_err(|_| broken("a size"))?;
        if size > MOST_BESIDE {
            return Err(broken("a header that is too long"));
        }
        let mut bytes = vec![0; size as usize];
        self.from.read_exact(&mut bytes).map_err(early)?;
        self.padding = padding(size);
        Ok(bytes)
    }

    fn text(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let mut bytes = self.beside(header)?;
        bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
        Ok(bytes)
    }
}

impl Beside {
    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        for (key, value) in pax::records(bytes)? {
            match key {
                b"path" => _ = self.name.get_or_insert_with(|| value.to_vec()),
                b"linkpath" => _ = self.target.get_or_insert_with(|| value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    self.size = Some(size.ok_or_else(|| broken("a size"))?);
                }
                b"mtime" => self.modified = pax::parse_time(value),
                key if key.starts_with(b"GNU.sparse.") => {
                    let what = "a sparse file in the PAX format, which is not read: make it with \
                                tar --format=gnu";
                    return Err(broken(what));
                }
                key => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.xattrs.push(Xattr { name: name.to_vec(), value: value.to_vec() });
                    }
                }
            }
        }
        Ok(())
    }
}

fn take_extents(to: &mut Vec<Extent>, from: &[GnuSparseHeader]) -> io::Result<()> {
    for extent in from.iter().filter(|extent| !extent.is_empty()) {
        to.push(Extent { offset: extent.offset()?, length: extent.length()? });
    }
    Ok(())
}

fn check_sum(header: &Header) -> io::Result<()> {
    let bytes = header.as_bytes();
    // The checksum's own field counts as blanks.
    let around = bytes[..148].iter().chain(&bytes[156..]);
    let sum = around.map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
    match header.cksum() {
        Ok(said) if said == sum => Ok(()),
        _ => Err(broken("a header whose checksum is wrong")),
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive is broken: {what}"))
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle of an entry")
}

fn early(cause: io::Error) -> io::Error {
    if cause.kind() == io::ErrorKind::UnexpectedEof { cut() } else { cause }
}
