//! Disks and disk space of instances.

use crate::Result;
use crate::node::Node;
use crate::problem::{OrProblem, io};
use crate::root::Files;
use crate::template::Template;
use mvm_api::Problem;
use mvm_model::Instance;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

/// Space that must be free before a machine is started or given away: its memory and disks are
/// sparse, so that a full disk would hit it while it runs.
const RESERVE_MIB: u64 = 64;

impl Node {
    /// Refuses to start a machine, or to give one away, on a disk that is as good as full.
    pub(crate) fn check_space(&self) -> Result<()> {
        let path = self.parts.root.path();
        let stat = rustix::fs::statvfs(path)
            .map_err(|e| io(format!("look at the free space of {}", path.display()), e.into()))?;
        let free_mib = stat.f_bavail * stat.f_frsize / (1 << 20);
        if free_mib >= RESERVE_MIB {
            return Ok(());
        }
        Err(Problem::new(
            507,
            "no_space",
            format!(
                "{} has {free_mib} MiB left; a machine is started only with {RESERVE_MIB} MiB or more",
                path.display()
            ),
        )
        .hint("free some space: mvm image gc, or destroy instances that are not needed"))
    }

    /// Makes the disks that the instance does not have yet.
    pub(crate) async fn ensure_disks(&self, instance: &Instance, uid: u32) -> Result<()> {
        let files = self.parts.root.files(instance.id);
        let images = &self.parts.images;
        if !files.scratch().exists() {
            let to = files.scratch();
            images.scratch_disk(instance.resources.scratch_disk_mib, &to).await.or_problem()?;
        }
        if instance.resources.data_disk_mib > 0 && !files.data().exists() {
            let to = files.data();
            images.data_disk(instance.resources.data_disk_mib, &to).await.or_problem()?;
        }
        self.ensure_caches(instance).await?;
        give_to(&files, instance, uid)
    }

    /// Gives the instance copies of the template's disks.
    pub(crate) async fn clone_disks(
        &self,
        instance: &Instance,
        template: &Template,
        uid: u32,
    ) -> Result<()> {
        let (from, to) = (template.files.clone(), self.parts.root.files(instance.id));
        let with_data = instance.resources.data_disk_mib > 0;
        // The template's were never mounted: its clones have the pool's present content.
        remove_caches(instance, &to)?;
        self.ensure_caches(instance).await?;
        let owner = instance.clone();
        let copy = move || {
            let mut disks = vec![(from.scratch(), to.scratch())];
            if with_data {
                disks.push((from.data(), to.data()));
            }
            for (from, to) in disks {
                crate::root::remove_file(&to)?;
                mvm_image::clone_file(&from, &to).or_problem()?;
            }
            give_to(&to, &owner, uid)
        };
        let copied = tokio::task::spawn_blocking(copy).await;
        copied.map_err(|error| Problem::internal(error.to_string()))?
    }
}

/// Removes an instance's copies of caches.
pub(crate) fn remove_caches(instance: &Instance, files: &Files) -> Result<()> {
    (0..instance.caches.len()).try_for_each(|index| crate::root::remove_file(&files.cache(index)))
}

/// Lets the confined hypervisor, and nobody else, write the files that are its own.
fn give_to(files: &Files, instance: &Instance, uid: u32) -> Result<()> {
    let mut own = vec![files.vm(), files.scratch(), files.data(), files.memory()];
    own.extend((0..instance.caches.len()).map(|index| files.cache(index)));
    for path in own.iter().filter(|path| path.exists()) {
        chown(path, Some(uid), Some(uid))
            .map_err(|e| io(format!("give {} to user {uid}", path.display()), e))?;
    }
    Ok(())
}

/// What the files below `dir` really take, in KiB.
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
