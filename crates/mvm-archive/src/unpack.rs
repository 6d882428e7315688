//! Unpacks an archive below a folder, whatever the archive says.

use crate::notes::shown;
use crate::root::Root;
use crate::rules::{Refusal, Taken, leads_out, out_of_the_folder};
use crate::tally::Tallied;
use crate::{Entry, Extent, Kind, Links, Notes, Reader, Tally, Time, Trust, Xattr, failed, xattr};
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, fstat, ftruncate, futimens,
    linkat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

const PIECE: usize = 256 * 1024;
/// Setuid and setgid, which run a file as its owner or group, and sticky, which is for folders that
/// others may write to.
const SPECIAL: u32 = 0o7000;
/// The permissions to read, write and run.
const PERMISSIONS: u32 = 0o777;
/// Write permission for anybody but the owner.
const WRITE_OF_OTHERS: u32 = 0o022;
/// The most folders that a name may lead through: each one is an open file.
const MOST_FOLDERS: usize = 256;
/// The most bytes that names of a stranger's folders may take until the end, when their times are
/// set.
const MOST_KEPT: u64 = 256 << 20;

/// Unpacks what comes from `from` below the folder `target`, which must exist. Files in the way are
/// replaced; folders stay. Returns what could not be preserved. After an error, what was unpacked
/// so far stays. If a stranger's archive breaks the rules, the error is a [`Refusal`].
pub fn unpack(from: impl Read, target: &Path, trust: Trust) -> io::Result<Notes> {
    unpack_counted(from, target, trust, Arc::default())
}

/// Like [`unpack`], and counts what it unpacks in `tally`.
pub fn unpack_counted(
    from: impl Read,
    target: &Path,
    trust: Trust,
    tally: Arc<Tally>,
) -> io::Result<Notes> {
    let from = Tallied { stream: from, tally: tally.clone() };
    let mut unpacker = Unpacker {
        root: Root::open(target, trust.rules().is_some())?,
        notes: Notes::default(),
        folders: Vec::new(),
        kept: 0,
        made: HashSet::new(),
        taken: Taken::default(),
        trust,
        piece: vec![0; PIECE],
    };
    let mut reader = Reader::new(BufReader::with_capacity(PIECE, from));
    while let Some(entry) = reader.entry()? {
        let name = entry.name.clone();
        tally.entry();
        unpacker.one(entry, &mut reader).map_err(|cause| match Refusal::of(&cause) {
            Some(_) => cause,
            None => io::Error::new(cause.kind(), format!("{}: {cause}", shown(&name))),
        })?;
    }
    // Two blocks of zeros end an archive, and padding may follow.
    reader.finish()?;
    unpacker.finish_folders()?;
    Ok(unpacker.notes)
}

struct Unpacker {
    root: Root,
    notes: Notes,
    /// Folders whose times and permissions are set at the end, since unpacking into them needs and
    /// changes these.
    folders: Vec<Entry>,
    /// Total length of their names, in bytes.
    kept: u64,
    /// Files that a stranger's archive has made, by device and inode: only these may be the target
    /// of its hard links.
    made: HashSet<(u64, u64)>,
    taken: Taken,
    trust: Trust,
    piece: Vec<u8>,
}

impl Unpacker {
    fn one(&mut self, entry: Entry, bytes: &mut Reader<impl Read>) -> io::Result<()> {
        if let Some(rules) = self.trust.rules() {
            self.taken.count(rules, weight(&entry, bytes.left()))?;
        }
        let parts = parts(&entry.name)?;
        let Some((last, above)) = parts.split_last() else {
            // The entry is the target itself.
            return Ok(());
        };
        match &entry.kind {
            Kind::Folder => {
                self.root.folder(&parts, true)?;
                self.keep(entry)
            }
            Kind::File { size, data } => self.file(above, last, (*size, data), &entry, bytes),
            Kind::Symlink(target) => match self.trust.rules() {
                Some(rules) if rules.links != Links::Keep && leads_out(target, above.len()) => {
                    self.leave_out(out_of_the_folder("symbolic link", &entry.name, target))
                }
                _ => self.symlink(above, last, target, entry.modified),
            },
            Kind::HardLink(first) if self.trust == Trust::Full => {
                self.hard_link(above, last, first)
            }
            Kind::HardLink(first) => match self.made_here(first) {
                true => self.hard_link(above, last, first),
                false => self.leave_out(out_of_the_folder("hard link", &entry.name, first)),
            },
            Kind::Other(what) => {
                self.notes.add(format!("{} was left out: it is {what}", shown(&entry.name)));
                Ok(())
            }
        }
    }

    /// Keeps a folder for the end. A stranger's attributes are set at once: they might take
    /// gigabytes.
    fn keep(&mut self, mut entry: Entry) -> io::Result<()> {
        if self.trust != Trust::Full {
            let folder = self.root.folder(&parts(&entry.name)?, false)?.try_clone_to_owned()?;
            let xattrs = std::mem::take(&mut entry.xattrs);
            self.attributes(folder.as_fd(), &entry, &xattrs);
            self.kept += entry.name.len() as u64;
            if self.kept > MOST_KEPT {
                return Err(Refusal::TooLarge(MOST_KEPT).into());
            }
        }
        self.folders.push(entry);
        Ok(())
    }

    /// Leaves out a link that leads out, or ends the copy.
    fn leave_out(&mut self, what: String) -> io::Result<()> {
        match self.trust.rules().map(|rules| rules.links) {
            Some(Links::Refuse) => Err(Refusal::Link(what).into()),
            _ => {
                self.notes.add(format!("left out: {what}"));
                Ok(())
            }
        }
    }

