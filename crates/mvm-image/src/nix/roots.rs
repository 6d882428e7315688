//! Removes what builds leave among the roots of Nix's garbage collector: links to links that are
//! gone.

use std::path::Path;

/// Where Nix keeps its links to what must stay.
const ROOTS: &str = "/nix/var/nix/gcroots/auto";

/// Removes the roots of builds in this directory that lead nowhere, and returns their number; with
/// `dry_run`, only counts them. The root of a running build leads to its result and stays.
pub(crate) fn remove_stale(images: &Path, dry_run: bool) -> u64 {
    stale_in(Path::new(ROOTS), images, dry_run)
}

fn stale_in(roots: &Path, images: &Path, dry_run: bool) -> u64 {
    let links = std::fs::read_dir(roots).into_iter().flatten().flatten().map(|e| e.path());
    let ours = links.filter(|link| {
        let target = std::fs::read_link(link).ok().filter(|target| target.starts_with(images));
        target.is_some_and(|target| target.symlink_metadata().is_err())
    });
    // Nix may remove the same link at the same time.
    ours.filter(|link| dry_run || std::fs::remove_file(link).is_ok()).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_ours_go_and_only_those_that_lead_nowhere() {
        let dir = tempfile::tempdir().expect("directory");
        let [roots, images, other] = ["roots", "images", "other"].map(|name| dir.path().join(name));
        for folder in [&roots, &images, &other] {
            std::fs::create_dir(folder).expect("folder");
        }
        symlink("/nix/store/x", images.join("live")).expect("link");
        for (name, target) in [
            ("a", images.join("live")),
            ("b", images.join("gone/result")),
            ("c", other.join("gone")),
        ] {
            symlink(target, roots.join(name)).expect("link");
        }
        let left = || roots.read_dir().expect("roots").count();
        assert_eq!((stale_in(&roots, &images, true), left()), (1, 3));
        assert_eq!((stale_in(&roots, &images, false), left()), (1, 2));
        assert!(roots.join("c").symlink_metadata().is_ok());
        assert_eq!(stale_in(&roots.join("none"), &images, false), 0);
    }
}
