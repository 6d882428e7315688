//! Directories that only our user can read, write or enter.
//!
//! A server's state directory holds guests' memory and disks, and the inputs of jobs. It has mode
//! 0700, whoever creates it. New files in it have no bits for group and others ([`narrow_umask`]),
//! and files that an earlier version or somebody's umask left open are closed ([`close`]).

use crate::error::{Error, Result};
use mvm_identity::files::{io, make_dir};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, Metadata, Permissions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Prefix of work in progress. Its maker has closed it and removes it; the files in it may be hard
/// links to files that others are to read (Nix's store).
const WORK: &str = ".tmp-";
/// Files that mark a directory as a state directory of ours; one suffices.
const MARKS: [&str; 5] = ["root-id", "node.db", "fleet.db", "clock.json", "coordinator.sock"];
/// The directory that a new file system contains.
const BY_ITSELF: &str = "lost+found";

/// A path that users other than its owner may read, write or enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The path.
    pub path: PathBuf,
    /// The path's permission bits.
    pub mode: u32,
}

/// Sets the umask so that this process, and the processes that it starts, make files that only
/// their user can read.
pub fn narrow_umask() {
    rustix::process::umask(Mode::from_raw_mode(0o077));
}

/// Makes the state directory `path` with mode 0700, or closes an existing one. A directory that is
/// open to others and is not known to be ours is refused, since it may be anything: `/srv`, or
/// `/tmp`.
pub fn own_dir(path: &Path) -> Result<()> {
    let failed = |e| io(format!("look at {}", path.display()), e);
    // If `path` is not a directory, the error of making one says so.
    let Some(meta) = fs::metadata(path).ok().filter(Metadata::is_dir) else {
        return Ok(make_dir(path, 0o700)?);
    };
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let mut others = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        others.push(entry.map_err(failed)?.file_name());
    }
    let ours = others.iter().any(|name| MARKS.iter().any(|mark| name == mark));
    if !ours && others.iter().any(|name| name != BY_ITSELF) {
        return Err(Error::RootOpen { path: path.to_owned(), mode });
    }
    fs::set_permissions(path, Permissions::from_mode(0o700))
        .map_err(|e| io(format!("close {} to others", path.display()), e))?;
    tracing::warn!(path = %path.display(), mode = format!("{mode:04o}"),
        "the state directory was open to others; it is closed now");
    Ok(())
}

/// Returns the paths in the state directory `root` that are open to others, `root` included.
pub fn open_to_others(root: &Path) -> std::io::Result<Vec<Open>> {
    let mut found = Vec::new();
    walk(root, &mut |path, meta, _| {
        found.push(Open { path: path.to_owned(), mode: meta.mode() & 0o7777 });
        Ok(())
    })?;
    Ok(found)
}

/// Closes to others what is open to them in the state directory `root`, and logs it. Returns the
/// paths with their former modes. Blocks.
pub fn close(root: &Path) -> Result<Vec<Open>> {
    let mut closed = Vec::new();
    let walked = walk(root, &mut |path, meta, narrowed| {
        narrow(path, meta, narrowed)?;
        closed.push(Open { path: path.to_owned(), mode: meta.mode() & 0o7777 });
        Ok(())
    });
    walked.map_err(|e| io(format!("close {} to others", root.display()), e))?;
    if let Some(first) = closed.first() {
        tracing::warn!(
            paths = closed.len(),
            first = %first.path.display(),
            mode = format!("{:04o}", first.mode),
            "the state directory was open to others; it is closed now"
        );
    }
    Ok(closed)
}

/// Returns the mode that a file of this mode should have. Others get no bits. The group may only
/// pass through a directory of a confined machine, whose group is `for_group`.
fn narrowed(mode: u32, is_dir: bool, for_group: bool) -> u32 {
    let kept = if is_dir && for_group { 0o7710 } else { 0o7700 };
    mode & kept
}

type Found<'a> = dyn FnMut(&Path, &Metadata, u32) -> std::io::Result<()> + 'a;