    /// Returns whether the name is a file that the archive itself has made.
    fn made_here(&mut self, first: &[u8]) -> bool {
        let Ok(parts) = parts(first) else { return false };
        let Some((last, above)) = parts.split_last() else { return false };
        let Ok(folder) = self.root.folder(above, false) else { return false };
        let found = statat(folder, *last, AtFlags::SYMLINK_NOFOLLOW);
        found.is_ok_and(|stat| self.made.contains(&(stat.st_dev, stat.st_ino)))
    }

    fn file(
        &mut self,
        above: &[&[u8]],
        name: &[u8],
        (size, data): (u64, &[Extent]),
        entry: &Entry,
        bytes: &mut Reader<impl Read>,
    ) -> io::Result<()> {
        let mode = self.allowed(entry);
        // With an access list to come, the file must not be open to others before the list is set.
        let first = if entry.xattrs.is_empty() { mode & PERMISSIONS } else { 0o600 };
        let file = create(self.root.folder(above, true)?, name, first)?;
        let stat = fstat(&file)?;
        if self.trust != Trust::Full {
            self.made.insert((stat.st_dev, stat.st_ino));
        }
        for extent in data {
            self.extent(file.as_fd(), *extent, bytes)?;
        }
        if data.last().map_or(0, |extent| extent.offset + extent.length) < size {
            ftruncate(&file, size)?;
        }
        self.attributes(file.as_fd(), entry, &entry.xattrs);
        // Usually the file has its mode already: one call less per file is noticeable. But setting
        // an access list has changed the mode, and writing has removed setuid.
        if stat.st_mode & 0o7777 != mode || !entry.xattrs.is_empty() || mode & SPECIAL != 0 {
            fchmod(&file, Mode::from_raw_mode(mode))?;
        }
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
            // The file system cannot link, so the file is copied.
            Err(Errno::PERM | Errno::XDEV | Errno::MLINK | Errno::NOTSUP) => {
                copy(&from, last, at, name)
            }
            Err(error) => Err(failed("link it to", &shown(first), error)),
            Ok(()) => Ok(()),
        }
    }

    /// Sets extended attributes. Those that this machine refuses are only noted.
    fn attributes(&mut self, file: BorrowedFd<'_>, entry: &Entry, all: &[Xattr]) {
        for one in all {
            let (path, key) = (shown(&entry.name), shown(&one.name));
            if self.trust != Trust::Full && xattr::is_privilege(&one.name) {
                self.notes.add(format!("{path} was copied without {key}: it gives rights"));
            } else if let Err(error) = xattr::set(file, one) {
                self.notes.add(format!("{path} was copied without {key}: {error}"));
            }
        }
    }

    /// Returns the permissions that a file or folder gets. Write permission for others is removed
    /// silently, as by a umask.
    fn allowed(&mut self, entry: &Entry) -> u32 {
        if self.trust == Trust::Full {
            return entry.mode;
        }
        if entry.mode & SPECIAL != 0 {
            let bits = [(0o4000, "setuid"), (0o2000, "setgid"), (0o1000, "sticky")];
            let bits = bits.iter().filter(|(bit, _)| entry.mode & bit != 0);
            let bits = bits.map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
            let path = shown(&entry.name);
            self.notes.add(format!("{path} was copied without these bits: {bits}"));
        }
        entry.mode & !(SPECIAL | WRITE_OF_OTHERS)
    }

    fn finish_folders(&mut self) -> io::Result<()> {
        // Folders inside others come first: they were named later.
        while let Some(entry) = self.folders.pop() {
            let what = shown(&entry.name);
            let folder = self.root.folder(&parts(&entry.name)?, false);
            let folder = folder.and_then(|folder| folder.try_clone_to_owned());
            let folder = folder.map_err(|e| failed("finish", &what, e))?;
            self.attributes(folder.as_fd(), &entry, &entry.xattrs);
            let mode = self.allowed(&entry);
            let set = fchmod(&folder, Mode::from_raw_mode(mode));
            let set = set.and_then(|()| futimens(&folder, &times(entry.modified)));
            set.map_err(|e| failed("set times and permissions of", &what, e))?;
        }
        Ok(())
    }
}

/// Returns what an entry counts for: its names, attributes and the `data` bytes that follow its header. These count for
/// every kind of entry, since they have to be read even where they are of no use.
fn weight(entry: &Entry, data: u64) -> u64 {
    let target = match &entry.kind {
        Kind::Symlink(target) | Kind::HardLink(target) => target.len(),
        Kind::File { .. } | Kind::Folder | Kind::Other(_) => 0,
    };
    let beside: usize = entry.xattrs.iter().map(|one| one.name.len() + one.value.len()).sum();
    data.saturating_add((entry.name.len() + target + beside) as u64)
}

/// Returns the components of a name. A name with `..` is an error.
fn parts(name: &[u8]) -> io::Result<Vec<&[u8]>> {
    let parts = name.split(|byte| *byte == b'/');
    let parts: Vec<&[u8]> = parts.filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.len() > MOST_FOLDERS {
        return Err(named(&format!("more than {MOST_FOLDERS} folders")));
    }
    match parts.iter().any(|part| *part == b".." || part.contains(&0)) {
        true => Err(named("..")),
        false => Ok(parts),
    }
}

fn named(what: &str) -> io::Error {
    let what = format!("the archive is broken: a name with {what} in it");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Makes a new file. An existing one is removed rather than written to, since its other names would
/// see that.
fn create(at: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(replace(at, name, || openat(at, name, flags, Mode::from_raw_mode(mode)))?)
}

/// Makes something, replacing a file or link that is in the way.
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
    let stat = fstat(&source)?;
    let made = create(at, name, 0o600)?;
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
