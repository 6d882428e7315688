//! The folder that an archive is unpacked to: names are resolved from it, and never lead out of it.

use crate::failed;
use crate::notes::shown;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A folder, and the folders below it that lead to the last resolved name.
pub struct Root {
    folder: OwnedFd,
    path: PathBuf,
    /// Whether no link is followed, not even one that existed before.
    strict: bool,
    /// Symbolic links that the archive has made, by device and inode: no name may lead through
    /// them.
    links: HashSet<(u64, u64)>,
    open: Vec<(Vec<u8>, OwnedFd)>,
}

impl Root {
    /// Opens the folder `path`. With `strict`, no name leads through any symbolic link below it: an
    /// existing one may come from an earlier archive.
    pub fn open(path: &Path, strict: bool) -> io::Result<Root> {
        let shown = path.display().to_string();
        let folder = openat(rustix::fs::CWD, path, FOLDER, Mode::empty());
        let folder = folder.map_err(|e| failed("open", &shown, e))?;
        let path = whereabouts(folder.as_fd()).map_err(|e| failed("open", &shown, e))?;
        Ok(Root { folder, path, strict, links: HashSet::new(), open: Vec::new() })
    }

    /// Returns the folder with this name; with `make`, missing folders on the way are made.
    pub fn folder(&mut self, parts: &[&[u8]], make: bool) -> io::Result<BorrowedFd<'_>> {
        let known = self.open.iter().zip(parts).take_while(|(open, part)| open.0 == **part).count();
        self.open.truncate(known);
        for (index, part) in parts.iter().enumerate().skip(known) {
            let at = self.open.last().map_or(self.folder.as_fd(), |(_, folder)| folder.as_fd());
            let below = self.below(at, part, make);
            let below =
                below.map_err(|e| failed("open", &shown(&parts[..=index].join(&b'/')), e))?;
            self.open.push((part.to_vec(), below));
        }
        Ok(self.open.last().map_or(self.folder.as_fd(), |(_, folder)| folder.as_fd()))
    }

    /// Remembers a symbolic link that the archive has made.
    pub fn made_link(&mut self, link: (u64, u64)) {
        self.links.insert(link);
    }

    fn below(&self, at: BorrowedFd<'_>, name: &[u8], make: bool) -> io::Result<OwnedFd> {
        let open = || openat(at, name, FOLDER | OFlags::NOFOLLOW, Mode::empty());
        match open() {
            Err(Errno::NOENT) if make => {
                match mkdirat(at, name, Mode::from_raw_mode(0o777)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open().map_err(io::Error::from)
            }
            Err(Errno::LOOP | Errno::NOTDIR) => self.through_link(at, name),
            outcome => Ok(outcome?),
        }
    }

    /// Follows a symbolic link that existed before, provided that it stays inside the root.
    fn through_link(&self, at: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
        let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Err(Errno::NOTDIR.into());
        }
        let denied = |what: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        if self.strict {
            return denied(
                "a symbolic link is in the way, which is not followed: remove it, or copy \
                           to another folder",
            );
        }
        if self.links.contains(&(stat.st_dev, stat.st_ino)) {
            return denied("a symbolic link of the archive's own is in the way");
        }
        let folder = openat(at, name, FOLDER, Mode::empty())?;
        match whereabouts(folder.as_fd())?.starts_with(&self.path) {
            true => Ok(folder),
            false => denied("a symbolic link leads out of the folder that is unpacked to"),
        }
    }
}

/// Returns the path of an open folder.
fn whereabouts(folder: BorrowedFd<'_>) -> io::Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let link = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let path = readlinkat(rustix::fs::CWD, link, Vec::new())?;
    Ok(std::ffi::OsString::from_vec(path.into_bytes()).into())
}
