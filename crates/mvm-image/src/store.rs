//! The image store: what it offers, over the modules that do it.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::disk::Purpose;
use crate::error::{At, Error, Result};
use crate::types::{
    BuildRequest, GuestBinary, KernelImport, KernelInfo, Progress, Removed, Revision, Sandbox,
    Tools,
};
use crate::{apt, build, disk, kernel, workdir};

/// Images, kernels and disk templates under one state root. Cheap to clone; several processes may
/// have the same root open.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: PathBuf,
    pub(crate) guest: GuestBinary,
    pub(crate) tools: Tools,
    pub(crate) sandbox: Sandbox,
    /// Held while an image is put together.
    pub(crate) assembling: Arc<tokio::sync::Mutex<()>>,
}

impl ImageStore {
    /// Opens the store under `root` (made if absent: `images/`, `kernels/`, `disks/`) and removes
    /// what interrupted builds left. Fails only on I/O.
    pub fn open(root: &Path, guest: GuestBinary) -> Result<Self> {
        Self::open_with(root, guest, Tools::default())
    }

    /// [`ImageStore::open`] with other programs than those in `PATH`.
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

    /// The same store, whose builds may do so much.
    pub fn with_sandbox(self, sandbox: Sandbox) -> Self {
        Self { sandbox, ..self }
    }

    /// Builds the flake's profile into a revision, or finds it built already.
    ///
    /// Errors: `nix_missing`, `flake_missing`, `profile_missing`, `flake_build_failed`,
    /// `sandbox_unavailable`, `sandbox_refused`, `kernel_missing`, `no_space`, `invalid`, `tool_missing`. Dropping the future ends the
    /// programs it runs and leaves nothing behind.
    pub async fn build(
        &self,
        req: &BuildRequest,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<Revision> {
        build::build(self, req, progress).await
    }

    /// The revision with this digest, or a prefix of it (four digits or more) that only one has.
    /// Errors: `revision_missing`, `ambiguous`, `image_damaged`.
    pub fn get(&self, digest: &str) -> Result<Revision> {
        let missing = || Error::RevisionMissing { digest: digest.to_owned() };
        if digest.len() < 4 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(missing());
        }
        if let Some(revision) = build::load(&self.images_dir().join(digest))? {
            return Ok(revision);
        }
        let mut fitting = self.list()?;
        fitting.retain(|r| r.digest.starts_with(digest));
        let (count, kind) = (fitting.len(), "revision");
        match fitting.pop() {
            Some(revision) if count == 1 => Ok(revision),
            Some(_) => Err(Error::Ambiguous { wanted: digest.to_owned(), count, kind }),
            None => Err(missing()),
        }
    }

    /// All whole revisions, newest first.
    pub fn list(&self) -> Result<Vec<Revision>> {
        let dir = self.images_dir();
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&dir).at("list", &dir)? {
            let entry = entry.at("list", &dir)?;
            if !entry.file_name().to_string_lossy().starts_with('.') {
                all.extend(build::load(&entry.path())?);
            }
        }
        all.sort_by(|a, b| (b.built_at, &b.digest).cmp(&(a.built_at, &a.digest)));
        Ok(all)
    }

    /// Removes revisions whose full digests are not `in_use`, and leftovers of interrupted
    /// builds; with `dry_run`, only says which. Gives what was (would be) removed, with the bytes
    /// of disk. The caller must see to it that no build whose result it wants is under way.
    pub fn remove_unused(&self, in_use: &BTreeSet<String>, dry_run: bool) -> Result<Vec<Removed>> {
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
            removed.push(Removed { digest: revision.digest, bytes });
        }
        Ok(removed)
    }

    /// Removes what builds have left among the roots of Nix's garbage collector; with `dry_run`, only counts.
    pub fn remove_stale_roots(&self, dry_run: bool) -> u64 {
        crate::nix::roots::remove_stale(&self.images_dir(), dry_run)
    }

    /// Takes a vmlinux or bzImage into the store, with the modules it needs to mount its root. The
    /// same kernel twice is one. The first kernel becomes the default.
    ///
    /// Errors: `not_a_kernel`, `kernel_compression`, `kernel_unfit` (lacks what a guest needs, and
    /// no modules were named), `invalid` (the name is taken), `no_space`.
    pub async fn kernel_import(&self, file: &Path, opts: KernelImport) -> Result<KernelInfo> {
        kernel::import(self, file, opts, &file.display().to_string()).await
    }

    /// Downloads the distribution's cloud kernel, unpacks and imports it with its virtio and file
    /// system modules, and makes it the default. Nothing is installed on the host.
    ///
    /// Errors: `tool_missing`, `kernel_fetch_failed` (with apt's words), `no_space`.
    pub async fn kernel_fetch(
        &self,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> Result<KernelInfo> {
        apt::fetch(self, progress).await
    }

    /// All kernels, by name.
    pub fn kernels(&self) -> Result<Vec<KernelInfo>> {
        kernel::list(self)
    }

    /// The kernel with this name, digest, or prefix of a digest (four digits or more).
    /// Errors: `kernel_missing`, `ambiguous`.
    pub fn kernel(&self, name_or_digest: &str) -> Result<KernelInfo> {
        kernel::find(self, name_or_digest)
    }

    /// The kernel of builds that name none; `None` if the store has no kernel.
    pub fn default_kernel(&self) -> Result<Option<KernelInfo>> {
        Ok(self.kernels()?.into_iter().find(|k| k.default))
    }

    /// Makes a kernel the default. Errors: `kernel_missing`, `ambiguous`.
    pub fn set_default_kernel(&self, name_or_digest: &str) -> Result<KernelInfo> {
        let kernel = self.kernel(name_or_digest)?;
        kernel::set_default(self, &kernel.digest)?;
        Ok(KernelInfo { default: true, ..kernel })
    }

    /// Removes a kernel; revisions keep their own copy, so none is harmed. If it was the default,
    /// the first of the others by name becomes it. Errors: `kernel_missing`, `ambiguous`.
    pub fn kernel_remove(&self, name_or_digest: &str) -> Result<KernelInfo> {
        kernel::remove(self, name_or_digest)
    }

    /// Puts a fresh ext4 disk, `mib` MiB, sparse, at `to` (must not exist).
    /// Formatted once a size, then cloned. Errors: `invalid`, `no_space`, `tool_missing`, `io`.
    pub async fn scratch_disk(&self, mib: u64, to: &Path) -> Result<()> {
        disk::make(self, Purpose::Scratch, mib, to).await
    }

    /// Puts a fresh journalled ext4 disk, `mib` MiB, sparse, at `to` (must not exist).
    /// Formatted once a size, then cloned. Errors: as [`ImageStore::scratch_disk`].
    pub async fn data_disk(&self, mib: u64, to: &Path) -> Result<()> {
        disk::make(self, Purpose::Data, mib, to).await
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

    /// Where Nix is shown the users of builders; empty but for Nix.
    pub(crate) fn build_users_dir(&self) -> PathBuf {
        self.root.join("build-users")
    }

    fn dirs(&self) -> [PathBuf; 3] {
        [self.images_dir(), self.kernels_dir(), self.disks_dir()]
    }
}
