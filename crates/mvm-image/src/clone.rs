//! Copies large sparse files.

use crate::error::{At, Error, Result};
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Copies the regular file `from` to `to`, which must not exist: by reflink if the file system can
/// (FICLONE, ioctl_ficlonerange(2)), otherwise only the data (lseek(2) SEEK_DATA and SEEK_HOLE,
/// copy_file_range(2)), so that holes stay holes. Mode bits are kept. On failure `to` is removed.
/// Errors: `no_space`, `io`. Blocks: call it from a thread that may block.
pub fn clone_file(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).at("open", from)?;
    let meta = source.metadata().at("look at", from)?;
    if !meta.is_file() {
        let why = std::io::Error::from(std::io::ErrorKind::InvalidInput);
        return Err(Error::io("copy (it is not a regular file)", from, why));
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let target = options.open(to).at("create", to)?;
    let copied = fill(&source, &target, meta.len())
        .and_then(|()| target.set_permissions(meta.permissions()));
    copied.map_err(|e| {
        let error = match e.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Error::no_space("a copy", to, occupied(&meta)),
            _ => Error::io("write", to, e),
        };
        let _ = std::fs::remove_file(to);
        error
    })
}

/// Gives the regular file `to` the content of `from`, in place, so that processes that have it open
/// see the change. Both must have the same size. On failure its content is undefined. Errors:
/// `no_space`, `io`. Blocks, like [`clone_file`].
pub fn refill_file(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).at("open", from)?;
    let meta = source.metadata().at("look at", from)?;
    let target = OpenOptions::new().write(true).open(to).at("open", to)?;
    let refilled = target.set_len(0).and_then(|()| fill(&source, &target, meta.len()));
    refilled.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Error::no_space("a copy", to, occupied(&meta)),
        _ => Error::io("write", to, e),
    })
}

/// Returns the bytes that a file occupies on disk.
pub(crate) fn occupied(meta: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(meta) * 512
}

fn fill(source: &File, target: &File, len: u64) -> std::io::Result<()> {
    if ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    target.set_len(len)?;
    let mut at = 0;
    while at < len {
        let data = match seek(source, SeekFrom::Data(at)) {
            Ok(offset) => offset.min(len),
            Err(Errno::NXIO) => return Ok(()), // a hole up to the end
            Err(Errno::INVAL) => at,           // a file system without holes
            Err(e) => return Err(e.into()),
        };
        let hole = match seek(source, SeekFrom::Hole(data)) {
            Ok(offset) => offset.min(len),
            Err(Errno::INVAL) => len,
            Err(e) => return Err(e.into()),
        };
        copy_range(source, target, data, hole)?;
        at = hole.max(data + 1);
    }
    Ok(())
}

/// Copies the bytes from offset `start` up to `end` to the same offset.
fn copy_range(source: &File, target: &File, start: u64, end: u64) -> std::io::Result<()> {
    let (mut from_at, mut to_at) = (start, start);
    while from_at < end {
        let want = usize::try_from(end - from_at).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(source, Some(&mut from_at), target, Some(&mut to_at), want) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_by_hand(source, target, from_at, end);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(mut source: &File, mut target: &File, at: u64, end: u64) -> std::io::Result<()> {
    source.seek(std::io::SeekFrom::Start(at))?;
    target.seek(std::io::SeekFrom::Start(at))?;
    let mut buffer = vec![0; 1 << 20];
    let mut rest = end - at;
    while rest > 0 {
        let want = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
        let n = source.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        target.write_all(&buffer[..n])?;
        rest -= n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::Code;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_stay_holes_and_data_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(b"middle", 300 << 20).unwrap();
        file.write_all_at(b"end", (1 << 30) - 3).unwrap();
        clone_file(&from, &to).unwrap();
        let copy = File::open(&to).unwrap();
        let meta = copy.metadata().unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(occupied(&meta) < 4 << 20, "{}", occupied(&meta));
        for (text, at) in [("start", 0), ("middle", 300 << 20), ("end", (1 << 30) - 3)] {
            let mut bytes = vec![0; text.len()];
            copy.read_exact_at(&mut bytes, at).unwrap();
            assert_eq!(bytes, text.as_bytes());
        }
    }

    #[test]
    fn an_existing_target_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&from, "new").unwrap();
        std::fs::write(&to, "old").unwrap();
        assert_eq!(clone_file(&from, &to).unwrap_err().code(), Code::Io);
        assert_eq!(std::fs::read(&to).unwrap(), b"old");
    }

    #[test]
    fn a_refilled_file_is_the_same_file_with_other_content() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let sparse = File::create(&from).unwrap();
        sparse.set_len(8 << 20).unwrap();
        sparse.write_all_at(b"new", 4 << 20).unwrap();
        std::fs::write(&to, vec![7; 8 << 20]).unwrap();
        let open = File::open(&to).unwrap();
        refill_file(&from, &to).unwrap();
        let mut bytes = vec![1; 8 << 20];
        open.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == std::fs::read(&from).unwrap());
        assert!(occupied(&open.metadata().unwrap()) < 1 << 20);
    }

    #[test]
    fn across_file_systems() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("a");
        std::fs::write(&from, vec![7; 3 << 20]).unwrap();
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        let to = other.path().join("b");
        clone_file(&from, &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), vec![7; 3 << 20]);
    }
}
