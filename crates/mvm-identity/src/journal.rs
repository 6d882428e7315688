//! The certificates that an authority issued without a store (`mvm ca issue`), one per line in a
//! file beside its key. A signer reads the file besides its records, so that these certificates can
//! be revoked, too.

use crate::files::{io, read_if_there};
use crate::{Error, Result};
use mvm_api::identity::Facts;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

fn file(dir: &Path) -> PathBuf {
    dir.join("issued.jsonl")
}

/// Records a certificate that the authority in `dir` is about to hand out.
pub fn append(dir: &Path, facts: &Facts) -> Result<()> {
    let path = file(dir);
    let mut line = serde_json::to_vec(facts).map_err(Error::Json)?;
    line.push(b'\n');
    let write = || -> std::io::Result<()> {
        // A single write(2) with O_APPEND keeps the lines of concurrent processes apart.
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        file.write_all(&line)?;
        file.sync_all()
    };
    write().map_err(|e| io(format!("write {}", path.display()), e))
}

/// Returns the certificates in the journal of the authority in `dir`. A last line that a crash cut
/// off is ignored: its certificate was never handed out.
pub fn read(dir: &Path) -> Result<Vec<Facts>> {
    let bytes = read_if_there(&file(dir))?.unwrap_or_default();
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}
