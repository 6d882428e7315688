//! Copies files and folders of every kind into a machine and back.

use crate::lab::{Lab, run, text};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

fn git(tree: &Path, words: &[&str]) -> String {
    let git = Command::new("git").arg("-C").arg(tree).args(words).output().expect("git");
    assert!(git.status.success(), "git {words:?}: {}", text(&git.stderr));
    text(&git.stdout)
}

/// Makes a work tree with what broke archives before: links with odd spellings, several names of a
/// file, and a socket in `.git`.
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
    // Prints the links as the guest has them, and lets a log grow as fast as possible while the
    // folder is packed; the log also gets more names.
    let script = "cd tree || exit; readlink root odd sub/up; stat -c '%h %.9Y' file; mkfifo pipe; \
                  (while :; do echo line; done > log) & \
                  while ! test -s log; do sleep 0.1; done";
    let tree_words = tree.to_str().expect("path");
    // One link leads out of the tree, and must come back all the same.
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
    // The log is cut at its length when it was packed, and later entries of the archive are
    // complete.
    let log = std::fs::read_to_string(came.join("log")).expect("log");
    assert!(log.starts_with("line\n") && came.join("sub/same").exists());
    // A named path that is not a file counts as missing, and its name cannot begin a line of
    // output.
    for (path, why) in [("/dev/null", "it is a device"), ("pipe\nx", "it is a FIFO")] {
        let job = ["run", "ci/small", "--out", path, "--", "mkfifo", "pipe\nx"];
        let output = lab.mvm(&job).current_dir(&lab.root).output().expect("mvm");
        let words = text(&output.stderr);
        assert!(!output.status.success() && words.contains(why), "{path}: {words}");
        assert!(words.contains("no artifact") && !words.contains("pipe\nx"), "{words}");
    }
    lab.ok(&["pool", "destroy", "ci/small"]);
}

/// Writes a file of random bytes, which does not repeat.
fn random_file(path: &Path, length: u64) {
    let mut random = std::fs::File::open("/dev/urandom").expect("urandom").take(length);
    let mut file = std::fs::File::create(path).expect("file");
    std::io::copy(&mut random, &mut file).expect("random bytes");
}

fn same(one: &Path, other: &Path) -> bool {
    std::fs::read(one).expect("file") == std::fs::read(other).expect("file")
}

/// Large pieces go over a disk of the machine. A sleep or the agent's end in the middle of a copy
/// leaves a machine that copies as before.
#[test]
fn copies_go_through_a_machines_window() {
    let lab = Lab::new("window");
    lab.tenant_and_pool("ci", "26");
    let vm = lab.start("ci/small");
    let id = vm.rsplit('/').next().expect("id");
    let window = lab.root.join("instances").join(id).join("window.raw");
    let used = || std::fs::metadata(&window).expect("window").blocks() > 0;
    assert!(!used(), "only copies use it");
    let path = |name: &str| lab.root.join(name).display().to_string();
    let copy = |name: &str, folder: &str| {
        let out = format!("{folder}-out");
        lab.ok(&["instance", "cp", &path(name), &format!("{vm}:/{folder}")]);
        lab.ok(&["instance", "cp", &format!("{vm}:/{folder}/{name}"), &path(&out)]);
        assert!(same(&lab.root.join(name), &lab.root.join(out).join(name)), "{name} by {folder}");
    };
    for (name, length) in [("none", 0), ("slot", 256 << 10), ("more", (8 << 20) + 4097)] {
        random_file(&lab.root.join(name), length);
        copy(name, "first");
    }
    assert!(used());
    std::thread::scope(|scope| {
        scope.spawn(|| copy("more", "one"));
        scope.spawn(|| copy("more", "other"));
    });
    random_file(&lab.root.join("long"), 60 << 20);
    let begin = || {
        lab.exec(&vm, "rm -rf /long");
        let words = ["instance", "cp", &path("long"), &format!("{vm}:/long")];
        let mut copying = lab.mvm(&words);
        let copying = copying.stderr(Stdio::piped()).spawn().expect("mvm");
        lab.exec(&vm, "while ! test -s /long/long; do sleep 0.05; done");
        copying
    };
    let asleep = begin();
    lab.ok(&["instance", "sleep", &vm]);
    let ended = asleep.wait_with_output().expect("mvm");
    assert!(!ended.status.success(), "a copy into a machine that sleeps: {}", text(&ended.stderr));
    lab.ok(&["instance", "wake", &vm]);
    copy("more", "woken");
    let orphan = begin();
    lab.kill_agent();
    let ended = orphan.wait_with_output().expect("mvm");
    assert!(!ended.status.success(), "a copy whose agent is gone: {}", text(&ended.stderr));
    copy("more", "adopted");
    lab.ok(&["instance", "destroy", &vm]);
    assert!(!window.exists());
    lab.ok(&["pool", "destroy", "ci/small"]);
}
