//! Blank ext4 disks: formatted once a size, then copied.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::clone::clone_file;
use crate::error::{At, Error, Result};
use crate::fs::blocking;
use crate::layout::ImageStore;
use crate::run::{Tool, tail};
use crate::workdir::WorkDir;

/// ext4 with a journal wants a few MiB; below this mke2fs makes something that holds nothing.
const MIN_MIB: u64 = 8;

/// What a disk is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// Thrown away with the instance. Nothing ever replays its journal, but ext4 without one gives no inode
    /// that was freed a moment ago, and looks at each of them for every file that is made: a tree of
    /// thousands that takes the place of another took five times as long.
    Scratch,
    /// Outlives a crash of the machine: journalled.
    Data,
}

/// Puts a fresh disk at `to`.
pub(crate) async fn make(store: &ImageStore, purpose: Purpose, mib: u64, to: &Path) -> Result<()> {
    if !(MIN_MIB..=64 << 20).contains(&mib) {
        let why = format!("give {MIN_MIB} MiB to 64 TiB");
        return Err(Error::Invalid { what: format!("disk size {mib} MiB"), why });
    }
    let template = template(store, purpose, mib).await?;
    let to = to.to_owned();
    blocking(move || clone_file(&template, &to)).await
}

/// The formatted file of this size, made if it is not there.
async fn template(store: &ImageStore, purpose: Purpose, mib: u64) -> Result<PathBuf> {
    let disks = store.disks_dir();
    let kind = match purpose {
        Purpose::Scratch => "scratch-journal",
        Purpose::Data => "data",
    };
    let dir = disks.join(format!("{kind}-{mib}"));
    let file = dir.join("ext4");
    if file.is_file() {
        return Ok(file);
    }
    let work = WorkDir::new_in(&disks)?;
    let fresh = work.path().join("ext4");
    // Every disk is a copy of it, mode included.
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let made = options.open(&fresh).and_then(|f| f.set_len(mib << 20));
    made.at("create", &fresh)?;
    // Lazy initialisation leaves inode tables and journal as holes, and their zeroing to nobody:
    // a sparse file reads as zero already.
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
