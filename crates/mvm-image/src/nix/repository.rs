//! Checks that git agrees to read a flake that is a git repository.

use crate::command::Tool;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long git may take to say whether it reads a repository.
const ANSWER: Duration = Duration::from_secs(60);

/// What git and newer versions of Nix print about a repository that belongs to another user.
const FOREIGN: [&str; 2] = ["dubious ownership in repository", "is not owned by current user"];

/// Asks git whether it reads the repository that a reference names, before Nix does: if git
/// refuses, Nix 2.8 makes it compare two folders instead and prints that command's help. Other
/// errors are left for Nix to report.
pub(super) async fn check(reference: &str) -> Result<()> {
    let Some(dir) = local(reference) else { return Ok(()) };
    let ask = Tool::new(Path::new("git"), "git")
        .arg("-C")
        .arg(&dir)
        .args(["rev-parse", "--git-dir"])
        .within(ANSWER);
    let Ok(ended) = ask.run(|_| {}).await else { return Ok(()) };
    match ended.status.success() {
        true => Ok(()),
        false => foreign(&ended.stderr, &dir).map_or(Ok(()), Err),
    }
}

/// Returns the directory of a repository on this machine; `None` if the reference is remote.
fn local(reference: &str) -> Option<PathBuf> {
    let path = match reference.strip_prefix("git+file:") {
        Some(path) => path.strip_prefix("//").unwrap_or(path),
        None => reference,
    };
    let path = path.split('?').next().unwrap_or(path);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// Returns an error if these lines say that a repository belongs to another user: the one that they
/// name, or else `dir`.
pub(super) fn foreign(lines: &[String], dir: &Path) -> Option<Error> {
    let line = lines.iter().find(|line| FOREIGN.iter().any(|words| line.contains(words)))?;
    let named = line.split('\'').nth(1).filter(|path| path.starts_with('/')).map(PathBuf::from);
    let path = named.unwrap_or_else(|| dir.to_owned());
    let us = rustix::process::geteuid().as_raw();
    let owners = [path.clone(), path.join(".git")].into_iter().filter_map(|path| owner(&path));
    let owner = owners.filter(|uid| *uid != us).map(name_of).next();
    let owner = owner.unwrap_or_else(|| "another user".to_owned());
    Some(Error::FlakeForeign { path, owner, us: name_of(us) })
}

fn owner(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|meta| meta.uid())
}

fn name_of(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of_uid = |line: &&str| line.split(':').nth(2) == Some(&uid.to_string());
    let name = users.lines().find(of_uid).and_then(|line| line.split(':').next());
    name.map_or(format!("uid {uid}"), |name| format!("{name} (uid {uid})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::Code;

    #[test]
    fn repositories_of_this_machine() {
        for reference in ["/a/b", "/a/b?dir=c", "git+file:///a/b?ref=main", "git+file:/a/b"] {
            assert_eq!(local(reference), Some("/a/b".into()), "{reference}");
        }
        for reference in ["path:/a/b", "github:a/b", "git+https://a/b", "git+ssh://a/b"] {
            assert_eq!(local(reference), None, "{reference}");
        }
    }

    #[test]
    fn the_repository_that_git_names_is_told() {
        let said = |line: &str| foreign(&[line.to_owned()], Path::new("/flake"));
        let git = said("fatal: detected dubious ownership in repository at '/other'");
        assert!(git.is_some_and(|e| e.to_string().starts_with("/other is a git repository of")));
        let nix = said("error: repository path '/flake' is not owned by current user");
        assert!(nix.is_some_and(|e| e.code() == Code::FlakeForeign));
        assert!(said("fatal: not a git repository").is_none());
    }
}
