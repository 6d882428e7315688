//! What the tests share: a store of their own, and the flake of Debian's packages, fetched once.
#![allow(dead_code, reason = "each test binary uses a part")]

use mvm_image::{
    BuildRequest, GuestBinary, ImageStore, KernelImport, KernelInfo, Progress, Sandbox, Tools,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tokio::sync::mpsc;

/// A stand-in for the guest binary: the store takes it as bytes and does not run it.
pub const GUEST: &[u8] = b"\x7fELF not run in these tests";

pub fn guest() -> GuestBinary {
    GuestBinary::new(GUEST)
}

fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-cache")
}

/// Returns a directory made by `nix/debian-pkgs/fetch`: `MVM_TEST_DEBIAN_PKGS`, or one fetched now.
pub fn debian_pkgs() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("MVM_TEST_DEBIAN_PKGS") {
            return dir.into();
        }
        let dir = cache().join("debian-pkgs-small");
        let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../nix/debian-pkgs/fetch");
        let status = Command::new(fetch).arg(&dir).args(["bash", "coreutils"]).status().unwrap();
        assert!(status.success(), "fetch: {status}");
        dir.canonicalize().unwrap()
    })
}

/// Returns a store in a fresh directory, and that directory, which is removed when dropped.
pub fn store() -> (ImageStore, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (relaxed(ImageStore::open(dir.path(), guest())), dir)
}

/// Allows builds outside of Nix's sandbox: Debian's packages are unpacked by the host's tools.
pub fn relaxed(store: mvm_image::Result<ImageStore>) -> ImageStore {
    store.unwrap().with_sandbox(Sandbox::Relaxed)
}

pub fn store_with(tools: Tools) -> (ImageStore, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (relaxed(ImageStore::open_with(dir.path(), guest(), tools)), dir)
}

/// Fetches the distribution's kernel through the store.
pub async fn fetched_kernel(store: &ImageStore) -> KernelInfo {
    store.kernel_fetch(&quiet()).await.unwrap()
}

/// Returns the distribution's kernel, fetched once for all tests into `target/test-cache`.
pub async fn debian_kernel(store: &ImageStore) -> KernelInfo {
    static FETCHED: tokio::sync::OnceCell<KernelInfo> = tokio::sync::OnceCell::const_new();
    let fetch = || async {
        let shared = ImageStore::open(&cache().join("kernel"), guest()).unwrap();
        match shared.default_kernel().unwrap() {
            Some(kernel) => kernel,
            None => fetched_kernel(&shared).await,
        }
    };
    let kernel = FETCHED.get_or_init(fetch).await;
    store.kernel_import(&kernel.path, modules_of(kernel)).await.unwrap()
}

/// Returns import options that take the modules of a kernel in some store.
pub fn modules_of(kernel: &KernelInfo) -> KernelImport {
    let modules = kernel.dir.join("modules/lib/modules").join(&kernel.version);
    KernelImport { initrd_modules: Some(modules), name: None }
}

/// Returns a sender without a receiver.
pub fn quiet() -> mpsc::UnboundedSender<Progress> {
    mpsc::unbounded_channel().0
}

/// Writes a flake with these outputs, in which `pkgs` is bound.
pub fn flake(dir: &Path, outputs: &str) -> String {
    let text = format!(
        "{{ inputs.nixpkgs.url = \"github:NixOS/nixpkgs/nixos-24.05\";\n\
         outputs = {{ self, nixpkgs }}: let pkgs = nixpkgs.legacyPackages.x86_64-linux; in\n\
         {{ packages.x86_64-linux = {{ {outputs} }}; }}; }}"
    );
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("flake.nix"), text).unwrap();
    dir.to_str().unwrap().to_owned()
}

pub const SMALL: &str =
    "small = pkgs.buildEnv { name = \"small\"; paths = with pkgs; [ bash coreutils ]; };";

/// Returns a request for `profile` of a flake, with nixpkgs overridden.
pub fn request(flake: &str, profile: &str) -> BuildRequest {
    let nixpkgs = format!("path:{}", debian_pkgs().display());
    BuildRequest {
        flake: flake.to_owned(),
        profile: profile.to_owned(),
        override_inputs: BTreeMap::from([("nixpkgs".to_owned(), nixpkgs)]),
        kernel: None,
    }
}

/// Returns the names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|n| n.into_string().unwrap()).collect();
    names.sort();
    names
}
