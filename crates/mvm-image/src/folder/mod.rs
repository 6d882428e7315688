//! Copies a flake that is a plain folder. Nix would copy all of such a folder into its store, for
//! everybody to read; so it gets a copy that leaves out secrets and what `.gitignore` names.

use crate::error::{At, Result};
use ignore::WalkBuilder;
use parking_lot::Mutex;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

mod secret;

use secret::{Verdict, judge};

/// Git's own directory.
const GIT: &str = ".git";
/// How many names of each kind a message lists.
const TOLD: usize = 20;

/// What was copied, and what was found meanwhile.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    bytes: u64,
    files: u64,
    found: Found,
}

/// The files that hold or may hold secrets, by their paths inside the folder.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    left_out: Vec<String>,
    /// Files that were copied since the flake may need them.
    doubtful: Vec<String>,
}

impl std::fmt::Display for Copied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {}, {:.1} MiB, copied into the Nix store, where all users can read them",
            self.files,
            if self.files == 1 { "file" } else { "files" },
            self.bytes as f64 / f64::from(1 << 20)
        )?;
        if !self.found.left_out.is_empty() {
            let names = told(&self.found.left_out);
            write!(f, "; left out, as secrets (a git repository's files are all copied): {names}")?;
        }
        if !self.found.doubtful.is_empty() {
            write!(f, "; copied, though it may hold secrets: {}", told(&self.found.doubtful))?;
        }
        Ok(())
    }
}

fn told(names: &[String]) -> String {
    let first = names[..names.len().min(TOLD)].join(", ");
    match names.len().checked_sub(TOLD) {
        Some(more @ 1..) => format!("{first} and {more} more"),
        _ => first,
    }
}

/// Copies the folder `from` into the empty folder `to`: files, their executable bit, and symbolic
/// links as they are. Leaves out what a `.gitignore` in it names, git's own directory, secrets,
/// sockets and devices.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<Copied> {
    let found: Arc<Mutex<Found>> = Arc::default();
    let (noted, root) = (found.clone(), from.to_owned());
    let walk = WalkBuilder::new(from)
        .standard_filters(false)
        .git_ignore(true)
        .require_git(false)
        .filter_entry(move |entry| {
            let inside = entry.path().strip_prefix(&root).unwrap_or(entry.path());
            let kind = entry.file_type().filter(|_| entry.depth() > 0);
            let name = || format!("{}{}", inside.display(), if is_dir(kind) { "/" } else { "" });
            let mut noted = noted.lock();
            match kind.map_or(Verdict::Plain, |kind| judge(entry.path(), inside, kind)) {
                Verdict::Secret => {
                    noted.left_out.push(name());
                    return false;
                }
                Verdict::Doubtful => noted.doubtful.push(name()),
                Verdict::Plain => {}
            }
            entry.file_name() != GIT
        })
        .build();
    let mut copied = Copied::default();
    for entry in walk {
        let entry = entry.map_err(std::io::Error::other).at("read the flake in", from)?;
        let (path, Some(kind)) = (entry.path(), entry.file_type()) else { continue };
        let Ok(inside) = path.strip_prefix(from) else { continue };
        let target = to.join(inside);
        if kind.is_dir() {
            fs::create_dir_all(&target).at("make", &target)?;
        } else if kind.is_symlink() {
            let leads_to = fs::read_link(path).at("read", path)?;
            symlink(leads_to, &target).at("make", &target)?;
        } else if kind.is_file() {
            let mode = fs::metadata(path).at("read", path)?.permissions().mode();
            copied.bytes += fs::copy(path, &target).at("copy", path)?;
            copied.files += 1;
            let mode = if mode & 0o111 == 0 { 0o600 } else { 0o700 };
            fs::set_permissions(&target, Permissions::from_mode(mode)).at("change", &target)?;
        }
    }
    copied.found = std::mem::take(&mut *found.lock());
    copied.found.left_out.sort_unstable();
    copied.found.doubtful.sort_unstable();
    Ok(copied)
}

fn is_dir(kind: Option<fs::FileType>) -> bool {
    kind.is_some_and(|kind| kind.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_or_secret_is_not_copied() {
        let dir = tempfile::tempdir().expect("directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("a/b")).expect("folders");
        fs::create_dir_all(from.join("target")).expect("folder");
        fs::create_dir(from.join(GIT)).expect("folder");
        fs::create_dir(&to).expect("folder");
        let write = |name: &str, text: &str| fs::write(from.join(name), text).expect("file");
        write("flake.nix", "{ }");
        write("a/run", "#!/bin/sh");
        fs::set_permissions(from.join("a/run"), Permissions::from_mode(0o755)).expect("mode");
        symlink("../flake.nix", from.join("a/link")).expect("link");
        write(".gitignore", "target\n*.log\n");
        fs::create_dir(from.join(".ssh")).expect("folder");
        for left_out in ["target/big", "a/x.log", ".git/config", ".env", "a/b/.env", ".ssh/x"] {
            write(left_out, "TOKEN=x");
        }
        write(".envrc", "use flake");
        let copied = copy(&from, &to).expect("a copy");
        assert_eq!(copied.files, 4, "{copied}");
        for there in ["flake.nix", "a/run", ".gitignore", ".envrc"] {
            assert!(to.join(there).is_file(), "{there}");
        }
        for gone in ["target", "a/x.log", GIT, ".env", "a/b/.env", ".ssh"] {
            assert!(!to.join(gone).exists(), "{gone}");
        }
        assert_eq!(fs::read_link(to.join("a/link")).expect("link"), Path::new("../flake.nix"));
        let mode = |name: &str| fs::metadata(to.join(name)).expect("file").permissions().mode();
        assert_eq!((mode("a/run") & 0o777, mode("flake.nix") & 0o777), (0o700, 0o600));
        let words = copied.to_string();
        assert!(words.starts_with("4 files, "), "{words}");
        let ends = ": .env, .ssh/, a/b/.env; copied, though it may hold secrets: .envrc";
        assert!(words.ends_with(ends), "{words}");
    }
}
