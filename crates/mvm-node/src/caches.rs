//! Caches: each pool's disks, and the copies that its machines have of them.
//!
//! A pool's record says which file holds a cache's contents. A commit writes the next file under
//! another name, renames it, and then changes the record. A machine's copy is updated before a job
//! mounts it; only jobs mount it.

use crate::blocking::{blocking, paths_in};
use crate::deadlines;
use crate::error::{InternalError, Missing, PoolError, io};
use crate::instances::Slots;
use crate::records::Records;
use crate::state_dir::{StateDir, make_dir, remove_dir, remove_file};
use crate::{Error, Result};
use mvm_guest::channel::Channel;
use mvm_image::ImageStore;
use mvm_model::lease::Purpose;
use mvm_model::{CacheDisk, Instance, InstanceId, Name, PoolRef, State};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

/// How often a content that is replaced during its copy is looked up again.
const TRIES: usize = 5;

/// Returns the virtio serial of an instance's cache disk.
pub(crate) fn serial(index: usize) -> String {
    format!("cache-{index}")
}

/// The caches of pools and their machines.
pub(crate) struct Caches {
    records: Arc<Records>,
    images: ImageStore,
    state_dir: StateDir,
    slots: Arc<Slots>,
    /// Serialises changes of pools' caches.
    turn: Mutex<()>,
}

impl Caches {
    /// Makes the service for the caches in this state directory.
    pub(crate) fn new(
        records: Arc<Records>,
        images: ImageStore,
        state_dir: StateDir,
        slots: Arc<Slots>,
    ) -> Caches {
        Caches { records, images, state_dir, slots, turn: Mutex::default() }
    }

    fn cache_file(&self, pool: &PoolRef, disk: &CacheDisk) -> PathBuf {
        let name = format!("{}.{}.raw", disk.cache.name, disk.generation);
        self.state_dir.caches_of(pool).join(name)
    }

    fn pool_cache(&self, pool: &PoolRef, name: &Name) -> Result<CacheDisk> {
        self.records.read(|records| {
            let found = records.pool(pool)?.caches.iter().find(|disk| disk.cache.name == *name);
            found.cloned().ok_or_else(|| no_cache(pool, name))
        })
    }

    /// Copies the pool's contents of a cache to `to`, replacing a disk that is there. Returns the
    /// version copied.
    async fn fill_cache(&self, pool: &PoolRef, name: &Name, to: &Path) -> Result<CacheDisk> {
        let mut last = None;
        for _ in 0..TRIES {
            let disk = self.pool_cache(pool, name)?;
            match self.copy_cache(pool, &disk, to).await {
                Ok(()) => return Ok(disk),
                Err(error) => last = Some(error),
            }
            if self.pool_cache(pool, name)?.has_content_of(&disk) {
                break;
            }
        }
        Err(last.unwrap_or_else(|| InternalError::CacheNeverCopied.into()))
    }

    async fn copy_cache(&self, pool: &PoolRef, disk: &CacheDisk, to: &Path) -> Result<()> {
        let (mut from, fresh) = (self.cache_file(pool, disk), to.with_extension("new"));
        let blank = disk.committed_at.is_none();
        if blank {
            remove_file(&fresh)?;
            self.images.data_disk(disk.cache.size_mib, &fresh).await?;
            from.clone_from(&fresh);
        }
        let to = to.to_owned();
        let copy = move || {
            match to.exists() {
                true => mvm_image::refill_file(&from, &to)?,
                false => mvm_image::clone_file(&from, &to)?,
            }
            if blank { remove_file(&from) } else { Ok(()) }
        };
        blocking(copy).await
    }

    /// Makes the copies of the pool's caches that the instance lacks.
    pub(crate) async fn ensure(&self, instance: &Instance) -> Result<()> {
        let files = self.state_dir.files(instance.id);
        for (index, disk) in instance.caches.iter().enumerate() {
            let to = files.cache(index);
            if to.exists() {
                continue;
            }
            let made = self.fill_cache(&instance.pool, &disk.cache.name, &to).await?;
            self.note_content(instance.id, index, Some(made)).await?;
        }
        Ok(())
    }

    /// Records the version of an instance's copy; `None` once a job may have changed it.
    async fn note_content(
        &self,
        id: InstanceId,
        index: usize,
        content: Option<CacheDisk>,
    ) -> Result<()> {
        self.records
            .update(id, |instance| {
                let Some(disk) = instance.caches.get_mut(index) else { return };
                (disk.generation, disk.committed_at) =
                    content.map_or((0, None), |content| (content.generation, content.committed_at));
            })
            .await
    }

    /// Before a job: updates the instance's copies to the pool's contents, and mounts them.
    pub(crate) async fn open(&self, id: InstanceId, channel: &Channel) -> Result<()> {
        let instance = self.records.read(|records| records.by_id(id).cloned())?;
        for (index, disk) in instance.caches.iter().enumerate() {
            let cache = &disk.cache;
            let wanted = self.pool_cache(&instance.pool, &cache.name)?;
            // From now on the copy is the job's own, whatever happens to it.
            self.note_content(id, index, None).await?;
            if !disk.has_content_of(&wanted) {
                let to = self.state_dir.files(id).cache(index);
                self.fill_cache(&instance.pool, &cache.name, &to).await?;
            }
            let serial = serial(index);
            let mounting = channel.mount(&serial, &cache.path);
            self.slots.of(id).waits.guest(deadlines::MOUNT, mounting).await?;
        }
        Ok(())
    }

