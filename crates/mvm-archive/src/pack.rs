//! Packs files and folders that may change meanwhile.
//!
//! What an entry announces is read from the file after it was opened, and exactly that is sent. A
//! folder is read through its descriptor, so that moving or replacing it meanwhile cannot lead
//! elsewhere.

use crate::notes::shown;
use crate::tally::Tallied;
use crate::{Entry, Kind, Notes, Tally, Time, Writer, failed, sparse, xattr};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat,
};
use rustix::io::{Errno, pread};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// How often a name is tried again whose kind changes each time.
const TRIES: usize = 5;
const PIECE: usize = 256 * 1024;

/// Moments at which tests change what is packed.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Listed,
    Opened,
    Read,
}

/// Packs files and folders into one archive.
pub struct Packer<W> {
    to: Writer<Tallied<W>>,
    tally: Arc<Tally>,
    notes: Notes,
    /// Files with several names: the name that was archived first, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    piece: Vec<u8>,
    attributes: Vec<u8>,
    #[cfg(test)]
    pub(crate) hook: Option<Box<dyn FnMut(Step)>>,
}

/// A folder that is being packed.
struct Level {
    folder: OwnedFd,
    /// The names in the folder, the last first.
    names: Vec<(CString, FileType)>,
    /// Length of the folder's own name in the archive.
    length: usize,
}

/// The name of something in the archive, and its path on the disk for people.
struct EntryPath<'a> {
    name: Vec<u8>,
    source: &'a Path,
    /// The length of the part of `name` that stands for `source`.
    top: usize,
}

impl EntryPath<'_> {
    fn shown(&self) -> String {
        shown(&[self.source.as_os_str().as_bytes(), &self.name[self.top..]].concat())
    }

    fn failed(&self, cause: impl Into<io::Error>) -> io::Error {
        failed("read", &self.shown(), cause)
    }
}

impl<W: Write> Packer<W> {
    /// Makes a packer whose archive goes to `to`, in pieces that may be small.
    pub fn new(to: W) -> Self {
        Self::counted(to, Arc::default())
    }

    /// Like [`Packer::new`], and counts what it packs in `tally`.
    pub fn counted(to: W, tally: Arc<Tally>) -> Self {
        Packer {
            to: Writer::new(Tallied { stream: to, tally: tally.clone() }),
            tally,
            notes: Notes::default(),
            links: HashMap::new(),
            piece: vec![0; PIECE],
            attributes: Vec::new(),
            #[cfg(test)]
            hook: None,
        }
    }

