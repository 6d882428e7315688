//! Adds what a mere package environment lacks to be a system; existing files stay as they are.

use mvm_guest::RUN_ETC;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Files of `/etc` that the node sets anew for each machine.
const IDENTITY: [&str; 4] = ["hostname", "hosts", "machine-id", "resolv.conf"];

/// Adds the missing files, folders and links.
pub fn fill_in() {
    for dir in [
        "/etc",
        "/root",
        "/tmp",
        "/var/tmp",
        "/var/empty",
        "/var/log",
        "/var/lib",
        "/run/sshd",
        "/run/mvm",
        "/home",
        "/usr/bin",
        "/bin",
    ] {
        let _ = fs::create_dir_all(dir);
    }
    let modes = [
        ("/tmp", 0o1777),
        ("/var/tmp", 0o1777),
        ("/root", 0o700),
        ("/var/empty", 0o755),
        ("/run/sshd", 0o755),
    ];
    for (dir, mode) in modes {
        let _ = fs::set_permissions(dir, fs::Permissions::from_mode(mode));
    }
    let shell =
        ["/bin/bash", "/usr/bin/bash", "/bin/sh"].into_iter().find(|s| Path::new(s).exists());
    let shell = shell.unwrap_or("/bin/sh");
    accounts(
        "/etc/passwd",
        &format!(
            "root:x:0:0:root:/root:{shell}\nsshd:x:74:74:sshd:/var/empty:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"
        ),
    );
    accounts("/etc/group", "root:x:0:\ntty:x:5:\nsshd:x:74:\nnogroup:x:65534:\nnobody:x:65534:\n");
    // A locked password (`!`) would prevent key logins, too; no password matches `*`.
    accounts("/etc/shadow", "root:*:1::::::\nsshd:*:1::::::\nnobody:*:1::::::\n");
    let _ = fs::set_permissions("/etc/shadow", fs::Permissions::from_mode(0o600));
    file("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n");
    file("/etc/hosts", "127.0.0.1 localhost\n");
    IDENTITY.iter().for_each(|name| keep_in_memory(name));
    link("/bin/sh", &[shell, "/usr/bin/dash", "/bin/busybox"]);
    link("/usr/bin/env", &["/bin/env"]);
    let bundles = ["/etc/ssl/certs/ca-bundle.crt", "/etc/ssl/certs/ca-certificates.crt"];
    if fs::create_dir_all("/etc/ssl/certs").is_ok() {
        link(bundles[0], &[bundles[1]]);
        link(bundles[1], &[bundles[0]]);
    }
}

/// Adds to a file of accounts (passwd(5), group(5), shadow(5)) those of `lines` whose names it
/// lacks. The image's own lines stay as they are.
fn accounts(path: &str, lines: &str) {
    let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let mut text = fs::read_to_string(path).unwrap_or_default();
    let known: Vec<String> = text.lines().map(name).collect();
    let missing: Vec<&str> = lines.lines().filter(|line| !known.contains(&name(line))).collect();
    if missing.is_empty() {
        return;
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.extend(missing.iter().map(|line| format!("{line}\n")));
    // A link into the image's read-only store is replaced, not written through.
    let _ = fs::remove_file(path);
    let _ = fs::write(path, text);
}

/// Moves a file of `/etc` to `/run`, since every clone writes it: on the overlay, that runs a file
/// system's whole code, which an emulator has to translate first.
fn keep_in_memory(name: &str) {
    let (path, kept) = (Path::new("/etc").join(name), Path::new(RUN_ETC).join(name));
    let text = fs::read(&path).unwrap_or_default();
    if fs::create_dir_all(RUN_ETC).and_then(|()| fs::write(&kept, text)).is_ok() {
        let _ = fs::remove_file(&path);
        let _ = symlink(&kept, &path);
    }
}

fn file(path: &str, text: &str) {
    if fs::symlink_metadata(path).is_err() {
        let _ = fs::write(path, text);
    }
}

/// Links `path` to the first of `targets` that exists, unless `path` exists.
fn link(path: &str, targets: &[&str]) {
    if fs::metadata(path).is_ok() {
        return;
    }
    if let Some(target) =
        targets.iter().find(|target| Path::new(target).exists() && **target != path)
    {
        let _ = fs::remove_file(path);
        let _ = symlink(target, path);
    }
}
