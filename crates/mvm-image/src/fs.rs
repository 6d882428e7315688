//! Reads and writes manifests, and runs work that blocks.

use crate::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Runs `work` on a thread that may block. Errors: those of `work`, or `interrupted` if it panics.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::Interrupted(e.to_string()))?
}

/// Returns a manifest's bytes.
pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

/// Writes a new file. Errors: `no_space`, `io`.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create(path).and_then(|mut f| f.write_all(bytes));
    written.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Error::no_space("a file", path, bytes.len() as u64),
        _ => Error::io("write", path, e),
    })
}

/// Reads a manifest; `None` if there is no such file. Errors: `image_damaged`, `io`.
pub(crate) fn read_manifest<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let damaged =
        |e: serde_json::Error| Error::Damaged { path: path.to_owned(), why: e.to_string() };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}
