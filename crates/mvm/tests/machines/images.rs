//! Builds, revisions, rollback and collection.

use crate::lab::{FLAKE, Lab, nixpkgs, run, text};
use std::os::unix::fs::symlink;

fn digests(lab: &Lab) -> Vec<String> {
    let all = lab.json(&["image", "list"]);
    let digest = |image: &serde_json::Value| image["digest"].as_str().expect("digest").to_owned();
    all.as_array().expect("list").iter().map(digest).collect()
}

#[test]
fn a_pool_goes_back_to_an_earlier_build_and_unused_images_are_collected() {
    let lab = Lab::new("revs");
    lab.tenant_and_pool("ci", "70");
    let revision = |vm: &str| lab.json(&["instance", "info", vm])["revision"].clone();
    let create = || lab.ok(&["instance", "create", "ci/small"]).trim().to_owned();
    let old = revision(&create());
    lab.build("ci/small");
    assert_eq!(digests(&lab).len(), 1, "the same inputs give the same image");

    let changed = FLAKE.replace("openssh busybox", "openssh busybox gnumake");
    std::fs::write(lab.root.join("flake/flake.nix"), changed).expect("flake");
    lab.build("ci/small");
    let new = revision(&create());
    assert_ne!(old, new);
    let revisions = lab.json(&["pool", "revisions", "ci/small"]);
    assert_eq!(revisions.as_array().map(Vec::len), Some(2), "{revisions}");

    lab.ok(&["pool", "rollback", "ci/small"]);
    let back = create();
    assert_eq!(revision(&back), old);
    let roots = || {
        let links = std::fs::read_dir("/nix/var/nix/gcroots/auto").expect("roots").flatten();
        let ours = |link: std::path::PathBuf| link.starts_with(&lab.root);
        links.filter(|link| std::fs::read_link(link.path()).is_ok_and(ours)).count()
    };
    assert!(roots() > 0, "what the builds have left");
    lab.ok(&["image", "gc"]);
    assert_eq!((digests(&lab).len(), roots()), (2, 0), "both are revisions of the pool");
    // The instance really boots the image that the pool was rolled back to.
    lab.ok(&["instance", "start", &back]);
    assert_eq!(lab.exec(&back, "type make >/dev/null 2>&1 || echo none").trim(), "none");
    lab.ok(&["pool", "destroy", "ci/small"]);
    let done = lab.ok(&["image", "gc"]);
    assert!(done.contains("left: 0 images") && done.contains("nix-collect-garbage"), "{done}");
    assert_eq!(digests(&lab), [""; 0]);
}

#[test]
fn without_nix_a_build_says_how_to_get_it() {
    let lab = Lab::new("nonix");
    let programs = lab.root.join("bin");
    std::fs::create_dir(&programs).expect("directory");
    for folder in ["/usr/sbin", "/usr/bin"] {
        for entry in std::fs::read_dir(folder).expect("programs").flatten() {
            let name = entry.file_name();
            if !name.to_string_lossy().starts_with("nix") {
                let _ = symlink(entry.path(), programs.join(name));
            }
        }
    }
    lab.tenant_and_unbuilt_pool("ci", "71");
    lab.kill_agent();
    let build = lab
        .mvm(&["pool", "build", "ci/small", "--override-input", &nixpkgs()])
        .env("PATH", &programs)
        .output()
        .expect("mvm");
    let words = String::from_utf8_lossy(&build.stderr);
    assert!(!build.status.success());
    assert!(words.contains("error[nix_missing]") && words.contains("nix-bin"), "{words}");
}

