//! Makes the tree that becomes the root file system: the closure under `/nix/store`, and the
//! profile's folders where programs look for them.
//!
//! Binaries built by nixpkgs look into `/nix/store`, those of Debian into `/usr` and `/lib64`: the
//! links serve both. `/etc` and `/var` are real directories, since guests write there.

use crate::clone::clone_file;
use crate::error::{At, Error, Result};
use std::fs::{Permissions, create_dir, create_dir_all, set_permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

/// Profile folders that are linked into `/`.
const LINKED: [&str; 9] =
    ["bin", "sbin", "lib", "lib32", "lib64", "libexec", "opt", "share", "usr"];
/// Folders that appear in `/usr` if the profile has no `usr` of its own.
const UNDER_USR: [&str; 6] = ["bin", "sbin", "lib", "libexec", "include", "share"];
/// Directories that every guest has, with their modes: to mount on, and to write to.
const DIRECTORIES: [(&str, u32); 20] = [
    ("", 0o755),
    ("nix", 0o755),
    ("nix/store", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("data", 0o755),
    ("mnt", 0o755),
    ("root", 0o700),
    ("home", 0o755),
    ("etc", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/empty", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];
/// Files that a mere package environment lacks; a profile's own take precedence.
const FILES: [(&str, u32, &str); 7] = [
    (
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\n\
         sshd:x:74:74:sshd:/var/empty:/bin/false\n\
         nobody:x:65534:65534:nobody:/var/empty:/bin/false\n",
    ),
    (
        "etc/group",
        0o644,
        "root:x:0:\ntty:x:5:\ndisk:x:6:\nkvm:x:36:\nsshd:x:74:\nnogroup:x:65534:\n",
    ),
    // No password matches `*`, and unlike `!` it does not lock the account for public keys.
    ("etc/shadow", 0o600, "root:*:1::::::\nsshd:*:1::::::\nnobody:*:1::::::\n"),
    ("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/shells", 0o644, "/bin/sh\n/bin/bash\n"),
    (
        "etc/profile",
        0o644,
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         [ -r /etc/ssl/certs/ca-bundle.crt ] && \
         export SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt\n",
    ),
];

/// Returns the bytes that a closure occupies on disk.
pub(crate) fn closure_bytes(closure: &[String]) -> u64 {
    fn walk(path: &Path) -> u64 {
        let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
        if !meta.is_dir() {
            return meta.len().next_multiple_of(512);
        }
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        4096 + entries.map(|e| walk(&e.path())).sum::<u64>()
    }
    closure.iter().map(|p| walk(Path::new(p))).sum()
}

/// Makes the tree at `root`, which must not exist, for `profile`, one of the closure's paths.
pub(crate) fn stage(root: &Path, profile: &Path, closure: &[String]) -> Result<()> {
    if !profile.is_dir() {
        let why = "it builds to a single file, and an image needs a directory with bin, etc, …";
        let what = format!("profile output {}", profile.display());
        return Err(Error::Invalid { what, why: why.to_owned() });
    }
    create_dir_all(root.join("nix/store")).at("create", root)?;
    for path in closure {
        let name = path.strip_prefix('/').unwrap_or(path);
        mirror(Path::new(path), &root.join(name))?;
    }
    for (name, _) in DIRECTORIES {
        // If the profile has /etc or /var, they come from it; the directories here are added.
        let (from, to) = (profile.join(name), root.join(name));
        match matches!(name, "etc" | "var") && from.is_dir() {
            true => mirror(&from.canonicalize().at("resolve", &from)?, &to)?,
            false if to.is_dir() => {}
            false => {
                let _ = std::fs::remove_file(&to); // a link that leads nowhere in a guest
                create_dir_all(&to).at("create", &to)?;
            }
        }
    }
    for (name, mode) in DIRECTORIES {
        let to = root.join(name);
        set_permissions(&to, Permissions::from_mode(mode)).at("set the mode of", &to)?;
    }
    link("/run", &root.join("var/run"))?;
    link("/run/lock", &root.join("var/lock"))?;
    link_folders(root, profile)?;
    for (name, mode, text) in FILES {
        let to = root.join(name);
        if std::fs::symlink_metadata(&to).is_err() {
            crate::fs::write(&to, text.as_bytes())?;
            set_permissions(&to, Permissions::from_mode(mode)).at("set the mode of", &to)?;
        }
    }
    Ok(())
}

fn link_folders(root: &Path, profile: &Path) -> Result<()> {
    let has = |name: &str| profile.join(name).exists();
    for name in LINKED.into_iter().filter(|n| has(n)) {
        link(profile.join(name), &root.join(name))?;
    }
    if has("usr") {
        for name in ["bin", "sbin", "lib", "lib64"] {
            if !has(name) && has(&format!("usr/{name}")) {
                link(format!("usr/{name}"), &root.join(name))?;
            }
        }
        return Ok(());
    }
    // Packages of nixpkgs have no usr, but scripts everywhere use /usr/bin/env.
    let usr = root.join("usr");
    create_dir(&usr).at("create", &usr)?;
    // Guests must be able to read it, whatever the umask is.
    set_permissions(&usr, Permissions::from_mode(0o755)).at("set the mode of", &usr)?;
    for name in UNDER_USR.into_iter().filter(|n| has(n)) {
        link(profile.join(name), &usr.join(name))?;
    }
    Ok(())
}

fn link(target: impl AsRef<Path>, at: &Path) -> Result<()> {
    if std::fs::symlink_metadata(at).is_ok() {
        return Ok(());
    }
    symlink(target, at).at("link", at)
}

/// Rebuilds `from` at `to`: makes directories, copies symbolic links, and hard-links files, or
/// copies those that cannot be linked.
fn mirror(from: &Path, to: &Path) -> Result<()> {
    let meta = std::fs::symlink_metadata(from).at("look at", from)?;
    if meta.is_symlink() {
        let target = std::fs::read_link(from).at("read", from)?;
        return symlink(target, to).at("link", to);
    }
    if meta.is_file() {
        return mirror_file(from, to);
    }
    if !meta.is_dir() {
        return Ok(()); // Nix's store holds nothing else
    }
    create_dir(to).at("create", to)?;
    for entry in std::fs::read_dir(from).at("list", from)? {
        let entry = entry.at("list", from)?;
        mirror(&entry.path(), &to.join(entry.file_name()))?;
    }
    let mode = (meta.mode() & 0o777) | 0o700;
    set_permissions(to, Permissions::from_mode(mode)).at("set the mode of", to)
}

fn mirror_file(from: &Path, to: &Path) -> Result<()> {
    match std::fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EXDEV | libc::EPERM | libc::EMLINK)) => {
            clone_file(from, to)
        }
        Err(e) => Err(Error::io("link", to, e)),
    }
}
