//! Files that are written as a whole or not at all.

use crate::{Error, Result};
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Makes the error of a call of the operating system. `doing` is the action and its object.
pub fn io(doing: impl std::fmt::Display, cause: std::io::Error) -> Error {
    Error::Io { doing: doing.to_string(), cause }
}

/// Makes a directory and its parents, with this mode where they are new.
pub fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|e| io(format!("make the directory {}", path.display()), e))
}

/// Writes a whole file. A crash leaves the old contents or the new ones.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|e| io(format!("write {}", path.display()), e))
}

/// Returns the file's bytes; `None` where the file does not exist.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(io(format!("read {}", path.display()), e)),
    }
}
