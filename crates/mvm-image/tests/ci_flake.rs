//! The specification's flake, unmodified: built offline, and its tools run out of the image.

mod common;

use common::*;
use mvm_image::Revision;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Directory with all of debian-pkgs: `MVM_TEST_DEBIAN_PKGS` or `target/test-cache/debian-pkgs`.
fn all_debian_pkgs() -> std::path::PathBuf {
    if let Some(dir) = std::env::var_os("MVM_TEST_DEBIAN_PKGS") {
        return dir.into();
    }
    let dir = repository().join("target/test-cache/debian-pkgs");
    let began = Instant::now();
    let status = Command::new(repository().join("nix/debian-pkgs/fetch")).arg(&dir).status();
    assert!(status.unwrap().success());
    println!("fetch {:?}", began.elapsed());
    dir.canonicalize().unwrap()
}

/// The image, mounted read-only with an overlay on a tmpfs, as a guest sees it; unmounted when
/// dropped. Needs root, and erofs and overlay in the host's kernel.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(revision: &Revision) -> Self {
        let mounted = Self(tempfile::tempdir().unwrap());
        let at = |name: &str| mounted.0.path().join(name).to_str().unwrap().to_owned();
        for name in ["lower", "rw", "root"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        mount(&["-t", "erofs", "-o", "loop,ro", revision.root.to_str().unwrap(), &at("lower")]);
        mount(&["-t", "tmpfs", "mvm-test", &at("rw")]);
        std::fs::create_dir(at("rw/upper")).unwrap();
        std::fs::create_dir(at("rw/work")).unwrap();
        let (lower, upper, work) = (at("lower"), at("rw/upper"), at("rw/work"));
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        mount(&["-t", "overlay", "-o", &options, "mvm-test", &at("root")]);
        mount(&["-t", "proc", "proc", &at("root/proc")]);
        mount(&["-t", "tmpfs", "mvm-test", &at("root/dev")]);
        for (name, minor) in [("null", "3"), ("zero", "5"), ("urandom", "9")] {
            let node = at(&format!("root/dev/{name}"));
            let made = Command::new("mknod").args(["-m", "666", &node, "c", "1", minor]).status();
            assert!(made.unwrap().success());
        }
        mounted
    }

    /// Runs a script in the image and returns what it printed.
    fn sh(&self, script: &str) -> String {
        let root = self.0.path().join("root");
        let mut chroot = Command::new("chroot");
        chroot.arg(root).args(["/bin/sh", "-ec", script]).env_clear();
        chroot.env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        let output = chroot.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {}\n{text}{errors}", output.status);
        text
    }
}

fn mount(args: &[&str]) {
    let status = Command::new("mount").args(args).status().unwrap();
    assert!(status.success(), "mount {args:?}: run this test as root");
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for name in ["root/dev", "root/proc", "root", "rw", "lower"] {
            let _ = Command::new("umount").arg("-l").arg(self.0.path().join(name)).status();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_specifications_flake_builds_unmodified_and_its_tools_work() {
    let (store, root) = store();
    debian_kernel(&store).await;
    let flake = repository().join("examples/ci-flake").canonicalize().unwrap();
    let mut request = request(flake.to_str().unwrap(), "ci-runner");
    let pkgs = format!("path:{}", all_debian_pkgs().display());
    request.override_inputs.insert("nixpkgs".to_owned(), pkgs);
    let began = Instant::now();
    let revision = store.build(&request, &quiet()).await.unwrap();
    println!("image {:?}, {} MiB", began.elapsed(), revision.size_bytes >> 20);
    let began = Instant::now();
    assert_eq!(store.build(&request, &quiet()).await.unwrap(), revision);
    println!("again {:?}", began.elapsed());
    assert_eq!(names(&root.path().join("images")).len(), 1);

    let image = Mounted::new(&revision);
    for (script, expected) in [
        (
            "for t in bash ls git curl wget make gcc node python3 docker jq ssh sshd; do \
          command -v $t >/dev/null || echo no $t; done",
            "",
        ),
        ("bash -c 'echo $BASH_VERSION'", "5."),
        ("git --version", "git version"),
        ("curl --version", "https"),
        ("wget --version", "GNU Wget"),
        ("docker --version", "Docker version"),
        ("echo '{\"a\":[1,2]}' | jq -c '.a[1]'", "2"),
        ("node -e 'console.log(process.version, 6*7)'", "42"),
        (
            "python3 -c 'import ssl,json,sqlite3; print(len(ssl.create_default_context().get_ca_certs())>50)'",
            "True",
        ),
        (
            "printf '#include <stdio.h>\\nint main(){puts(\"hello\");}' >/tmp/h.c; \
          printf 'h: h.c\\n\\tcc -O2 -o h h.c\\n' >/tmp/Makefile; make -C /tmp -s; /tmp/h",
            "hello",
        ),
        (
            "printf '#include <iostream>\\nint main(){std::cout<<\"plus\";}' >/tmp/p.cc; \
          c++ -o /tmp/p /tmp/p.cc; /tmp/p",
            "plus",
        ),
        (
            "mkdir -p /run/sshd; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; \
          $(command -v sshd) -t; echo fine",
            "fine",
        ),
        (
            "git init -q /tmp/r; cd /tmp/r; git config user.email a@b; git config user.name n; \
          echo x >f; git add f; git commit -qm one; git log --oneline | wc -l",
            "1",
        ),
        ("test -s /etc/ssl/certs/ca-bundle.crt; id -un; stat -c %a /tmp /root", "root\n1777\n700"),
        (
            "/usr/bin/env true; test -w /etc/passwd; ls -d /data /run /proc >/dev/null; echo ok",
            "ok",
        ),
    ] {
        let said = image.sh(script);
        assert!(said.contains(expected), "{script}: {said}");
        assert!(!expected.is_empty() || said.is_empty(), "{said}");
    }
}
