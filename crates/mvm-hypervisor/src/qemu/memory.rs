//! The memory file of a machine: created sparse, reserved while a machine runs on it, sparse again
//! while it sleeps.
//!
//! A machine maps its file shared. The first write to a page needs a block; if the disk has none
//! left, the kernel ends the process (SIGBUS) and the guest's memory is lost. So the blocks of the
//! whole file are allocated, unwritten, before the machine runs (fallocate(2)), and those still
//! unused are given back when the machine sleeps.

use super::run_dir;
use crate::{Result, VmSpec};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;

/// Shorter holes, in bytes, stay allocated when a file is trimmed: each one costs the file system's
/// journal some time.
const SHORTEST_HOLE: u64 = 64 << 10;

/// Creates the memory file anew, sparse.
pub(super) fn create(spec: &VmSpec) -> Result<()> {
    // An old file is replaced rather than emptied: a process that still maps it must not see it
    // shrink (SIGBUS).
    run_dir::remove(&spec.memory)
        .and_then(|()| run_dir::own_file().create_new(true).open(&spec.memory))
        .and_then(|file| file.set_len(spec.mem_mib.bytes()))
        .map_err(|e| run_dir::spawn_failed(spec.id.clone(), &spec.memory, e))
}

/// Allocates every block of the memory file, before any process maps it. After `no_space` the file
/// is sparse, as it was.
pub(super) async fn reserve(spec: &VmSpec) -> Result<()> {
    in_file(spec, |file| {
        with_its_time(file, |file| reserve_file(file).inspect_err(|_| drop(trim_file(file))))
    })
    .await
}

/// Allocates the missing blocks of the memory file of a machine that already runs on it. The file's
/// modification time is not restored, since the guest's writes change it meanwhile.
pub(super) async fn reserve_running(spec: &VmSpec) -> Result<()> {
    in_file(spec, |file| {
        let meta = file.metadata()?;
        if meta.blocks() * 512 < meta.len() { reserve_file(file) } else { Ok(()) }
    })
    .await
}

async fn in_file(spec: &VmSpec, work: fn(&File) -> io::Result<()>) -> Result<()> {
    let path = spec.memory.clone();
    let work = move || work(&OpenOptions::new().read(true).write(true).open(&path)?);
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.flatten().map_err(|e| run_dir::spawn_failed(spec.id.clone(), &spec.memory, e))
}

/// Runs `work`, which must not change the bytes of a file that no process maps, and then restores
/// the file's modification time, since that says when the guest last ran.
fn with_its_time(file: &File, work: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let before = file.metadata()?.modified()?;
    let done = work(file);
    file.set_modified(before)?;
    done
}

/// Gives back the blocks that a sleeping machine's file has reserved but not used. Does nothing if
/// a process holds the machine's directory, or may still map the file.
pub(super) fn trim(spec: &VmSpec) -> io::Result<()> {
    let Some(_lock) = run_dir::lock_if_free(spec)? else { return Ok(()) };
    match OpenOptions::new().read(true).write(true).open(&spec.memory) {
        Ok(file) => with_its_time(&file, trim_file),
        // The file was moved away to become a template's, or is gone.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn reserve_file(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    // Blocks shared with a template's file (XFS) must be allocated too; other file systems do not
    // know the flag.
    for flags in [FallocateFlags::UNSHARE_RANGE, FallocateFlags::empty()] {
        let reserved = loop {
            match fallocate(file, flags, 0, length) {
                Err(Errno::INTR) => {}
                reserved => break reserved,
            }
        };
        match reserved {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    tracing::debug!("the file system of a memory file can reserve nothing");
    Ok(())
}

/// Frees the blocks that hold nothing.
fn trim_file(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    // A reserved block that was never written counts as a hole, unless it is in the page cache,
    // where the guest may have read it. Written pages are synced first, so that they never count as
    // holes.
    file.sync_data()?;
    let mut at = 0;
    while at < length {
        let data = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => length,
            found => found?,
        };
        if data - at >= SHORTEST_HOLE || data == length && data > at {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(file, flags, at, data - at) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        if data == length {
            break;
        }
        at = seek(file, SeekFrom::Hole(data))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::arguments::tests::sample;
    use mvm_model::Mib;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    const MIB: u64 = 1 << 20;

    fn allocated_kib(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().blocks() / 2
    }

    #[tokio::test]
    async fn a_file_is_whole_while_it_is_reserved_and_sparse_when_it_is_trimmed() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = sample(false);
        (spec.dir, spec.memory, spec.mem_mib) =
            (dir.path().into(), dir.path().join("memory"), Mib(64));
        create(&spec).unwrap();
        assert_eq!(allocated_kib(&spec.memory), 0);
        reserve(&spec).await.unwrap();
        assert!(allocated_kib(&spec.memory) >= 64 << 10);
        let file = OpenOptions::new().write(true).open(&spec.memory).unwrap();
        let mut written = vec![0; 64 << 20];
        for (at, byte) in [(0, 1), (7 * MIB + 4096, 2), (64 * MIB - 4096, 3)] {
            file.write_all_at(&[byte; 4096], at).unwrap();
            written[at as usize..][..4096].fill(byte);
        }
        let time = || std::fs::metadata(&spec.memory).unwrap().modified().unwrap();
        let written_at = time();
        // No machine has ever been in this directory; then one is.
        trim(&spec).unwrap();
        let held = run_dir::prepare(&spec, true).unwrap();
        trim(&spec).unwrap();
        assert!(allocated_kib(&spec.memory) >= 64 << 10, "somebody may map it");
        drop(held);
        trim(&spec).unwrap();
        assert!(allocated_kib(&spec.memory) < 4 << 10, "{}", allocated_kib(&spec.memory));
        reserve(&spec).await.unwrap();
        assert!(allocated_kib(&spec.memory) >= 64 << 10);
        assert_eq!(time(), written_at, "it says when the guest last wrote");
        reserve_running(&spec).await.unwrap();
        assert_eq!(time(), written_at, "there was nothing to do");
        assert!(std::fs::read(&spec.memory).unwrap() == written);
        std::fs::remove_file(&spec.memory).unwrap();
        trim(&spec).unwrap();
    }
}
