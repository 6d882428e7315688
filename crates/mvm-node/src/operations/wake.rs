//! From sleeping to running or warm: the snapshot goes when the machine has said that it runs.
//!
//! Until then whatever fails leaves the machine asleep with its memory. A snapshot belongs together
//! with memory and disks only as long as no guest instruction has run since, so it is renamed before
//! the machine is resumed, and its time says when that was: memory that was written later is not what
//! the snapshot is of. A machine whose guest may have run is never woken from its snapshot again.

use crate::Result;
use crate::deadlines::WAKE;
use crate::halted::held_back;
use crate::node::Node;
use crate::problem::{IntoProblem, OrProblem, io};
use crate::slot::Live;
use crate::state_dir::{Files, remove_file};
use mvm_api::Problem;
use mvm_hypervisor::Machine;
use mvm_model::recovery::Snapshot;
use mvm_model::{Instance, InstanceId, Mover, State, Tenant, WayUp};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// File systems that note the time of a write through a shared mapping, by their magic numbers:
/// ext4, XFS and Btrfs. statfs(2)
const KEEPS_TIMES: [i64; 3] = [0xEF53, 0x5846_5342, 0x9123_683E];
/// How often the clock of a file system is looked at until it has moved on; it ticks every few ms.
const TICKS: usize = 50;

/// Why a machine could not be woken.
enum Unwoken {
    /// Its guest has not run: it sleeps on.
    Asleep(Problem),
    /// Its guest may have run: it cannot be woken any more.
    Lost(Problem),
    /// Its process cannot be ended, so that nothing is sure.
    Unsure(Problem),
}

impl Node {
    /// Sleeping to running or warm.
    pub(super) async fn wake(
        self: &Arc<Self>,
        live: &mut Live,
        id: InstanceId,
        to: State,
        by: &Mover,
    ) -> Result<()> {
        let (tenant, instance) = self.begin(id, to, by).await?;
        let (machine, way) = match self.rouse(live, &tenant, &instance).await {
            Ok(woken) => woken,
            Err(Unwoken::Asleep(problem)) => {
                self.abandon(id).await?;
                return Err(problem);
            }
            Err(Unwoken::Lost(problem)) => return self.give_up(live, id, problem).await,
            // Looked into before the next operation.
            Err(Unwoken::Unsure(problem)) => return Err(problem),
        };
        // From here on the snapshot is not the machine any more.
        remove_file(&self.parts.root.files(id).resuming())?;
        let outcome = async {
            self.make_ready(live, &tenant, &instance, machine.clone(), WAKE, false).await?;
            if to == State::Warm {
                machine.pause().await.or_problem()?;
            }
            Ok(())
        };
        match (outcome.await, held_back(&machine)) {
            (Ok(()), _) => self.arrive_by(id, to, by, way).await,
            // It runs when there is room: its memory is in no snapshot any more.
            (Err(_), Some(held)) => {
                self.arrive_by(id, State::Running, by, way).await?;
                Err(held)
            }
            (Err(problem), None) => self.give_up(live, id, problem).await,
        }
    }

    /// Lets a sleeping machine run: in the process that it still has, or, where it has none or that
    /// does not take up, in a new one. The machine is in its slot then.
    async fn rouse(
        &self,
        live: &mut Live,
        tenant: &Tenant,
        instance: &Instance,
    ) -> std::result::Result<(Arc<dyn Machine>, WayUp), Unwoken> {
        if live.lingers()
            && matches!(self.parts.network.has(&self.tap_name(instance)).await, Ok(false))
        {
            // Its tap was deleted: only a new process gets a network.
            self.kill(live).await.map_err(Unwoken::Asleep)?;
        }
        let lingering = self.take_lingering(live, instance.id).await.map_err(Unwoken::Asleep)?;
        if let Some(machine) = lingering {
            match self.resume_marked(live, instance, machine).await {
                Err(Unwoken::Asleep(problem)) => {
                    tracing::warn!(
                        instance = %instance.reference(),
                        "its process did not take up, it is woken from its snapshot: {problem}"
                    );
                    self.passes.unresumed.inc();
                }
                outcome => return outcome.map(|machine| (machine, WayUp::Lingering)),
            }
        }
        let machine = self.restore(tenant, instance).await.map_err(Unwoken::Asleep)?;
        let machine = self.resume_marked(live, instance, machine).await?;
        Ok((machine, WayUp::Disk))
    }

    /// Resumes a machine that is paused as its snapshot says. One that does not take it is ended.
    async fn resume_marked(
        &self,
        live: &mut Live,
        instance: &Instance,
        machine: Arc<dyn Machine>,
    ) -> std::result::Result<Arc<dyn Machine>, Unwoken> {
        let files = self.parts.root.files(instance.id);
        live.machine = Some(machine.clone());
        let resumed = match mark(&files).await {
            Ok(()) => machine.resume().await.or_problem(),
            Err(problem) => Err(problem),
        };
        let Err(problem) = resumed else { return Ok(machine) };
        // At once: asked to end in order it would first do what it was told before.
        let ended = self.parts.hypervisor.kill_stray(&machine.process()).await;
        if let Err(error) = ended {
            return Err(Unwoken::Unsure(error.problem()));
        }
        self.kill(live).await.map_err(Unwoken::Unsure)?;
        match self.snapshot_of(instance, &files) {
            Snapshot::Resuming { stale: true } | Snapshot::Absent => {
                remove_file(&files.resuming()).map_err(Unwoken::Unsure)?;
                Err(Unwoken::Lost(problem))
            }
            Snapshot::Resuming { stale: false } | Snapshot::Whole => {
                unmark(&files).map_err(Unwoken::Unsure)?;
                Err(Unwoken::Asleep(problem))
            }
        }
    }

    /// What there is to wake a machine from, if its process does not live.
    pub(crate) fn snapshot_of(&self, instance: &Instance, files: &Files) -> Snapshot {
        if files.snapshot().exists() || instance.dormant {
            return Snapshot::Whole;
        }
        let Some(marked) = modified(&files.resuming()) else { return Snapshot::Absent };
        let trusted = self.parts.hypervisor.description().simulated || keeps_times(&files.memory());
        let written = modified(&files.memory()).is_none_or(|written| written >= marked);
        Snapshot::Resuming { stale: written || !trusted }
    }
}

/// Marks the snapshot as that of a machine which is about to be resumed, now. Its time is later than
/// any write to the machine's memory so far.
async fn mark(files: &Files) -> Result<()> {
    let snapshot = files.snapshot();
    let failed = |e: std::io::Error| io(format!("mark {}", snapshot.display()), e);
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    for _ in 0..TICKS {
        // The file system's own clock, by which it notes writes as well.
        utimensat(CWD, &snapshot, &times, AtFlags::empty()).map_err(|e| failed(e.into()))?;
        if modified(&snapshot) > modified(&files.memory()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    std::fs::rename(&snapshot, files.resuming()).map_err(failed)
}

/// The machine's guest has not run: its snapshot is the machine again.
pub(crate) fn unmark(files: &Files) -> Result<()> {
    match std::fs::rename(files.resuming(), files.snapshot()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(io(format!("restore {}", files.snapshot().display()), e))
        }
        _ => Ok(()),
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// Whether the file's time tells of writes through a shared mapping.
fn keeps_times(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| KEEPS_TIMES.contains(&{ fs.f_type }))
}
