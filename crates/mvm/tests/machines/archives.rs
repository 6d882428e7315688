//! Files and folders of every kind, into a machine and back.

use crate::lab::{Lab, run, text};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

fn git(tree: &Path, words: &[&str]) -> String {
    let git = Command::new("git").arg("-C").arg(tree).args(words).output().expect("git");
    assert!(git.status.success(), "git {words:?}: {}", text(&git.stderr));
    text(&git.stdout)
}

/// A work tree with what broke archives: links of odd spelling, names of a file, a socket in `.git`.
fn work_tree(tree: &Path) -> UnixListener {
    std::fs::create_dir_all(tree.join("sub")).expect("tree");
    std::fs::write(tree.join("file"), "text\n").expect("file");
    std::fs::write(tree.join("-dash ü"), "text\n").expect("file");
    std::fs::hard_link(tree.join("file"), tree.join("sub/same")).expect("hard link");
    for (name, target) in [("root", "/"), ("odd", "./d//e"), ("sub/up", "../file/.")] {
        symlink(target, tree.join(name)).expect("link");
    }
    git(tree, &["init", "-q"]);
    git(tree, &["add", "-A"]);
    let name = ["-c", "user.name=n", "-c", "user.email=e@example.com", "commit", "-qm", "all"];
    git(tree, &name);
    run(Command::new("mkfifo").arg(tree.join(".git/pipe")));
    UnixListener::bind(tree.join(".git/fsmonitor--daemon.ipc")).expect("socket")
}

#[test]
fn a_work_tree_goes_in_and_comes_back_as_it_was() {
    let lab = Lab::new("archives");
    lab.tenant_and_pool("ci", "25");
    let tree = lab.root.join("tree");
    let _socket = work_tree(&tree);
    let out = lab.root.join("out");
    let back = format!("/work/tree:{}", out.display());
    // A log that grows as fast as it can while the folder is packed, more names of it, and what
    // becomes of the links in the guest.
    let script = "cd tree || exit; readlink root odd sub/up; stat -c '%h %.9Y' file; mkfifo pipe; \
                  (while :; do echo line; done > log) & \
                  while ! test -s log; do sleep 0.1; done";
    let tree_words = tree.to_str().expect("path");
    // One of its links leads out of it, and is to come back all the same.
    let job = ["run", "ci/small", "--in", tree_words, "--out", &back, "--links", "keep", "--"];
    let output = lab.mvm(&job).args(["sh", "-c", script]).output().expect("mvm");
    let words = text(&output.stderr);
    assert!(output.status.success(), "{words}");
    let meta = std::fs::metadata(tree.join("file")).expect("file");
    let time = format!("{}.{:09}", meta.mtime(), meta.mtime_nsec());
    assert_eq!(text(&output.stdout), format!("/\n./d//e\n../file/.\n2 {time}\n"));
    for left_out in [
        "fsmonitor--daemon.ipc was left out: it is a socket",
        "tree/pipe was left out: it is a FIFO",
    ] {
        assert!(words.contains(left_out), "{left_out} is not said: {words}");
    }
    let came = out.join("tree");
    assert_eq!(git(&came, &["status", "--porcelain"]), "?? log\n");
    assert_eq!(std::fs::metadata(came.join("file")).expect("file").nlink(), 2);
    for name in ["file", "sub", "odd", ".git/HEAD"] {
        let time = |root: &Path| {
            let meta = std::fs::symlink_metadata(root.join(name)).expect(name);
            (meta.mtime(), meta.mtime_nsec(), meta.mode())
        };
        assert_eq!(time(&came), time(&tree), "{name}");
    }
    // The log is cut at what it had; what comes behind it in the archive is there.
    let log = std::fs::read_to_string(came.join("log")).expect("log");
    assert!(log.starts_with("line\n") && came.join("sub/same").exists());
    // What was named and is no file is missed as what is not there; its name begins no line.
    for (path, why) in [("/dev/null", "it is a device"), ("pipe\nx", "it is a FIFO")] {
        let job = ["run", "ci/small", "--out", path, "--", "mkfifo", "pipe\nx"];
        let output = lab.mvm(&job).current_dir(&lab.root).output().expect("mvm");
        let words = text(&output.stderr);
        assert!(!output.status.success() && words.contains(why), "{path}: {words}");
        assert!(words.contains("no artifact") && !words.contains("pipe\nx"), "{words}");
    }
    lab.ok(&["pool", "destroy", "ci/small"]);
}
