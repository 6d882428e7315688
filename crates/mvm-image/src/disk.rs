//! Makes blank ext4 disks: each size is formatted once, then copied.

use crate::clone::clone_file;
use crate::command::{Tool, tail};
use crate::error::{At, Error, Result};
use crate::fs::blocking;
use crate::layout::ImageStore;
use crate::workdir::WorkDir;
use mvm_model::Mib;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The smallest size: ext4 with a journal needs a few, and below this mke2fs makes a file
/// system without room for data.
const MIN: Mib = Mib(8);

/// What a disk is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// For a disk that is deleted with its instance. Nothing ever replays its journal, but without
    /// one ext4 does not reuse an inode freed a moment ago, and checks every such inode for each
    /// new file: replacing one tree of thousands of files by another took five times as long.
    Scratch,
    /// For a disk that must survive a crash of the machine.
    Data,
}

/// Makes a fresh disk of this size at `to`. Errors: `invalid`, `no_space`, `tool_missing`,
/// `tool_failed`, `io`.
pub(crate) async fn make(store: &ImageStore, purpose: Purpose, size: Mib, to: &Path) -> Result<()> {
    if !(MIN..=Mib(64 << 20)).contains(&size) {
        let why = format!("give {MIN} to 64 TiB");
        return Err(Error::Invalid { what: format!("disk size {size}"), why });
    }
    let template = template(store, purpose, size).await?;
    let to = to.to_owned();
    blocking(move || clone_file(&template, &to)).await
}

/// Returns the formatted file of this size, which is made if it is missing.
async fn template(store: &ImageStore, purpose: Purpose, size: Mib) -> Result<PathBuf> {
    let disks = store.disks_dir();
    let kind = match purpose {
        Purpose::Scratch => "scratch-journal",
        Purpose::Data => "data",
    };
    let dir = disks.join(format!("{kind}-{}", size.0));
    let file = dir.join("ext4");
    if file.is_file() {
        return Ok(file);
    }
    let work = WorkDir::new_in(&disks)?;
    let fresh = work.path().join("ext4");
    // Every disk is a copy of this file, including its mode.
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let made = options.open(&fresh).and_then(|f| f.set_len(size.bytes()));
    made.at("create", &fresh)?;
    // Lazy initialisation leaves inode tables and journal as holes, and nobody has to zero them: a
    // sparse file reads as zero already.
    let lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0";
    let format = Tool::new(&store.tools.mke2fs, "e2fsprogs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "has_journal", "-E", lazy])
        .arg(&fresh)
        .writes_to(&work);
    let ended = format.run(|_| {}).await?;
    if !ended.status.success() {
        let output = tail(&ended.stderr, 20);
        if output.contains("No space left on device") {
            return Err(Error::no_space("a disk template", &disks, 0));
        }
        let status = ended.status.to_string();
        return Err(Error::ToolFailed { tool: "mke2fs".to_owned(), status, output });
    }
    let to = dir.clone();
    blocking(move || work.publish(&to).map(drop)).await?;
    Ok(file)
}