/// Calls `found` for every path that is too open. A directory comes before its contents, so that
/// others cannot change the paths that are checked next.
fn walk(path: &Path, found: &mut Found<'_>) -> std::io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        // Concurrent work may remove the path.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        meta => meta?,
    };
    let kind = meta.file_type();
    if kind.is_symlink() {
        return Ok(());
    }
    let for_group = meta.gid() != rustix::process::getegid().as_raw();
    let mode = meta.mode() & 0o7777;
    let narrowed = narrowed(mode, kind.is_dir(), for_group);
    if narrowed != mode {
        found(path, &meta, narrowed)?;
    }
    if !kind.is_dir() {
        return Ok(());
    }
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(WORK) {
            walk(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// Sets the mode if the path still is the file that was examined. Follows no link.
fn narrow(path: &Path, meta: &Metadata, mode: u32) -> std::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        file => file?,
    };
    let seen = rustix::fs::fstat(&file)?;
    if (seen.st_dev, seen.st_ino) != (meta.dev(), meta.ino()) {
        return Ok(());
    }
    // chmod(2) works on an O_PATH descriptor only through its name in /proc.
    fs::set_permissions(format!("/proc/self/fd/{}", file.as_raw_fd()), Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_open_is_found_and_closed_and_links_lead_nowhere() {
        let (place, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, foreign) = (place.path().join("root"), outside.path().join("file"));
        fs::create_dir_all(root.join("instances/i-1/vm")).unwrap();
        fs::create_dir_all(root.join("images/.tmp-1")).unwrap();
        fs::write(&foreign, "").unwrap();
        set(&foreign, 0o644);
        set(outside.path(), 0o755);
        fs::hard_link(&foreign, root.join("images/.tmp-1/linked")).unwrap();
        symlink(&foreign, root.join("link")).unwrap();
        symlink(outside.path(), root.join("folder")).unwrap();
        for (name, wide) in
            [("node.db", 0o666), ("node.db-wal", 0o644), ("instances/i-1/memory", 0o604)]
        {
            fs::write(root.join(name), "secret").unwrap();
            set(&root.join(name), wide);
        }
        let _socket = std::os::unix::net::UnixListener::bind(root.join("agent.sock")).unwrap();
        set(&root.join("agent.sock"), 0o777);
        for name in ["", "instances", "instances/i-1"] {
            set(&root.join(name), 0o777);
        }
        // A confined machine's directory: its group passes through it.
        let vm = root.join("instances/i-1/vm");
        set(&vm, 0o750);
        let confined = rustix::process::geteuid().is_root();
        if confined {
            std::os::unix::fs::chown(&vm, None, Some(4711)).unwrap();
        }
        let found = open_to_others(&root).unwrap();
        assert!(found.contains(&Open { path: root.join("node.db"), mode: 0o666 }), "{found:?}");
        assert_eq!(close(&root).unwrap(), found);
        assert_eq!(open_to_others(&root).unwrap(), []);
        for name in ["", "instances", "instances/i-1", "agent.sock"] {
            assert_eq!(mode(&root.join(name)), 0o700, "{name}");
        }
        assert_eq!(mode(&root.join("node.db")), 0o600);
        assert_eq!(mode(&vm), if confined { 0o710 } else { 0o700 });
        assert_eq!((mode(&foreign), mode(outside.path())), (0o644, 0o755));
    }

    #[test]
    fn a_state_directory_is_closed_and_what_may_be_anything_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("above/root");
        own_dir(&root).unwrap();
        assert_eq!(mode(&root), 0o700);
        // A directory of another user that is empty, or a file system of its own.
        set(&root, 0o777);
        fs::create_dir(root.join("lost+found")).unwrap();
        own_dir(&root).unwrap();
        assert_eq!(mode(&root), 0o700);
        // A directory with another user's files.
        set(&root, 0o1777);
        fs::write(root.join("somebody's"), "").unwrap();
        let refused = own_dir(&root).unwrap_err();
        assert_eq!((refused.code().as_str(), mode(&root)), ("root_open", 0o1777));
        assert!(!refused.hint().contains("chmod"), "{}", refused.hint());
        // A state directory of ours, from an earlier version.
        fs::write(root.join("root-id"), "").unwrap();
        set(&root, 0o755);
        own_dir(&root).unwrap();
        assert_eq!(mode(&root), 0o700);
        assert!(own_dir(&root.join("root-id")).is_err());
    }

    proptest! {
        #[test]
        fn nobody_else_reads_or_writes_and_nothing_is_widened(
            mode in 0u32..=0o7777, is_dir: bool, for_group: bool
        ) {
            let to = narrowed(mode, is_dir, for_group);
            prop_assert_eq!(to & 0o067, 0);
            prop_assert_eq!(to & !mode, 0);
            prop_assert_eq!(to & 0o7700, mode & 0o7700);
            prop_assert_eq!(narrowed(to, is_dir, for_group), to);
        }
    }
}
