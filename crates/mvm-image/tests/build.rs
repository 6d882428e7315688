//! Real builds with the real Nix: of packages from Debian's archive, offline.

mod common;

use common::*;
use mvm_image::{GuestBinary, ImageStore, Progress, Tools};
use mvm_model::Code;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_becomes_an_image_and_the_second_build_finds_it() {
    let (store, root) = store();
    let kernel = debian_kernel(&store).await;
    let flakes = tempfile::tempdir().unwrap();
    let flake = flake(flakes.path(), SMALL);
    let request = request(&flake, "small");

    let (tx, mut rx) = mpsc::unbounded_channel();
    let began = Instant::now();
    let revision = store.build(&request, &tx).await.unwrap();
    println!("first build {:?}, {} MiB", began.elapsed(), revision.size_bytes >> 20);
    let mut stages = Vec::new();
    while let Ok(progress) = rx.try_recv() {
        if let Progress::Stage { name, .. } = progress {
            stages.push(name);
        }
    }
    assert_eq!(stages, ["check", "flake", "nix", "closure", "stage", "erofs", "initrd", "publish"]);
    assert_eq!(revision.kernel_digest, kernel.digest);
    assert_eq!(revision.platform, kernel.platform);
    assert!(revision.closure.contains(&revision.out_path));
    assert_eq!(names(&revision.dir), ["initrd", "manifest.json", "root.erofs", "vmlinux"]);
    assert!(!Path::new(&flake).join("flake.lock").exists(), "the user's folder stays as it was");

    let began = Instant::now();
    let again = store.build(&request, &quiet()).await.unwrap();
    println!("second build {:?}", began.elapsed());
    assert_eq!(again, revision);
    assert_eq!(names(&root.path().join("images")), [revision.digest.to_string()]);
    assert_eq!(store.get(&revision.short()).unwrap(), revision);
    assert_eq!(store.get("0123456789ab").unwrap_err().code(), Code::RevisionMissing);

    // Another guest binary gives another image, of the same tree.
    let other = relaxed(ImageStore::open(root.path(), GuestBinary::new(b"another")));
    let changed = other.build(&request, &quiet()).await.unwrap();
    assert_ne!(changed.digest, revision.digest);
    assert_eq!(store.list().unwrap().len(), 2);

    // Garbage collection keeps what is in use, and removes leftovers.
    std::fs::create_dir(root.path().join("images/.tmp-killed")).unwrap();
    let in_use = BTreeSet::from([revision.digest]);
    let would = store.remove_unused(&in_use, true).unwrap();
    assert_eq!(store.list().unwrap().len(), 2);
    let removed = store.remove_unused(&in_use, false).unwrap();
    assert_eq!(would, removed);
    let digests: BTreeSet<_> = removed.iter().map(|r| r.digest.as_str()).collect();
    assert_eq!(digests, BTreeSet::from([".tmp-killed", &changed.digest.to_string()]));
    assert!(removed.iter().any(|r| r.bytes > 1 << 20));
    assert_eq!(names(&root.path().join("images")), [revision.digest.to_string()]);
    store.kernel_remove(&kernel.name).unwrap();
    assert!(revision.kernel.is_file(), "a revision keeps its own kernel");
    let error = store.build(&request, &quiet()).await.unwrap_err();
    assert_eq!(error.code(), Code::KernelMissing);
    assert!(error.to_string().contains("mvm kernel fetch"));
}