    /// Adds a file, or a folder with everything in it, under this name. A symbolic link is added as
    /// a link. What vanishes meanwhile is left out; so is anything in a folder that cannot be
    /// archived, with a note. Errors: `source` does not exist or is a device, socket or FIFO, or
    /// something cannot be read.
    pub fn add(&mut self, source: &Path, name: &[u8]) -> io::Result<()> {
        let mut place = EntryPath { name: name.to_vec(), source, top: name.len() };
        let path = CString::new(source.as_os_str().as_bytes()).map_err(|e| place.failed(e))?;
        let stat = statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| place.failed(e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink) {
            let what = format!("it is {}: only files, folders and links are copied", word(kind));
            return Err(place.failed(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let mut levels: Vec<Level> =
            self.one(CWD, &path, FileType::Unknown, &place)?.into_iter().collect();
        while let Some(level) = levels.last_mut() {
            place.name.truncate(level.length);
            let Some((file, kind)) = level.names.pop() else {
                levels.pop();
                continue;
            };
            place.name.push(b'/');
            place.name.extend_from_slice(file.to_bytes());
            let below = self.one(level.folder.as_fd(), &file, kind, &place)?;
            levels.extend(below);
        }
        Ok(())
    }

    /// Ends the archive. Returns what could not be preserved.
    pub fn finish(self) -> io::Result<(W, Notes)> {
        Ok((self.to.finish()?.stream, self.notes))
    }

    #[cfg(test)]
    fn step(&mut self, step: Step) {
        if let Some(hook) = &mut self.hook {
            hook(step);
        }
    }

    /// Adds what has this name in the folder `at`; returns a folder whose contents must then be
    /// added.
    fn one(
        &mut self,
        at: BorrowedFd<'_>,
        file: &CStr,
        listed: FileType,
        place: &EntryPath<'_>,
    ) -> io::Result<Option<Level>> {
        self.tally.entry();
        #[cfg(test)]
        self.step(Step::Listed);
        // A name of a kind that would be left out is looked at first: it may be something else by
        // now.
        let mut kind = match listed {
            FileType::RegularFile | FileType::Directory | FileType::Symlink => listed,
            _ => FileType::Unknown,
        };
        for _ in 0..=TRIES {
            let done = match kind {
                FileType::RegularFile => self.file(at, file, place),
                FileType::Directory => self.folder(at, file, place),
                FileType::Symlink => self.symlink(at, file, place),
                FileType::Unknown => Ok(Done::Changed),
                other => {
                    self.notes.add(format!(
                        "{} was left out: it is {}",
                        place.shown(),
                        word(other)
                    ));
                    Ok(Done::Added)
                }
            };
            match done {
                Ok(Done::Added) => return Ok(None),
                Ok(Done::Folder(level)) => return Ok(Some(level)),
                // The name is of another kind than a moment ago.
                Ok(Done::Changed)
                | Err(Fault::Errno(
                    Errno::LOOP | Errno::NXIO | Errno::NOTDIR | Errno::ISDIR | Errno::INVAL,
                )) => {}
                Err(Fault::Errno(Errno::NOENT | Errno::STALE)) => return Ok(None),
                Err(Fault::Errno(error)) => return Err(place.failed(error)),
                Err(Fault::Io(error)) => return Err(error),
            }
            kind = match statat(at, file, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT | Errno::STALE) => return Ok(None),
                Err(error) => return Err(place.failed(error)),
            };
        }
        self.notes.add(format!("{} was left out: it never stayed what it was", place.shown()));
        Ok(None)
    }

    fn file(
        &mut self,
        at: BorrowedFd<'_>,
        file: &CStr,
        place: &EntryPath<'_>,
    ) -> Result<Done, Fault> {
        // If the name is a FIFO by now, opening it must not block.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = openat(at, file, flags | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&opened)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(Done::Changed);
        }
        #[cfg(test)]
        self.step(Step::Opened);
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&inode) {
            let mut entry = entry(place, &stat, Kind::HardLink(first.clone()));
            entry.modified.nanos = 0;
            self.to.entry(&entry)?;
            return Ok(Done::Added);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let data = sparse::extents(opened.as_fd(), &stat);
        let mut entry = entry(place, &stat, Kind::File { size, data: data.clone() });
        entry.xattrs = self.attributes(opened.as_fd(), place);
        self.to.entry(&entry)?;
        if stat.st_nlink > 1 {
            self.links.insert(inode, place.name.clone());
        }
        let (mut missing, mut seen) = (0, End::Unknown);
        for extent in &data {
            let (lacks, end) =
                self.extent(opened.as_fd(), extent.offset, extent.length, size, place)?;
            (missing, seen) = (missing + lacks, end);
        }
        let grown = || match seen {
            End::Unknown => grown(opened.as_fd(), size),
            End::Here => false,
            End::Beyond => true,
        };
        if missing > 0 {
            self.notes.add(format!(
                "{} shrank while it was copied: {missing} of its {size} bytes are zeros in the copy",
                place.shown()
            ));
        } else if grown() {
            self.notes.add(format!(
                "{} grew while it was copied: the copy has its first {size} bytes",
                place.shown()
            ));
        }
        Ok(Done::Added)
    }

    /// Sends a part of a file of `size` bytes. Returns how many of its bytes were missing, and
    /// became zeros, and what was seen of the file's end: for a small file, one read shows it.
    fn extent(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        length: u64,
        size: u64,
        place: &EntryPath<'_>,
    ) -> io::Result<(u64, End)> {
        let (mut sent, mut end) = (0, End::Unknown);
        while sent < length {
            #[cfg(test)]
            self.step(Step::Read);
            let most = usize::try_from(length - sent).unwrap_or(PIECE).min(PIECE);
            let last = most < PIECE && offset + sent + most as u64 == size;
            match pread(file, &mut self.piece[..most + usize::from(last)], offset + sent) {
                Ok(0) => {
                    self.to.zeros(length - sent)?;
                    return Ok((length - sent, end));
                }
                Ok(count) => {
                    if last && count >= most {
                        end = if count > most { End::Beyond } else { End::Here };
                    }
                    let count = count.min(most);
                    self.to.data(&self.piece[..count])?;
                    sent += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(place.failed(error)),
            }
        }
        Ok((0, end))
    }

    fn folder(
        &mut self,
        at: BorrowedFd<'_>,
        file: &CStr,
        place: &EntryPath<'_>,
    ) -> Result<Done, Fault> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(at, file, flags, Mode::empty())?;
        let stat = fstat(&folder)?;
        let mut entry = entry(place, &stat, Kind::Folder);
        entry.xattrs = self.attributes(folder.as_fd(), place);
        self.to.entry(&entry)?;
        let mut names = Vec::new();
        for found in Dir::read_from(&folder)? {
            let found = found?;
            let name = found.file_name();
            if ![c".", c".."].contains(&name) {
                names.push((name.to_owned(), found.file_type()));
            }
        }
        // Sorted, the same folder gives the same archive; names are popped from the end.
        names.sort_unstable_by(|(one, _), (other, _)| other.cmp(one));
        Ok(Done::Folder(Level { folder, names, length: place.name.len() }))
    }

    fn symlink(
        &mut self,
        at: BorrowedFd<'_>,
        file: &CStr,
        place: &EntryPath<'_>,
    ) -> Result<Done, Fault> {
        let stat = statat(at, file, AtFlags::SYMLINK_NOFOLLOW)?;
        let target = readlinkat(at, file, Vec::new())?.into_bytes();
        let mut entry = entry(place, &stat, Kind::Symlink(target));
        entry.mode = 0o777;
        self.to.entry(&entry)?;
        Ok(Done::Added)
    }

    /// Reads a file's extended attributes. If that fails, the file is copied without them.
    fn attributes(&mut self, file: BorrowedFd<'_>, place: &EntryPath<'_>) -> Vec<crate::Xattr> {
        xattr::read(file, &mut self.attributes).unwrap_or_else(|error| {
            let path = place.shown();
            self.notes.add(format!("{path} was copied without its extended attributes: {error}"));
            Vec::new()
        })
    }
}

/// What a read has shown of a file's end.
#[derive(Clone, Copy)]
enum End {
    Unknown,
    /// The file ends where the entry says.
    Here,
    /// The file is longer by now.
    Beyond,
}

/// The outcome of one try.
enum Done {
    Added,
    Folder(Level),
    Changed,
}

/// Why a try failed. An error of the system may mean that the name has vanished or changed its
/// kind.
enum Fault {
    Errno(Errno),
    Io(io::Error),
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Self {
        Fault::Errno(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Fault::Io(error)
    }
}

fn entry(place: &EntryPath<'_>, stat: &Stat, kind: Kind) -> Entry {
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let modified = Time { seconds: stat.st_mtime, nanos };
    let name = place.name.clone();
    Entry { name, kind, mode: stat.st_mode & 0o7777, modified, xattrs: Vec::new() }
}

fn grown(file: BorrowedFd<'_>, size: u64) -> bool {
    fstat(file).is_ok_and(|stat| u64::try_from(stat.st_size).is_ok_and(|now| now > size))
}

fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::Socket => "a socket",
        FileType::Fifo => "a FIFO",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "of a kind that is not known",
    }
}
