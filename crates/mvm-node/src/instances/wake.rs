//! Wakes instances, from sleeping to running or warm. The snapshot is removed once the machine has
//! confirmed that it runs.
//!
//! Until then, an error leaves the machine asleep with its memory. A snapshot matches memory and
//! disks only as long as no guest instruction has run since. So it is renamed just before the
//! machine is resumed, with the time of that moment: memory that was written later does not match
//! the snapshot. A machine whose guest may have run is never woken from its snapshot again.

use super::halted::no_space_error;
use super::lifecycle::Instances;
use super::slot::Live;
use super::snapshot::{mark, unmark};
use crate::deadlines::WAKE;
use crate::state_dir::remove_file;
use crate::{Error, Result};
use mvm_hypervisor::Machine;
use mvm_model::recovery::Snapshot;
use mvm_model::{Actor, Instance, InstanceId, State, Tenant, WayUp};
use std::sync::Arc;

/// Why a machine could not be woken.
enum WakeFailure {
    /// The guest has not run: the instance remains asleep.
    Asleep(Error),
    /// The guest may have run: the instance cannot be woken any more.
    Lost(Error),
    /// The process cannot be ended, so it is unknown whether the guest runs.
    Unsure(Error),
}

impl Instances {
    /// Brings a sleeping instance to running or warm.
    pub(super) async fn wake(
        &self,
        live: &mut Live,
        id: InstanceId,
        to: State,
        by: &Actor,
    ) -> Result<()> {
        let (tenant, instance) = self.transitions.begin(id, to, by).await?;
        let (machine, way) = match self.resume_or_restore(live, &tenant, &instance).await {
            Ok(woken) => woken,
            Err(WakeFailure::Asleep(error)) => {
                self.transitions.abandon(id).await?;
                return Err(error);
            }
            Err(WakeFailure::Lost(error)) => {
                return self.transitions.fail(live, id, error).await;
            }
            // The next operation checks the instance first.
            Err(WakeFailure::Unsure(error)) => return Err(error),
        };
        // From here on, the snapshot is not the machine's state any more.
        remove_file(&self.machines.files(id).resuming())?;
        let outcome = async {
            self.machines
                .make_ready(live, &tenant, &instance, machine.clone(), WAKE, false)
                .await?;
            if to == State::Warm {
                machine.pause().await?;
            }
            Ok(())
        };
        let (outcome, processor) = (outcome.await, machine.processor());
        let up = |i: &mut Instance| (i.way_up, i.processor) = (Some(way), processor);
        match (outcome, no_space_error(&machine)) {
            (Ok(()), _) => self.transitions.arrive_up(id, to, by, up).await,
            // The machine runs as soon as there is disk space. No snapshot holds its memory any
            // more.
            (Err(_), Some(held)) => {
                self.transitions.arrive_up(id, State::Running, by, up).await?;
                Err(held)
            }
            (Err(error), None) => self.transitions.fail(live, id, error).await,
        }
    }

    /// Resumes a sleeping machine: in its lingering process, or in a new one if there is none or it
    /// does not resume. On success, the machine is in its slot.
    async fn resume_or_restore(
        &self,
        live: &mut Live,
        tenant: &Tenant,
        instance: &Instance,
    ) -> std::result::Result<(Arc<dyn Machine>, WayUp), WakeFailure> {
        if live.lingers() && self.machines.links().has_lost_tap(instance).await {
            // The tap was deleted: only a new process gets a network.
            live.kill().await.map_err(WakeFailure::Asleep)?;
        }
        let lingering =
            self.lingering.take(live, instance.id).await.map_err(WakeFailure::Asleep)?;
        if let Some(machine) = lingering {
            match self.resume_marked(live, instance, machine).await {
                Err(WakeFailure::Asleep(error)) => {
                    tracing::warn!(
                        instance = %instance.reference(),
                        "its process did not take up, it is woken from its snapshot: {error}"
                    );
                    self.lingering.unresumed.inc();
                }
                outcome => return outcome.map(|machine| (machine, WayUp::Lingering)),
            }
        }
        let machine = self.machines.restore(tenant, instance).await.map_err(WakeFailure::Asleep)?;
        let machine = self.resume_marked(live, instance, machine).await?;
        Ok((machine, WayUp::Disk))
    }

    /// Marks the snapshot and resumes the paused machine. Ends a machine that does not resume.
    async fn resume_marked(
        &self,
        live: &mut Live,
        instance: &Instance,
        machine: Arc<dyn Machine>,
    ) -> std::result::Result<Arc<dyn Machine>, WakeFailure> {
        let files = self.machines.files(instance.id);
        live.machine = Some(machine.clone());
        let resumed = match mark(&files).await {
            Ok(()) => machine.resume().await.map_err(Error::from),
            Err(error) => Err(error),
        };
        let Err(error) = resumed else { return Ok(machine) };
        // Kill at once: in an orderly end the process would first carry out the resume that it may
        // have received.
        self.machines.end_process(&machine.process()).await.map_err(WakeFailure::Unsure)?;
        live.kill().await.map_err(WakeFailure::Unsure)?;
        match self.machines.snapshot_of(instance) {
            Snapshot::Resuming { stale: true } | Snapshot::Absent => {
                remove_file(&files.resuming()).map_err(WakeFailure::Unsure)?;
                Err(WakeFailure::Lost(error))
            }
            Snapshot::Resuming { stale: false } | Snapshot::Whole => {
                unmark(&files).map_err(WakeFailure::Unsure)?;
                Err(WakeFailure::Asleep(error))
            }
        }
    }
}
