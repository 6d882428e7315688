//! Work that blocks, kept off the executor's threads.

use crate::Result;
use crate::error::InternalError;
use std::path::{Path, PathBuf};

/// Runs `work` on a thread for blocking calls. All work that waits for a disk for more than a
/// moment (copies, `fsync`, directory walks) goes through here. Returns the work's error unchanged;
/// a panic becomes the error `internal`.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(InternalError::Task)?
}

/// Returns the paths in a directory; none where it cannot be read.
pub(crate) fn paths_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}
