//! Unpacks an archive below a folder, whatever it says.

use crate::notes::shown;
use crate::root::Root;
use crate::{Entry, Extent, Kind, Notes, Reader, Time, Xattr, failed, xattr};
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, ftruncate, futimens, linkat,
    openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

const PIECE: usize = 256 * 1024;
/// Setuid and setgid: who runs the file is its owner, or in its group.
const PRIVILEGES: u32 = 0o6000;

/// How far whoever packed the archive is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A guest takes from its host what it sends.
    Full,
    /// A host takes no file from a guest that gives rights: setuid and setgid bits and capabilities
    /// are left out.
    Stranger,
}

/// Unpacks what comes from `from` below the folder `target`, which is there. Files that are in the way
/// are replaced; folders stay. Gives what could not be kept. On an error, what was unpacked so far stays.
pub fn unpack(from: impl Read, target: &Path, trust: Trust) -> io::Result<Notes> {
    let mut unpacker = Unpacker {
        root: Root::open(target)?,
        notes: Notes::default(),
        folders: Vec::new(),
        trust,
        piece: vec![0; PIECE],
    };
    let mut reader = Reader::new(BufReader::with_capacity(PIECE, from));
    while let Some(entry) = reader.entry()? {
        let name = entry.name.clone();
        unpacker
            .one(entry, &mut reader)
            .map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", shown(&name))))?;
    }
    // Two blocks of zeros end an archive; it may be padded further.
    reader.finish()?;
    unpacker.finish_folders()?;
    Ok(unpacker.notes)
}

struct Unpacker {
    root: Root,
    notes: Notes,
    /// Folders get their times and permissions at the end: unpacking into them needs and changes these.
    folders: Vec<Entry>,
    trust: Trust,
    piece: Vec<u8>,
}

impl Unpacker {
    fn one(&mut self, entry: Entry, bytes: &mut Reader<impl Read>) -> io::Result<()> {
        let parts = parts(&entry.name)?;
        let Some((last, above)) = parts.split_last() else {
            // The target itself.
            return Ok(());
        };
        match &entry.kind {
            Kind::Folder => {
                self.root.folder(&parts, true)?;
                self.folders.push(entry);
                Ok(())
            }
            Kind::File { size, data } => self.file(above, last, (*size, data), &entry, bytes),
            Kind::Symlink(target) => self.symlink(above, last, target, entry.modified),
            Kind::HardLink(first) => self.hard_link(above, last, first),
            Kind::Other(what) => {
                self.notes.add(format!("{} was left out: it is {what}", shown(&entry.name)));
                Ok(())
            }
        }
    }

    fn file(
        &mut self,
        above: &[&[u8]],
        name: &[u8],
        (size, data): (u64, &[Extent]),
        entry: &Entry,
        bytes: &mut Reader<impl Read>,
    ) -> io::Result<()> {
        let file = create(self.root.folder(above, true)?, name)?;
        for extent in data {
            self.extent(file.as_fd(), *extent, bytes)?;
        }
        if data.last().map_or(0, |extent| extent.offset + extent.length) < size {
            ftruncate(&file, size)?;
        }
        self.attributes(file.as_fd(), entry, &entry.xattrs);
        let mode = self.allowed(entry);
        fchmod(&file, Mode::from_raw_mode(mode))?;
        futimens(&file, &times(entry.modified))?;
        Ok(())
    }

    fn extent(
        &mut self,
        file: BorrowedFd<'_>,
        extent: Extent,
        bytes: &mut Reader<impl Read>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < extent.length {
            let most = usize::try_from(extent.length - done).unwrap_or(PIECE).min(PIECE);
            let count = bytes.data(&mut self.piece[..most])?;
            let mut piece = &self.piece[..count];
            while !piece.is_empty() {
                let written = match pwrite(file, piece, extent.offset + done) {
                    Err(Errno::INTR) => continue,
                    outcome => outcome?,
                };
                done += written as u64;
                piece = &piece[written..];
            }
        }
        Ok(())
    }

    fn symlink(
        &mut self,
        above: &[&[u8]],
        name: &[u8],
        target: &[u8],
        modified: Time,
    ) -> io::Result<()> {
        let at = self.root.folder(above, true)?;
        replace(at, name, || symlinkat(target, at, name))?;
        utimensat(at, name, &times(modified), AtFlags::SYMLINK_NOFOLLOW)?;
        let made = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.root.made_link((made.st_dev, made.st_ino));
        Ok(())
    }

