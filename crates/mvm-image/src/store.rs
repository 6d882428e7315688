//! The image store: what it offers, over the modules that do it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::Result;
use crate::types::{
    BuildRequest, GuestBinary, KernelImport, KernelInfo, Progress, Removed, Revision, Tools,
};

/// Images, kernels and disk templates under one state root. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ImageStore {
    pub(crate) root: PathBuf,
    pub(crate) guest: GuestBinary,
    pub(crate) tools: Tools,
}

impl ImageStore {
    /// Opens the store under `root` (made if absent: `images/`, `kernels/`, `disks/`) and removes
    /// what interrupted builds left.
    pub fn open(root: &Path, guest: GuestBinary) -> Result<Self> {
        Self::open_with(root, guest, Tools::default())
    }
    /// [`ImageStore::open`] with other programs than those in `PATH`.
    pub fn open_with(_root: &Path, _guest: GuestBinary, _tools: Tools) -> Result<Self> {
        todo!()
    }
    /// Builds the flake's profile into a revision, or finds it built already.
    pub async fn build(
        &self,
        _req: &BuildRequest,
        _progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<Revision> {
        todo!()
    }
    /// The revision with this digest, or a prefix of it that only one has.
    pub fn get(&self, _digest: &str) -> Result<Revision> {
        todo!()
    }
    /// All whole revisions, newest first.
    pub fn list(&self) -> Result<Vec<Revision>> {
        todo!()
    }
    /// Removes revisions whose full digests are not `in_use`, and leftovers of interrupted builds.
    pub fn remove_unused(
        &self,
        _in_use: &BTreeSet<String>,
        _dry_run: bool,
    ) -> Result<Vec<Removed>> {
        todo!()
    }
    /// Takes a vmlinux or bzImage into the store. The first kernel becomes the default.
    pub async fn kernel_import(&self, _file: &Path, _opts: KernelImport) -> Result<KernelInfo> {
        todo!()
    }
    /// Downloads the distribution's cloud kernel, unpacks and imports it, and makes it the default.
    pub async fn kernel_fetch(
        &self,
        _progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<KernelInfo> {
        todo!()
    }
    /// All kernels, by name.
    pub fn kernels(&self) -> Result<Vec<KernelInfo>> {
        todo!()
    }
    /// The kernel with this name, digest or prefix of a digest.
    pub fn kernel(&self, _name_or_digest: &str) -> Result<KernelInfo> {
        todo!()
    }
    /// The kernel of builds that name none; `None` if the store has no kernel.
    pub fn default_kernel(&self) -> Result<Option<KernelInfo>> {
        todo!()
    }
    /// Makes a kernel the default.
    pub fn set_default_kernel(&self, _name_or_digest: &str) -> Result<KernelInfo> {
        todo!()
    }
    /// Removes a kernel; revisions keep their own copy, so none is harmed.
    pub fn kernel_remove(&self, _name_or_digest: &str) -> Result<KernelInfo> {
        todo!()
    }
    /// Puts a fresh ext4 disk without a journal, `mib` MiB, sparse, at `to` (must not exist).
    pub async fn scratch_disk(&self, _mib: u64, _to: &Path) -> Result<()> {
        todo!()
    }
    /// Puts a fresh journalled ext4 disk, `mib` MiB, sparse, at `to` (must not exist).
    pub async fn data_disk(&self, _mib: u64, _to: &Path) -> Result<()> {
        todo!()
    }
}
