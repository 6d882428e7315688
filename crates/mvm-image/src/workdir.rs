//! Directories that are written aside and renamed into place when complete.
//!
//! A work directory is named `.tmp-*` and locked (flock(2)) by the process that fills it. The lock
//! ends with the process, however it ends, so a directory that can be locked is a leftover. Inside
//! the process, everything that writes there holds the [`WorkDir`], which is removed with its last
//! holder.

use crate::abandoned;
use crate::clone::occupied;
use crate::error::{At, Error, Result};
use crate::types::Removed;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PREFIX: &str = ".tmp-";
/// Prefix of the name of a directory that a transfer fills.
pub(crate) const INCOMING: &str = ".incoming-";

/// A locked work directory; unless published, it is removed with its last holder.
#[derive(Clone, Debug)]
pub(crate) struct WorkDir(Arc<Locked>);

#[derive(Debug)]
struct Locked {
    path: PathBuf,
    _lock: File,
    published: AtomicBool,
}

impl WorkDir {
    /// Makes a work directory in `parent` and locks it.
    pub fn new_in(parent: &Path) -> Result<Self> {
        for _ in 0..100 {
            let ours = std::fs::Permissions::from_mode(0o700);
            let made = tempfile::Builder::new().prefix(PREFIX).permissions(ours).tempdir_in(parent);
            let path = made.at("make a work directory in", parent)?.keep();
            let lock = File::open(&path).at("open", &path);
            // Between making and locking, another process's sweep may have removed it as a
            // leftover; then another one is made.
            let Ok(lock) = lock else { continue };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && path.is_dir() {
                let published = AtomicBool::new(false);
                return Ok(Self(Arc::new(Locked { path, _lock: lock, published })));
            }
        }
        let why = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
        Err(Error::io("lock a work directory in", parent, why))
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Makes the directory durable and renames it to `to`. `Ok(false)` means that `to` exists
    /// already; the directory is then removed.
    pub fn publish(self, to: &Path) -> Result<bool> {
        let published = publish(self.path(), to)?;
        self.0.published.store(published, Ordering::Relaxed);
        Ok(published)
    }
}

/// Makes a directory durable and renames it to `to`; `Ok(false)` if `to` exists already.
pub(crate) fn publish(dir: &Path, to: &Path) -> Result<bool> {
    sync_tree(dir)?;
    match std::fs::rename(dir, to) {
        Ok(()) => {}
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => {
            return Ok(false);
        }
        Err(e) => return Err(Error::io("rename into place", to, e)),
    }
    if let Some(parent) = to.parent() {
        sync(parent)?;
    }
    Ok(true)
}

impl Drop for Locked {
    fn drop(&mut self) {
        if *self.published.get_mut() {
            return;
        }
        let busy = |e: &std::io::Error| e.kind() == std::io::ErrorKind::DirectoryNotEmpty;
        let path = std::mem::take(&mut self.path);
        match std::fs::remove_dir_all(&path) {
            // A program's children may still put files into it while they end. This may be dropped
            // by a task of an executor, so another thread waits for that.
            Err(e) if busy(&e) => {
                std::thread::spawn(move || {
                    let again = || {
                        std::thread::sleep(Duration::from_millis(25));
                        std::fs::remove_dir_all(&path)
                    };
                    let last = (0..20).map(|_| again()).find(|r| !r.as_ref().is_err_and(busy));
                    tell_if_left(&path, last.unwrap_or(Err(e)));
                });
            }
            outcome => tell_if_left(&path, outcome),
        }
    }
}

/// Logs a work directory that could not be removed; it is swept when the store is opened again.
fn tell_if_left(path: &Path, removed: std::io::Result<()>) {
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "work directory stays for now");
    }
}

/// Syncs a file or directory (fsync(2)).
pub(crate) fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).at("make durable", path)
}

fn sync_tree(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        let kind = entry.file_type().at("look at", &entry.path())?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            sync(&entry.path())?;
        }
    }
    sync(dir)
}

/// How long an interrupted transfer can be resumed.
const RESUMABLE: Duration = Duration::from_secs(24 * 3600);

/// Returns whether an unlocked directory is a leftover: a build's at once, a transfer's when it has
/// not been resumed for long.
fn is_leftover(name: &str, path: &Path) -> bool {
    let age = || std::fs::metadata(path).ok()?.modified().ok()?.elapsed().ok();
    name.starts_with(PREFIX)
        || name.starts_with(INCOMING) && age().is_some_and(|age| age > RESUMABLE)
}

/// Removes, or with `dry_run` only lists, the unlocked leftovers in `parent`. Programs that still
/// work for one are ended first.
pub(crate) fn sweep(parent: &Path, dry_run: bool) -> Result<Vec<Removed>> {
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(parent).at("list", parent)? {
        let entry = entry.at("list", parent)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if !is_leftover(&name, &path) {
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue; // a build that is under way
        }
        let bytes = disk_usage(&path);
        if !dry_run {
            abandoned::end(&path);
            remove_any(&path)?;
        }
        removed.push(Removed { digest: name, bytes });
    }
    Ok(removed)
}

/// Moves a whole directory aside, so that it disappears at once, then removes it.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    let parent = dir.parent().unwrap_or(dir);
    let aside = WorkDir::new_in(parent)?;
    std::fs::rename(dir, aside.path().join("removed")).at("remove", dir)?;
    std::fs::remove_dir_all(aside.path()).at("remove", dir)?;
    std::fs::create_dir(aside.path()).at("remove", dir) // for the drop, which would complain
}

fn remove_any(path: &Path) -> Result<()> {
    let gone = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    gone.at("remove", path)
}

/// Returns the bytes that a directory's files occupy on disk and would give back: files with hard
/// links elsewhere count as zero.
pub(crate) fn disk_usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
    if meta.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        return occupied(&meta) + entries.map(|e| disk_usage(&e.path())).sum::<u64>();
    }
    if meta.nlink() > 1 { 0 } else { occupied(&meta) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_takes_leftovers_and_leaves_live_work() {
        let dir = tempfile::tempdir().unwrap();
        let live = WorkDir::new_in(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join(".tmp-dead")).unwrap();
        std::fs::write(dir.path().join(".tmp-dead/file"), vec![1; 8192]).unwrap();
        std::fs::create_dir(dir.path().join("whole")).unwrap();
        assert_eq!(sweep(dir.path(), true).unwrap().len(), 1);
        let removed = sweep(dir.path(), false).unwrap();
        assert_eq!(removed[0].digest, ".tmp-dead");
        assert!(removed[0].bytes >= 8192);
        assert!(live.path().is_dir() && dir.path().join("whole").is_dir());
        assert!(!dir.path().join(".tmp-dead").exists());
    }

    #[test]
    fn the_second_to_publish_loses_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("there");
        for expected in [true, false] {
            let work = WorkDir::new_in(dir.path()).unwrap();
            std::fs::write(work.path().join("f"), "x").unwrap();
            assert_eq!(work.publish(&to).unwrap(), expected);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&to).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
