//! The snapshot of a sleeping machine. It is marked before the machine is resumed, which shows
//! later whether the guest may have run.

use crate::Result;
use crate::error::io;
use crate::state_dir::{Files, remove_file};
use mvm_model::Instance;
use mvm_model::recovery::Snapshot;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The file systems that update a file's time at a write through a shared mapping, by their magic
/// numbers: ext4, XFS and Btrfs. statfs(2)
const KEEPS_TIMES: [i64; 3] = [0xEF53, 0x5846_5342, 0x9123_683E];
/// How often a file system's clock is read until it has advanced. It ticks every few ms.
const TICKS: usize = 50;

/// Returns the snapshot to wake a machine from if its process has ended.
pub(super) fn snapshot_of(simulated: bool, instance: &Instance, files: &Files) -> Snapshot {
    if files.snapshot().exists() || instance.dormant {
        return Snapshot::Whole;
    }
    let Some(marked) = modified(&files.resuming()) else { return Snapshot::Absent };
    let trusted = simulated || keeps_times(&files.memory());
    let written = modified(&files.memory()).is_none_or(|written| written >= marked);
    Snapshot::Resuming { stale: written || !trusted }
}

/// Marks the snapshot as one whose machine is about to be resumed. The time of the mark is later
/// than any earlier write to the machine's memory.
pub(super) async fn mark(files: &Files) -> Result<()> {
    let snapshot = files.snapshot();
    let failed = |e: std::io::Error| io(format!("mark {}", snapshot.display()), e);
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    for _ in 0..TICKS {
        // The file system's own clock, which also times the writes to the memory file.
        utimensat(CWD, &snapshot, &times, AtFlags::empty()).map_err(|e| failed(e.into()))?;
        if modified(&snapshot) > modified(&files.memory()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    std::fs::rename(&snapshot, files.resuming()).map_err(failed)
}

/// Removes the mark of a machine whose guest has not run: the snapshot is valid again.
pub(super) fn unmark(files: &Files) -> Result<()> {
    match std::fs::rename(files.resuming(), files.snapshot()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(io(format!("restore {}", files.snapshot().display()), e))
        }
        _ => Ok(()),
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// Returns whether the file's time changes at writes through a shared mapping.
fn keeps_times(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| KEEPS_TIMES.contains(&{ fs.f_type }))
}

/// Deletes the memory file that a failed sleep may have left of a clone; a clone owns no memory
/// file.
pub(super) fn discard_memory(instance: &Instance, files: &Files) -> Result<()> {
    if instance.template.is_some() { remove_file(&files.memory()) } else { Ok(()) }
}
