//! A flake that is a plain folder: Nix copies all of such a folder into its store, for everybody to
//! read. So it is given a copy of our own that lacks what is not to be there.

use crate::error::{At, Result};
use ignore::WalkBuilder;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Names of files that hold secrets.
const SECRET: [&str; 4] = [".env", ".netrc", "id_rsa", "id_ed25519"];
/// What git keeps for itself.
const GIT: &str = ".git";
/// So many names are told.
const TOLD: usize = 5;

/// What was copied.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    bytes: u64,
    files: u64,
    /// Files that were left out since they hold secrets, by their paths in the folder.
    secret: Vec<String>,
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
        let told: Vec<&str> = self.secret.iter().take(TOLD).map(String::as_str).collect();
        match self.secret.len() {
            0 => Ok(()),
            count if count > TOLD => {
                write!(f, "; left out: {} and {} more", told.join(", "), count - TOLD)
            }
            _ => write!(f, "; left out: {}", told.join(", ")),
        }
    }
}

/// Copies the folder `from` into the empty folder `to`: files, their right to be run, and symbolic
/// links as they are; not what a `.gitignore` in it names, what git keeps, secrets, sockets and
/// devices.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<Copied> {
    let secret: Arc<Mutex<Vec<String>>> = Arc::default();
    let (noted, root) = (secret.clone(), from.to_owned());
    let walk = WalkBuilder::new(from)
        .standard_filters(false)
        .git_ignore(true)
        .require_git(false)
        .filter_entry(move |entry| {
            let is_dir = entry.file_type().is_some_and(|kind| kind.is_dir());
            if !is_dir && SECRET.iter().any(|name| entry.file_name() == *name) {
                let inside = entry.path().strip_prefix(&root).unwrap_or(entry.path());
                let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                noted.push(inside.display().to_string());
                return false;
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
    copied.secret.append(&mut secret.lock().unwrap_or_else(PoisonError::into_inner));
    copied.secret.sort_unstable();
    Ok(copied)
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
        for left_out in ["target/big", "a/x.log", ".git/config", ".env", "a/b/.env"] {
            write(left_out, "TOKEN=x");
        }
        write(".envrc", "use flake");
        let copied = copy(&from, &to).expect("a copy");
        assert_eq!(copied.files, 4, "{copied}");
        for there in ["flake.nix", "a/run", ".gitignore", ".envrc"] {
            assert!(to.join(there).is_file(), "{there}");
        }
        for gone in ["target", "a/x.log", GIT, ".env", "a/b/.env"] {
            assert!(!to.join(gone).exists(), "{gone}");
        }
        assert_eq!(fs::read_link(to.join("a/link")).expect("link"), Path::new("../flake.nix"));
        let mode = |name: &str| fs::metadata(to.join(name)).expect("file").permissions().mode();
        assert_eq!((mode("a/run") & 0o777, mode("flake.nix") & 0o777), (0o700, 0o600));
        let words = copied.to_string();
        assert!(words.starts_with("4 files, ") && words.ends_with("left out: .env, a/b/.env"));
    }
}
