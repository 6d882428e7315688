//! The store's directories, and what all its parts share: the bottom of the store.

use crate::error::{At, Result};
use crate::types::{GuestBinary, Sandbox, Tools};
use crate::workdir;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images, kernels and disk templates under one state root. Cheap to clone; several processes may
/// have the same root open.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: PathBuf,
    pub(crate) guest: GuestBinary,
    pub(crate) tools: Tools,
    pub(crate) sandbox: Sandbox,
    /// Held while an image is assembled.
    pub(crate) assembling: Arc<tokio::sync::Mutex<()>>,
}

impl ImageStore {
    /// Opens the store under `root` (made if absent: `images/`, `kernels/`, `disks/`) and removes
    /// what interrupted builds left. Error: `io`.
    pub fn open(root: &Path, guest: GuestBinary) -> Result<Self> {
        Self::open_with(root, guest, Tools::default())
    }

    /// Like [`ImageStore::open`], with other programs than those in `PATH`.
    pub fn open_with(root: &Path, guest: GuestBinary, tools: Tools) -> Result<Self> {
        let root = std::path::absolute(root).at("resolve", root)?;
        let (sandbox, assembling) = (Sandbox::default(), Arc::default());
        let store = Self { root, guest, tools, sandbox, assembling };
        for dir in store.dirs() {
            let mut maker = std::fs::DirBuilder::new();
            maker.recursive(true).mode(0o700).create(&dir).at("create", &dir)?;
            for gone in workdir::sweep(&dir, false)? {
                tracing::info!(name = gone.digest, bytes = gone.bytes, "removed a leftover");
            }
        }
        Ok(store)
    }

    /// Sets what builders may do in this store's builds.
    pub fn with_sandbox(self, sandbox: Sandbox) -> Self {
        Self { sandbox, ..self }
    }

    pub(crate) fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn kernels_dir(&self) -> PathBuf {
        self.root.join("kernels")
    }

    pub(crate) fn disks_dir(&self) -> PathBuf {
        self.root.join("disks")
    }

    /// The directory in which Nix is shown the builders' users; empty for everybody but Nix.
    pub(crate) fn build_users_dir(&self) -> PathBuf {
        self.root.join("build-users")
    }

    /// The directories that hold work that may be interrupted.
    pub(crate) fn dirs(&self) -> [PathBuf; 3] {
        [self.images_dir(), self.kernels_dir(), self.disks_dir()]
    }
}
