//! The image store's public methods, carried out by the modules below.

use crate::disk::Purpose;
use crate::error::Result;
use crate::layout::ImageStore;
use crate::transfer::Incoming;
use crate::types::{BuildRequest, KernelImport, KernelInfo, Progress, Removed, Revision};
use crate::{apt, build, disk, kernel, nix, revision, transfer, workdir};
use mvm_model::{Digest, Mib};
use std::collections::BTreeSet;
use std::path::Path;
use tokio::sync::mpsc;

impl ImageStore {
    /// Builds the flake's profile into a revision, or finds it built already.
    ///
    /// Errors: `nix_missing`, `flake_missing`, `profile_missing`, `flake_build_failed`,
    /// `sandbox_unavailable`, `sandbox_refused`, `kernel_missing`, `no_space`, `invalid`,
    /// `tool_missing`. Dropping the future ends the programs that it runs and leaves nothing
    /// behind.
    pub async fn build(
        &self,
        req: &BuildRequest,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<Revision> {
        build::build(self, req, progress).await
    }

    /// Returns the revision with this digest, or with a prefix of it (four digits or more) that
    /// only one has. Errors: `revision_missing`, `ambiguous`, `image_damaged`.
    pub fn get(&self, digest: &str) -> Result<Revision> {
        revision::find(self, digest)
    }

    /// Returns all complete revisions, newest first.
    pub fn list(&self) -> Result<Vec<Revision>> {
        revision::list(self)
    }

    /// Returns what another node must know of an image to receive it. Blocks, since files of an
    /// image that was built before parts had digests are hashed now. Errors: those of
    /// [`ImageStore::get`].
    pub fn manifest(&self, digest: &str) -> Result<Vec<u8>> {
        transfer::manifest(self, digest)
    }

    /// Begins to receive the image `digest`, or resumes it. `manifest` comes from the sending node
    /// and must agree with `digest`, and with `content` if that is known. Blocks. Errors:
    /// `image_refused` (the manifest does not describe that image), `busy` (another task receives
    /// it already), `no_space`, `io`.
    pub fn receive(
        &self,
        manifest: &[u8],
        digest: &str,
        content: Option<&str>,
    ) -> Result<Incoming> {
        transfer::receive(self, manifest, digest, content)
    }

    /// Removes revisions whose digests are not `in_use`, and leftovers of interrupted builds.
    /// Returns what was removed, or with `dry_run` would be, with its bytes on disk. The caller
    /// must make sure that no build whose result it wants is under way.
    pub fn remove_unused(&self, in_use: &BTreeSet<Digest>, dry_run: bool) -> Result<Vec<Removed>> {
        let mut removed = Vec::new();
        for dir in self.dirs() {
            removed.extend(workdir::sweep(&dir, dry_run)?);
        }
        let unused = self.list()?.into_iter().filter(|r| !in_use.contains(&r.digest));
        for revision in unused {
            let bytes = workdir::disk_usage(&revision.dir);
            if !dry_run {
                workdir::remove(&revision.dir)?;
            }
            removed.push(Removed { digest: revision.digest.to_string(), bytes });
        }
        Ok(removed)
    }

    /// Removes stale links that builds left among the roots of Nix's garbage collector, and returns
    /// their number; with `dry_run`, only counts them.
    pub fn remove_stale_roots(&self, dry_run: bool) -> u64 {
        nix::roots::remove_stale(&self.images_dir(), dry_run)
    }

    /// Imports a vmlinux or bzImage into the store, with the modules it needs to mount its root.
    /// Importing the same kernel twice keeps one. The first kernel becomes the default.
    ///
    /// Errors: `not_a_kernel`, `kernel_compression`, `kernel_unfit` (lacks what a guest needs, and
    /// no modules were named), `invalid`, `exists` (another kernel has the name), `no_space`.
    pub async fn kernel_import(&self, file: &Path, opts: KernelImport) -> Result<KernelInfo> {
        kernel::import(self, file, opts, &file.display().to_string()).await
    }

    /// Downloads the distribution's cloud kernel, unpacks and imports it with its virtio and file
    /// system modules, and makes it the default. Nothing is installed on the host.
    ///
    /// Errors: `tool_missing`, `kernel_fetch_failed` (with apt's output), `no_space`.
    pub async fn kernel_fetch(
        &self,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<KernelInfo> {
        apt::fetch(self, progress).await
    }

    /// Returns all kernels, sorted by name.
    pub fn kernels(&self) -> Result<Vec<KernelInfo>> {
        kernel::list(self)
    }

    /// Returns the kernel with this name, digest, or prefix of a digest (four digits or more).
    /// Errors: `kernel_missing`, `ambiguous`.
    pub fn kernel(&self, name_or_digest: &str) -> Result<KernelInfo> {
        kernel::find(self, name_or_digest)
    }

    /// Returns the kernel for builds that name none; `None` if the store has no kernel.
    pub fn default_kernel(&self) -> Result<Option<KernelInfo>> {
        kernel::default(self)
    }

    /// Makes a kernel the default. Errors: `kernel_missing`, `ambiguous`.
    pub fn set_default_kernel(&self, name_or_digest: &str) -> Result<KernelInfo> {
        let kernel = self.kernel(name_or_digest)?;
        kernel::set_default(self, kernel.digest)?;
        Ok(KernelInfo { default: true, ..kernel })
    }

    /// Removes a kernel; revisions keep their own link, so none is harmed. If it was the default,
    /// the first remaining kernel by name becomes the default. Errors: `kernel_missing`,
    /// `ambiguous`.
    pub fn kernel_remove(&self, name_or_digest: &str) -> Result<KernelInfo> {
        kernel::remove(self, name_or_digest)
    }

    /// Makes a fresh sparse ext4 disk of this size at `to`, which must not exist. Each size is
    /// formatted once, then cloned. Errors: `invalid`, `no_space`, `tool_missing`, `io`.
    pub async fn scratch_disk(&self, size: Mib, to: &Path) -> Result<()> {
        disk::make(self, Purpose::Scratch, size, to).await
    }

    /// Makes a fresh sparse ext4 disk of this size at `to`, which must not exist, for data that
    /// survives a crash. Each size is formatted once, then cloned. Errors: those of
    /// [`ImageStore::scratch_disk`].
    pub async fn data_disk(&self, size: Mib, to: &Path) -> Result<()> {
        disk::make(self, Purpose::Data, size, to).await
    }
}