    /// After a job, on a machine that others will use: unmounts the caches. Returns whether they
    /// could be unmounted.
    pub(crate) async fn close(&self, id: InstanceId) -> bool {
        let Ok(instance) = self.records.read(|records| records.by_id(id).cloned()) else {
            return true;
        };
        // Only jobs mount caches.
        let job = instance.lease.as_ref().is_some_and(|lease| lease.purpose == Purpose::Run);
        let used = instance.caches.iter().filter(|disk| job && disk.generation == 0);
        let paths: Vec<&str> = used.map(|disk| disk.cache.path.as_str()).collect();
        if paths.is_empty() || instance.state != State::Running {
            return paths.is_empty();
        }
        let close = async {
            let slot = self.slots.of(id);
            let channel = slot.gate.lock().await.channel().await?;
            for path in paths {
                slot.waits.guest(deadlines::UNMOUNT, channel.unmount(path)).await?;
            }
            Ok::<_, Error>(())
        };
        match close.await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(instance = %id, "its caches are not let go of: {error}");
                false
            }
        }
    }

    /// After a job that succeeded: the guest unmounts the cache, so that its disk is whole.
    pub(crate) async fn release(
        &self,
        id: InstanceId,
        name: &Name,
        channel: &Channel,
    ) -> Result<()> {
        let instance = self.records.read(|records| records.by_id(id).cloned())?;
        let own = instance.caches.iter().find(|disk| disk.cache.name == *name);
        let Some(own) = own else { return Err(no_cache(&instance.pool, name)) };
        let unmounting = channel.unmount(&own.cache.path);
        self.slots.of(id).waits.guest(deadlines::UNMOUNT, unmounting).await
    }

    /// Makes the instance's copy of an unmounted cache the pool's.
    pub(crate) async fn commit(&self, id: InstanceId, name: &Name) -> Result<()> {
        let instance = self.records.read(|records| records.by_id(id).cloned())?;
        let own = instance.caches.iter().position(|disk| disk.cache.name == *name);
        let Some(index) = own else { return Err(no_cache(&instance.pool, name)) };
        let cache = &instance.caches[index].cache;
        // One commit at a time, since each has a generation of its own.
        let _turn = self.turn.lock().await;
        let mut disk = self.pool_cache(&instance.pool, name)?;
        if disk.cache.size_mib != cache.size_mib {
            let (pool, name) = (instance.pool.clone(), name.clone());
            return Err(PoolError::CacheResized { pool, name }.into());
        }
        disk.generation += 1;
        disk.committed_at = Some(self.records.clock().wall());
        let from = self.state_dir.files(id).cache(index);
        let to = self.cache_file(&instance.pool, &disk);
        blocking(move || promote(&from, &to)).await?;
        self.records
            .change(|records, changes| {
                let mut pool = records.pool(&instance.pool)?.clone();
                let known = pool.caches.iter_mut().find(|known| known.cache.name == *name);
                let Some(known) = known else { return Err(no_cache(&instance.pool, name)) };
                (known.generation, known.committed_at) = (disk.generation, disk.committed_at);
                let mut instance = records.by_id(id)?.clone();
                if let Some(own) = instance.caches.get_mut(index) {
                    (own.generation, own.committed_at) = (disk.generation, disk.committed_at);
                }
                changes.put_pool(pool);
                changes.put_instance(instance);
                Ok(())
            })
            .await?;
        tracing::info!(pool = %instance.pool, cache = %name, generation = disk.generation, "committed");
        self.sweep_locked().await
    }

    /// Removes contents that no pool has any more, and unfinished files of a killed agent.
    pub(crate) async fn sweep(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.sweep_locked().await
    }

    async fn sweep_locked(&self) -> Result<()> {
        let (pools, known) = self.records.read(|records| {
            let pools = records.pools.values();
            let dirs: Vec<PathBuf> =
                pools.clone().map(|pool| self.state_dir.caches_of(&pool.reference)).collect();
            let files: Vec<PathBuf> = pools
                .flat_map(|p| p.caches.iter().map(|disk| self.cache_file(&p.reference, disk)))
                .collect();
            (dirs, files)
        });
        let all = self.state_dir.caches();
        blocking(move || remove_unknown(&all, &pools, &known)).await
    }
}

/// Copies a disk under another name, makes the copy durable, and renames it.
fn promote(from: &Path, to: &Path) -> Result<()> {
    let dir = to.parent().unwrap_or(Path::new("/"));
    make_dir(dir, 0o700)?;
    let early = to.with_extension("new");
    remove_file(&early)?;
    mvm_image::clone_file(from, &early)?;
    let sync = |path: &Path| std::fs::File::open(path).and_then(|file| file.sync_all());
    let own = std::os::unix::fs::chown(&early, Some(0), Some(0));
    own.and_then(|()| sync(&early))
        .and_then(|()| std::fs::rename(&early, to))
        .and_then(|()| sync(dir))
        .map_err(|e| io(format!("write {}", to.display()), e))
}

/// Removes the directories of caches whose pool is gone, and the files that are no cache's.
fn remove_unknown(all: &Path, pools: &[PathBuf], known: &[PathBuf]) -> Result<()> {
    for pool in paths_in(all).iter().flat_map(|tenant| paths_in(tenant)) {
        if !pools.contains(&pool) {
            remove_dir(&pool)?;
            continue;
        }
        for file in paths_in(&pool).iter().filter(|file| !known.contains(file)) {
            remove_file(file)?;
        }
    }
    Ok(())
}

/// Makes the error of a pool without a cache of this name.
pub(crate) fn no_cache(pool: &PoolRef, name: &Name) -> Error {
    Missing::Cache { pool: pool.clone(), name: name.clone() }.into()
}
