//! Kernels: the distribution's is fetched and imported, and files that are not kernels are refused.

mod common;

use common::*;
use mvm_image::{KernelImport, Platform};
use mvm_model::Code;

#[tokio::test(flavor = "multi_thread")]
async fn the_distributions_kernel_is_fetched_with_its_modules_in_order() {
    let (store, root) = store();
    let kernel = fetched_kernel(&store).await;
    println!("{kernel:#?}");
    assert!(kernel.version.ends_with("cloud-amd64"));
    assert_eq!(kernel.platform, Platform::Pci, "Debian's has no virtio-mmio on its command line");
    assert!(kernel.pvh && kernel.default);
    let names: Vec<&str> = kernel
        .modules
        .iter()
        .map(|m| m.rsplit('/').next().unwrap().trim_end_matches(".ko"))
        .collect();
    let at = |n: &str| names.iter().position(|x| *x == n).unwrap_or_else(|| panic!("{n}"));
    assert!(at("virtio_ring") < at("virtio") && at("virtio") < at("virtio_pci"));
    assert!(at("libcrc32c") < at("erofs"));
    for name in ["virtio_blk", "virtio_net", "virtio_console", "virtio-rng", "overlay"] {
        at(name);
    }
    let prefix = format!("lib/modules/{}/kernel/", kernel.version);
    for module in &kernel.modules {
        assert!(module.starts_with(&prefix), "{module}");
        assert!(
            std::fs::read(kernel.dir.join("modules").join(module)).unwrap().starts_with(b"\x7fELF")
        );
    }
    // Fetching again gives the same kernel, and nothing is left over.
    assert_eq!(fetched_kernel(&store).await.digest, kernel.digest);
    let mut there = ["default".to_owned(), kernel.digest.to_string()];
    there.sort();
    assert_eq!(common::names(&root.path().join("kernels")), there);

    // Without its modules the kernel cannot mount a root, and the import says so.
    let error = store.kernel_import(&kernel.path, KernelImport::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::KernelUnfit);
    assert!(error.to_string().contains("erofs"), "{error}");

    // Importing the bare vmlinux with its modules gives the same kernel.
    let modules = kernel.dir.join("modules/lib/modules").join(&kernel.version);
    let opts = KernelImport { initrd_modules: Some(modules), name: Some("mine".to_owned()) };
    assert_eq!(store.kernel_import(&kernel.path, opts).await.unwrap().digest, kernel.digest);

    assert_eq!(store.kernel(&kernel.digest.to_string()[..8]).unwrap().digest, kernel.digest);
    assert_eq!(store.kernel("nosuch").unwrap_err().code(), Code::KernelMissing);
    store.kernel_remove(&kernel.name).unwrap();
    assert!(store.default_kernel().unwrap().is_none());
    assert!(common::names(&root.path().join("kernels")).is_empty());
}

#[tokio::test]
async fn what_is_no_kernel_is_refused_by_name() {
    let (store, root) = store();
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("notes.txt");
    std::fs::write(&text, "not a kernel\n").unwrap();
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    for (file, word) in [
        (text.as_path(), "text"),
        (empty.as_path(), "empty"),
        (dir.path(), "directory"),
        (std::path::Path::new("/bin/true"), "ELF program"),
        (std::path::Path::new("/etc/passwd"), "text"),
    ] {
        let error = store.kernel_import(file, KernelImport::default()).await.unwrap_err();
        assert_eq!(error.code(), Code::NotAKernel, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.to_string().contains(file.to_str().unwrap()));
    }
    let absent = dir.path().join("absent");
    let error = store.kernel_import(&absent, KernelImport::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::Io);
    assert!(common::names(&root.path().join("kernels")).is_empty());
}
