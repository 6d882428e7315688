//! Disks, and what happens when there is no space for them.

mod common;

use common::*;
use mvm_image::ImageStore;
use mvm_model::{Code, Mib};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// A small tmpfs of the test's own, unmounted on drop. Needs root.
struct Small(tempfile::TempDir);

impl Small {
    fn new(mib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={mib}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "mvm-test"]).arg(dir.path());
        assert!(mount.status().unwrap().success(), "this test mounts a tmpfs: run it as root");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_nothing_is_left() {
    let (big, _root) = store();
    let kernel = debian_kernel(&big).await;
    let opts = modules_of(&kernel);
    let flakes = tempfile::tempdir().unwrap();
    let request = request(&flake(flakes.path(), SMALL), "small");

    // There is space for the kernel but not for the image: the build is refused at its start.
    let small = Small::new(80);
    let store = relaxed(ImageStore::open(small.path(), guest()));
    store.kernel_import(&kernel.path, opts.clone()).await.unwrap();
    let error = store.build(&request, &quiet()).await.unwrap_err();
    assert_eq!(error.code(), Code::NoSpace, "{error}");
    assert!(error.to_string().contains("MiB are free"), "{error}");
    assert!(names(&small.path().join("images")).is_empty());

    // There is not even space for the kernel: the write itself fails.
    let tiny = Small::new(20);
    let store = relaxed(ImageStore::open(tiny.path(), guest()));
    let error = store.kernel_import(&kernel.path, opts).await.unwrap_err();
    assert_eq!(error.code(), Code::NoSpace, "{error}");
    assert!(names(&tiny.path().join("kernels")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_are_sparse_whole_file_systems() {
    let (store, root) = store();
    for round in 0..2 {
        for (kind, mib) in [("scratch", 4096), ("data", 2048)] {
            let to = root.path().join(format!("{kind}-{round}.raw"));
            let began = std::time::Instant::now();
            match kind {
                "scratch" => store.scratch_disk(Mib(mib), &to).await.unwrap(),
                _ => store.data_disk(Mib(mib), &to).await.unwrap(),
            }
            let meta = std::fs::metadata(&to).unwrap();
            println!("{kind} {mib} MiB: {:?}, {} KiB", began.elapsed(), meta.blocks() / 2);
            assert_eq!(meta.len(), mib << 20);
            assert!(meta.blocks() * 512 < 8 << 20, "{} blocks", meta.blocks());
            let check = Command::new("e2fsck").args(["-f", "-n"]).arg(&to).output().unwrap();
            assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
            let features = Command::new("dumpe2fs").arg("-h").arg(&to).output().unwrap();
            let features = String::from_utf8_lossy(&features.stdout).contains("has_journal");
            assert!(features, "{kind}");
        }
    }
    assert_eq!(
        store.scratch_disk(Mib(1), &root.path().join("x")).await.unwrap_err().code(),
        Code::Invalid
    );
    assert_eq!(names(&root.path().join("disks")), ["data-2048", "scratch-journal-4096"]);

    let small = Small::new(1);
    let to = small.path().join("disk");
    let error = store.scratch_disk(Mib(4096), &to).await.unwrap_err();
    assert_eq!(error.code(), Code::NoSpace, "{error}");
    assert!(!to.exists());
}
