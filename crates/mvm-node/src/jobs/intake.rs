//! Checks bytes while they arrive for jobs: inputs from clients, and artifacts from guests.

use crate::error::{JobError, io};
use crate::locks::locked;
use crate::{Error, Result};
use mvm_model::intake::{self, Account, Denied, Room};
use mvm_model::{Mib, Name};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as Lock};

/// After how many bytes the quota and the disk are checked again.
const STEP: u64 = 1 << 20;

/// Reads the space of the disk that a path is on.
type Measure = dyn Fn(&Path) -> Result<Room> + Send + Sync;

/// The bytes that are arriving, by tenant.
pub(crate) struct Intake {
    arriving: Lock<HashMap<Name, u64>>,
    measure: Lock<Arc<Measure>>,
}

impl Default for Intake {
    fn default() -> Self {
        Intake { arriving: Lock::default(), measure: Lock::new(Arc::new(room)) }
    }
}

impl Intake {
    /// Replaces the function that reads the disk's space.
    #[cfg(test)]
    pub(crate) fn measure_by(
        &self,
        measure: impl Fn(&Path) -> Result<Room> + Send + Sync + 'static,
    ) {
        *locked(&self.measure) = Arc::new(measure);
    }
}

/// Returns the space of the disk that a path is on.
fn room(path: &Path) -> Result<Room> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|e| io(format!("look at the free space of {}", path.display()), e.into()))?;
    let size = stat.f_frsize;
    Ok(Room { total: stat.f_blocks * size, free: stat.f_bavail * size })
}

/// One copy that is arriving. Its bytes count as arriving until this value is dropped.
pub(crate) struct Arrival {
    pub(super) intake: Arc<Intake>,
    pub(super) account: Account,
    pub(super) reserve: Option<Mib>,
    pub(super) disk: PathBuf,
    pub(super) bytes: u64,
    /// The number of bytes up to which no further check is needed.
    pub(super) allowed: u64,
}

impl Arrival {
    /// Checks whether `count` more bytes may be written. Errors: `quota_exceeded`, `no_space`.
    pub(crate) fn room_for(&mut self, count: u64) -> Result<()> {
        let after = self.bytes + count;
        if after <= self.allowed {
            return Ok(());
        }
        let arriving = locked(&self.intake.arriving).get(&self.account.tenant).copied();
        let together = arriving.unwrap_or(0) + count;
        let measure = locked(&self.intake.measure).clone();
        let room = measure(&self.disk)?;
        let named = self.reserve.map(Mib::bytes);
        let reserve = named.unwrap_or_else(|| intake::reserve(room.total));
        intake::admit(&self.account, together, room, reserve).map_err(|denied| match denied {
            Denied::Quota(fault) => fault.into(),
            Denied::NoRoom => no_room(&self.disk, together, room, reserve),
        })?;
        self.allowed = after + STEP;
        Ok(())
    }

    /// Notes that `count` bytes were written.
    pub(crate) fn count(&mut self, count: u64) {
        *locked(&self.intake.arriving).entry(self.account.tenant.clone()).or_default() += count;
        self.bytes += count;
    }
}

fn no_room(disk: &Path, arriving: u64, room: Room, reserve: u64) -> Error {
    let [arriving, free, reserve] = [arriving, room.free, reserve].map(Mib::from_bytes);
    JobError::NoRoom { disk: disk.to_owned(), arriving, free, reserve }.into()
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut arriving = locked(&self.intake.arriving);
        if let Some(of_tenant) = arriving.get_mut(&self.account.tenant) {
            *of_tenant = of_tenant.saturating_sub(self.bytes);
            if *of_tenant == 0 {
                arriving.remove(&self.account.tenant);
            }
        }
    }
}