    fn hard_link(&mut self, above: &[&[u8]], name: &[u8], first: &[u8]) -> io::Result<()> {
        let parts = parts(first)?;
        let (last, first_above) = parts.split_last().ok_or_else(|| named("nothing"))?;
        let from = self.root.folder(first_above, false)?.try_clone_to_owned()?;
        let at = self.root.folder(above, true)?;
        let same = above == first_above && name == *last;
        if same {
            return Ok(());
        }
        let link = || linkat(&from, *last, at, name, AtFlags::empty());
        match replace(at, name, link) {
            // File systems that cannot: another copy has to do.
            Err(Errno::PERM | Errno::XDEV | Errno::MLINK | Errno::NOTSUP) => {
                copy(&from, last, at, name)
            }
            Err(error) => Err(failed("link it to", &shown(first), error)),
            Ok(()) => Ok(()),
        }
    }

    /// Sets extended attributes. Those that this machine does not take are no reason to fail.
    fn attributes(&mut self, file: BorrowedFd<'_>, entry: &Entry, all: &[Xattr]) {
        for one in all {
            let (path, key) = (shown(&entry.name), shown(&one.name));
            if self.trust == Trust::Stranger && xattr::is_privilege(&one.name) {
                self.notes.add(format!("{path} was copied without {key}: it gives rights"));
            } else if let Err(error) = xattr::set(file, one) {
                self.notes.add(format!("{path} was copied without {key}: {error}"));
            }
        }
    }

    /// The permissions that a file gets.
    fn allowed(&mut self, entry: &Entry) -> u32 {
        if self.trust == Trust::Full || entry.mode & PRIVILEGES == 0 {
            return entry.mode;
        }
        let path = shown(&entry.name);
        self.notes.add(format!("{path} was copied without its setuid and setgid bits"));
        entry.mode & !PRIVILEGES
    }

    fn finish_folders(&mut self) -> io::Result<()> {
        // Those within others first: they were named later.
        while let Some(entry) = self.folders.pop() {
            let what = shown(&entry.name);
            let folder = self.root.folder(&parts(&entry.name)?, false);
            let folder = folder.and_then(|folder| folder.try_clone_to_owned());
            let folder = folder.map_err(|e| failed("finish", &what, e))?;
            self.attributes(folder.as_fd(), &entry, &entry.xattrs);
            let set = fchmod(&folder, Mode::from_raw_mode(entry.mode));
            let set = set.and_then(|()| futimens(&folder, &times(entry.modified)));
            set.map_err(|e| failed("set times and permissions of", &what, e))?;
        }
        Ok(())
    }
}

/// The components of a name. `..` is never one.
fn parts(name: &[u8]) -> io::Result<Vec<&[u8]>> {
    let parts = name.split(|byte| *byte == b'/');
    let parts: Vec<&[u8]> = parts.filter(|part| !part.is_empty() && *part != b".").collect();
    match parts.iter().any(|part| *part == b".." || part.contains(&0)) {
        true => Err(named("..")),
        false => Ok(parts),
    }
}

fn named(what: &str) -> io::Error {
    let what = format!("the archive is broken: a name with {what} in it");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A new file. One that is there already is not written to, which its other names would see: it goes.
fn create(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(replace(at, name, || openat(at, name, flags, Mode::from_raw_mode(0o600)))?)
}

/// Makes something, in place of a file or link that is in the way.
fn replace<T>(
    at: BorrowedFd<'_>,
    name: &[u8],
    make: impl Fn() -> Result<T, Errno>,
) -> Result<T, Errno> {
    match make() {
        Err(Errno::EXIST) => match unlinkat(at, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => make(),
            Err(error) => Err(error),
        },
        outcome => outcome,
    }
}

fn copy(from: &OwnedFd, first: &[u8], at: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = openat(from, first, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&source)?;
    let made = create(at, name)?;
    io::copy(&mut File::from(source), &mut File::from(made.try_clone()?))?;
    fchmod(&made, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    futimens(&made, &times(Time { seconds: stat.st_mtime, nanos }))?;
    Ok(())
}

fn times(modified: Time) -> Timestamps {
    let last_modification =
        Timespec { tv_sec: modified.seconds, tv_nsec: i64::from(modified.nanos) };
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Timestamps { last_access, last_modification }
}
