//! Disks and disk space of instances.

use crate::blocking::blocking;
use crate::caches::Caches;
use crate::error::{MachineError, io};
use crate::state_dir::{Files, StateDir, remove_file};
use crate::templates::{Template, is_template_builder};
use crate::{Error, Result};
use mvm_image::{ImageStore, Revision};
use mvm_model::{Digest, Instance, Mib};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::Path;
use std::sync::Arc;

/// The space that must be free before a machine is started or leased. Its disks are sparse, so a
/// full disk would stop the machine while it runs.
const RESERVE: Mib = mvm_model::halt::ROOM;
/// The unit in which a file system counts the space of a file, in bytes: stat(2).
const BLOCK: u64 = 512;
/// The number of virtio devices that a machine without PCI can have.
const MMIO_DEVICES: usize = 8;
/// The virtio devices that are not disks: port, entropy and network.
const OTHERS: usize = 3;

/// The disks of instances, and the checks of free disk space.
pub(crate) struct Disks {
    state_dir: StateDir,
    images: ImageStore,
    caches: Arc<Caches>,
    /// Whether machines are simulated. Simulated machines write nothing and have no window.
    simulated: bool,
}

impl Disks {
    /// Makes the service for the disks in this state directory.
    pub(crate) fn new(
        state_dir: StateDir,
        images: ImageStore,
        caches: Arc<Caches>,
        simulated: bool,
    ) -> Disks {
        Disks { state_dir, images, caches, simulated }
    }

    /// Returns the revision with this digest.
    pub(crate) fn image(&self, digest: Digest) -> Result<Revision> {
        self.images.get(&digest.to_string()).map_err(Error::from)
    }

    /// Returns an error if the disk is too full for a machine to be started or leased.
    pub(crate) fn check_space(&self) -> Result<()> {
        self.check_room(Mib(0))
    }

    /// Like [`Disks::check_space`], for a machine whose memory file takes `memory` more.
    pub(crate) fn check_room(&self, memory: Mib) -> Result<()> {
        let path = self.state_dir.path();
        let free = free_space(path)?;
        let wanted = RESERVE + memory;
        if free >= wanted {
            return Ok(());
        }
        Err(MachineError::NoRoom { path: path.to_owned(), free, wanted, memory }.into())
    }

    /// Returns the space that the memory file of a machine takes from now on, beyond the blocks that
    /// it has. A clone maps its template's file, a template builder does not deserve a reserve, and a
    /// simulated machine writes nothing.
    pub(crate) fn memory_to_reserve(&self, instance: &Instance) -> Mib {
        if instance.template.is_some() || is_template_builder(instance) || self.simulated {
            return Mib(0);
        }
        let has = std::fs::metadata(self.state_dir.files(instance.id).memory());
        let has = has.map_or(Mib(0), |file| Mib::from_bytes(file.blocks() * BLOCK));
        instance.resources.mem_mib.saturating_sub(has)
    }

    /// Makes the disks that the instance does not have yet.
    pub(crate) async fn ensure(&self, instance: &Instance, uid: u32) -> Result<()> {
        let files = self.state_dir.files(instance.id);
        let images = &self.images;
        if !files.scratch().exists() {
            let to = files.scratch();
            images.scratch_disk(instance.resources.scratch_disk_mib, &to).await?;
        }
        if instance.resources.data_disk_mib > Mib(0) && !files.data().exists() {
            let to = files.data();
            images.data_disk(instance.resources.data_disk_mib, &to).await?;
        }
        self.caches.ensure(instance).await?;
        self.ensure_window(instance, &files)?;
        set_owner(&files, instance, uid)
    }

    /// Makes the window of a machine that is about to boot, if the machine can have one more
    /// device.
    fn ensure_window(&self, instance: &Instance, files: &Files) -> Result<()> {
        let image = self.image(instance.revision)?;
        let disks =
            2 + usize::from(instance.resources.data_disk_mib > Mib(0)) + instance.caches.len();
        let fits = image.platform == mvm_image::Platform::Pci || disks + OTHERS < MMIO_DEVICES;
        match fits && !self.simulated {
            true => make_window(&files.window()),
            false => remove_file(&files.window()),
        }
    }

    /// Gives the instance copies of the template's disks.
    pub(crate) async fn clone_from(
        &self,
        instance: &Instance,
        template: &Template,
        uid: u32,
    ) -> Result<()> {
        let (from, to) = (template.files.clone(), self.state_dir.files(instance.id));
        let with_data = instance.resources.data_disk_mib > Mib(0);
        // A template's cache disks are never mounted: each clone gets the pool's present content.
        remove_caches(instance, &to)?;
        self.caches.ensure(instance).await?;
        let owner = instance.clone();
        let copy = move || {
            let mut disks = vec![(from.scratch(), to.scratch())];
            if with_data {
                disks.push((from.data(), to.data()));
            }
            for (from, to) in disks {
                remove_file(&to)?;
                mvm_image::clone_file(&from, &to)?;
            }
            // The clone must have the devices that its template had.
            match from.window().exists() {
                true => make_window(&to.window())?,
                false => remove_file(&to.window())?,
            }
            set_owner(&to, &owner, uid)
        };
        blocking(copy).await
    }
}

/// Returns the free space of the disk below `path` that users other than root can use.
pub(crate) fn free_space(path: &Path) -> Result<Mib> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|e| io(format!("look at the free space of {}", path.display()), e.into()))?;
    Ok(Mib::from_bytes(stat.f_bavail * stat.f_frsize))
}

/// Makes the file behind a window, sparse.
fn make_window(path: &Path) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let made = options.open(path).and_then(|file| file.set_len(mvm_guest::window::SIZE));
    made.map_err(|e| io(format!("make {}", path.display()), e))
}

/// Removes an instance's copies of caches.
pub(crate) fn remove_caches(instance: &Instance, files: &Files) -> Result<()> {
    (0..instance.caches.len()).try_for_each(|index| remove_file(&files.cache(index)))
}

/// Makes the user of the confined hypervisor the owner of the files that its machine writes.
fn set_owner(files: &Files, instance: &Instance, uid: u32) -> Result<()> {
    let mut own = vec![files.vm(), files.scratch(), files.data(), files.memory(), files.window()];
    own.extend((0..instance.caches.len()).map(|index| files.cache(index)));
    for path in own.iter().filter(|path| path.exists()) {
        chown(path, Some(uid), Some(uid))
            .map_err(|e| io(format!("give {} to user {uid}", path.display()), e))?;
    }
    Ok(())
}

/// Returns the disk space that the files below `dir` take, in KiB.
pub(crate) fn disk_use_kib(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_use_kib(&entry.path()),
            Ok(meta) => meta.blocks() / 2,
            Err(_) => 0,
        })
        .sum()
}