#[test]
fn a_kernel_that_a_pool_is_built_with_stays_and_two_have_not_one_name() {
    let lab = Lab::new("kernels");
    let kernels = || lab.json(&["kernel", "list"]).as_array().expect("list").clone();
    let known = kernels().remove(0);
    let word = |of: &serde_json::Value, what: &str| of[what].as_str().expect("text").to_owned();
    let (name, digest) = (word(&known, "name"), word(&known, "digest"));
    let dir = lab.root.join("kernels").join(&digest);
    let modules = dir.join("modules/lib/modules").join(word(&known, "version"));
    // Importing the same kernel again changes nothing; another kernel is a new one, even under the
    // same name.
    let mut bytes = std::fs::read(dir.join("vmlinux")).expect("kernel");
    let file = lab.root.join("vmlinux");
    std::fs::write(&file, &bytes).expect("kernel");
    let (file, modules) = (file.to_str().expect("path"), modules.to_str().expect("path"));
    let import = |name: &str| {
        let words = ["kernel", "import", file, "--modules", modules, "--name", name];
        words.map(str::to_owned)
    };
    let words = import(&name);
    let again = words.each_ref().map(String::as_str);
    lab.ok(&again);
    bytes.push(0);
    std::fs::write(file, &bytes).expect("kernel");
    lab.refused(&again, "exists");
    lab.tenant_and_unbuilt_pool("ci", "76");
    lab.refused(&["kernel", "remove", &name], "in_use");
    let words = import("other");
    lab.ok(&words.each_ref().map(String::as_str));
    // No pool names the removed kernel, and another one becomes the default.
    lab.ok(&["kernel", "remove", &name]);
    let left = kernels();
    assert_eq!(
        (left.len(), &left[0]["name"], &left[0]["default"]),
        (1, &"other".into(), &true.into())
    );
    lab.refused(&["kernel", "remove", "other"], "in_use");
    lab.ok(&["pool", "destroy", "ci/small"]);
    lab.ok(&["kernel", "remove", "other"]);
    assert!(kernels().is_empty());
    lab.refused(&["kernel", "remove", "../x y"], "kernel_missing");
    lab.ok(&["tenant", "destroy", "ci"]);
}

#[test]
fn a_build_says_whose_a_flake_is_and_what_of_it_is_copied_and_not_run() {
    let lab = Lab::new("whose");
    let flake = lab.root.join("flake");
    let with_init = r#"{
      outputs = { self }: {
        packages.x86_64-linux.small = derivation {
          name = "init-mvm-test"; system = "x86_64-linux"; builder = "/bin/sh"; __noChroot = true;
          PATH = "/usr/bin:/bin"; args = [ "-c" "mkdir -p $out/sbin $out/bin && echo > $out/sbin/init" ];
        };
      };
    }"#;
    std::fs::write(flake.join("flake.nix"), with_init).expect("flake");
    std::fs::write(flake.join(".env"), "TOKEN=x").expect("file");
    lab.tenant_and_unbuilt_pool("ci", "89");
    let build = || {
        let output = lab.mvm(&["pool", "build", "ci/small"]).output().expect("mvm");
        (output.status.code(), text(&output.stderr))
    };
    let words = build().1;
    for said in
        ["1 file, ", "all users can read", "left out, as secrets", ": .env", "sbin/init is not run"]
    {
        assert!(words.contains(said), "{said} is not said: {words}");
    }
    // Now the flake is another user's repository.
    std::fs::remove_file(flake.join(".env")).expect("remove");
    let git = |words: &[&str]| {
        let mut git = std::process::Command::new("git");
        git.arg("-C").arg(&flake).args(["-c", "user.name=x", "-c", "user.email=x@x.invalid"]);
        run(git.args(words));
    };
    git(&["init", "-q"]);
    let foreign = |reference: &str| {
        lab.ok(&["pool", "update", "ci/small", "--flake", reference]);
        run(std::process::Command::new("chown").args(["-R", "nobody"]).arg(&flake));
        let (status, words) = build();
        assert_eq!(status, Some(1), "{words}");
        let owner = format!("{} is a git repository of nobody", flake.display());
        for said in ["error[flake_foreign]", &owner, "root (uid 0)", "safe.directory", "path:"] {
            assert!(words.contains(said), "{said} is not said: {words}");
        }
        assert!(!words.contains("--no-index"), "{words}");
        run(std::process::Command::new("chown").args(["-R", "root"]).arg(&flake));
    };
    // Nix runs other git commands in a repository without commits than in one with commits.
    let path = flake.display().to_string();
    git(&["add", "-A"]);
    foreign(&path);
    git(&["commit", "-q", "-m", "x"]);
    foreign(&path);
    foreign(&format!("git+file://{path}"));
    let (status, words) = build();
    assert_eq!(status, Some(0), "our own is built: {words}");
    lab.ok(&["pool", "destroy", "ci/small"]);
}