#[tokio::test]
async fn what_a_killed_process_left_goes_at_the_next_start() {
    let (store, root) = store();
    for dir in ["images", "kernels", "disks"] {
        let tree = root.path().join(dir).join(".tmp-abc123/tree/nix/store");
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::write(tree.join("half"), "written").unwrap();
    }
    drop(store);
    relaxed(ImageStore::open(root.path(), guest()));
    for dir in ["images", "kernels", "disks"] {
        assert!(names(&root.path().join(dir)).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_builds_of_the_same_give_one_image() {
    let (store, root) = store();
    debian_kernel(&store).await;
    // Two stores on one root stand in for two processes: they share no lock in memory.
    let other = relaxed(ImageStore::open(root.path(), guest()));
    let flakes = tempfile::tempdir().unwrap();
    let request = request(&flake(flakes.path(), SMALL), "small");
    let (tx, tx2) = (quiet(), quiet());
    let (a, b) = tokio::join!(store.build(&request, &tx), other.build(&request, &tx2));
    assert_eq!(a.unwrap().digest, b.unwrap().digest);
    assert_eq!(names(&root.path().join("images")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_dropped_leaves_nothing() {
    let (store, root) = store();
    debian_kernel(&store).await;
    let flakes = tempfile::tempdir().unwrap();
    let request = request(&flake(flakes.path(), SMALL), "small");
    for ms in [5, 100, 400, 900, 1500, 2500] {
        let progress = quiet();
        let build = store.build(&request, &progress);
        if tokio::time::timeout(Duration::from_millis(ms), build).await.is_ok() {
            break;
        }
        // A thread that was staging, if any, ends soon and removes its directory.
        let deadline = Instant::now() + Duration::from_secs(30);
        while names(&root.path().join("images")).iter().any(|n| n.starts_with(".tmp-")) {
            assert!(Instant::now() < deadline, "{:?}", names(&root.path().join("images")));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let revision = store.build(&request, &quiet()).await.unwrap();
    assert_eq!(names(&root.path().join("images")), [revision.digest.to_string()]);
}

#[tokio::test]
async fn an_absent_nix_is_said_first() {
    let tools = Tools { nix: "/nonexistent/nix".into(), ..Tools::default() };
    let (store, root) = store_with(tools);
    let error = store.build(&request("/nonexistent", "x"), &quiet()).await.unwrap_err();
    assert_eq!(error.code(), Code::NixMissing);
    assert!(error.to_string().contains("apt-get install nix-bin"), "{error}");
    assert!(names(&root.path().join("images")).is_empty());
}

#[tokio::test]
async fn an_absent_flake_is_named() {
    let (store, _root) = store();
    let flakes = tempfile::tempdir().unwrap();
    let empty = flakes.path().to_str().unwrap();
    for (flake, why) in [("/nonexistent/ci-flake", "No such file"), (empty, "no flake.nix")] {
        let error = store.build(&request(flake, "x"), &quiet()).await.unwrap_err();
        assert_eq!(error.code(), Code::FlakeMissing);
        assert!(error.to_string().contains(flake) && error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn odd_names_never_reach_nix() {
    let (store, _root) = store();
    let flakes = tempfile::tempdir().unwrap();
    let flake = flake(flakes.path(), SMALL);
    for profile in ["", "-v", "a#b", "a b", "a\nb", "$(id)", "a;b"] {
        let error = store.build(&request(&flake, profile), &quiet()).await.unwrap_err();
        assert_eq!(error.code(), Code::Invalid, "{profile:?}");
    }
    let mut request = request(&flake, "small");
    request.override_inputs.insert("--eval".to_owned(), "github:a/b".to_owned());
    assert_eq!(store.build(&request, &quiet()).await.unwrap_err().code(), Code::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_profile_lists_those_that_exist() {
    let (store, root) = store();
    let flakes = tempfile::tempdir().unwrap();
    let flake = flake(flakes.path(), &format!("{SMALL} other = pkgs.bash;"));
    let error = store.build(&request(&flake, "smal"), &quiet()).await.unwrap_err();
    assert_eq!(error.code(), Code::ProfileMissing, "{error}");
    assert!(error.to_string().contains("`smal`; it has: other, small"), "{error}");
    assert!(names(&root.path().join("images")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_error_comes_in_nixs_own_words() {
    let (store, root) = store();
    let flakes = tempfile::tempdir().unwrap();
    let flake = flake(flakes.path(), "broken = pkgs.buildEnv { name = nosuchvariable; };");
    let error = store.build(&request(&flake, "broken"), &quiet()).await.unwrap_err();
    assert_eq!(error.code(), Code::FlakeEvaluationFailed);
    let text = error.to_string();
    assert!(text.contains("error: undefined variable 'nosuchvariable'"), "{text}");
    assert!(text.lines().count() < 45);
    assert!(names(&root.path().join("images")).is_empty());
}

/// A build that would fail again the next time is not retried, whatever Nix calls the error.
#[tokio::test(flavor = "multi_thread")]
async fn what_nix_cannot_evaluate_is_told_from_what_it_cannot_build() {
    let (store, _root) = store();
    debian_kernel(&store).await;
    let flakes = tempfile::tempdir().unwrap();
    let wrong = [
        "import /etc/hostname",
        "builtins.readFile /etc/hostname",
        "import <nixpkgs> { }",
        "import ./nothere.nix",
        "1 + \"a\"",
        "(1 2)",
        "\"text\"",
        "builtins.head [ ]",
        "builtins.fromJSON \"{\"",
        "derivation { name = \"x\"; }",
        "derivation { name = \"x y\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; }",
        "builtins.storePath /nix/store/x",
    ];
    let outputs = wrong.iter().enumerate().map(|(n, text)| format!("w{n} = {text};"));
    let flake = flake(flakes.path(), &outputs.collect::<String>());
    for (n, text) in wrong.iter().enumerate() {
        let error = store.build(&request(&flake, &format!("w{n}")), &quiet()).await.unwrap_err();
        assert_eq!(error.code(), Code::FlakeEvaluationFailed, "{text}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_builder_shows_its_log() {
    let (store, _root) = store();
    debian_kernel(&store).await;
    let flakes = tempfile::tempdir().unwrap();
    let outputs = "bad = derivation { name = \"bad\"; system = \"x86_64-linux\"; __noChroot = true;
        builder = \"/bin/sh\"; args = [ \"-c\" \"echo the compiler is on fire; exit 3\" ]; };";
    let flake = flake(flakes.path(), outputs);
    let (tx, mut rx) = mpsc::unbounded_channel();
    let error = store.build(&request(&flake, "bad"), &tx).await.unwrap_err();
    assert_eq!(error.code(), Code::FlakeBuildFailed);
    assert!(error.to_string().contains("the compiler is on fire"), "{error}");
    let mut seen = false;
    while let Ok(progress) = rx.try_recv() {
        seen |= matches!(progress, Progress::Line(l) if l.contains("the compiler is on fire"));
    }
    assert!(seen, "and shows it while it builds");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flakes_own_kernel_is_taken() {
    let (source, _root) = store();
    let debian = debian_kernel(&source).await;
    let flakes = tempfile::tempdir().unwrap();
    // A package with vmlinux and lib/modules, as nixpkgs' kernels are.
    let package = flakes.path().join("kernel");
    std::fs::create_dir(&package).unwrap();
    std::fs::copy(&debian.path, package.join("vmlinux")).unwrap();
    let tree = debian.dir.join("modules/lib");
    let copied = std::process::Command::new("cp").arg("-r").args([&tree, &package]).status();
    assert!(copied.unwrap().success());
    let outputs = format!(
        "{SMALL} kernel = derivation {{ name = \"own-kernel\"; system = \"x86_64-linux\";
         builder = \"/bin/sh\"; __noChroot = true; PATH = \"/bin:/usr/bin\";
         args = [ \"-c\" \"cp -r ${{./kernel}} $out\" ]; }};"
    );
    let flake = flake(flakes.path(), &outputs);
    let (store, _root) = store();
    let revision = store.build(&request(&flake, "small"), &quiet()).await.unwrap();
    let kernels = store.kernels().unwrap();
    assert_eq!(kernels.len(), 1);
    assert!(kernels[0].name.ends_with("own-kernel"));
    assert_eq!(revision.kernel_digest, kernels[0].digest);
    assert_eq!(kernels[0].modules, debian.modules);
    let again = store.build(&request(&flake, "small"), &quiet()).await.unwrap();
    assert_eq!(again, revision);
}
