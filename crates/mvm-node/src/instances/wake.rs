//! From sleeping to running or warm: the snapshot goes when the machine has said that it runs.
//!
//! Until then whatever fails leaves the machine asleep with its memory. A snapshot belongs together
//! with memory and disks only as long as no guest instruction has run since, so it is renamed before
//! the machine is resumed, and its time says when that was: memory that was written later is not what
//! the snapshot is of. A machine whose guest may have run is never woken from its snapshot again.

use super::halted::held_back;
use super::lifecycle::Instances;
use super::slot::Live;
use super::snapshot::{mark, unmark};
use crate::Result;
use crate::deadlines::WAKE;
use crate::problem::OrProblem;
use crate::state_dir::remove_file;
use mvm_api::Problem;
use mvm_hypervisor::Machine;
use mvm_model::recovery::Snapshot;
use mvm_model::{Instance, InstanceId, Mover, State, Tenant, WayUp};
use std::sync::Arc;

/// Why a machine could not be woken.
enum Unwoken {
    /// Its guest has not run: it sleeps on.
    Asleep(Problem),
    /// Its guest may have run: it cannot be woken any more.
    Lost(Problem),
    /// Its process cannot be ended, so that nothing is sure.
    Unsure(Problem),
}

impl Instances {
    /// Sleeping to running or warm.
    pub(super) async fn wake(
        &self,
        live: &mut Live,
        id: InstanceId,
        to: State,
        by: &Mover,
    ) -> Result<()> {
        let (tenant, instance) = self.transitions.begin(id, to, by).await?;
        let (machine, way) = match self.rouse(live, &tenant, &instance).await {
            Ok(woken) => woken,
            Err(Unwoken::Asleep(problem)) => {
                self.transitions.abandon(id).await?;
                return Err(problem);
            }
            Err(Unwoken::Lost(problem)) => {
                return self.transitions.give_up(live, id, problem).await;
            }
            // Looked into before the next operation.
            Err(Unwoken::Unsure(problem)) => return Err(problem),
        };
        // From here on the snapshot is not the machine any more.
        remove_file(&self.machines.files(id).resuming())?;
        let outcome = async {
            self.machines
                .make_ready(live, &tenant, &instance, machine.clone(), WAKE, false)
                .await?;
            if to == State::Warm {
                machine.pause().await.or_problem()?;
            }
            Ok(())
        };
        match (outcome.await, held_back(&machine)) {
            (Ok(()), _) => self.transitions.arrive_by(id, to, by, way).await,
            // It runs when there is room: its memory is in no snapshot any more.
            (Err(_), Some(held)) => {
                self.transitions.arrive_by(id, State::Running, by, way).await?;
                Err(held)
            }
            (Err(problem), None) => self.transitions.give_up(live, id, problem).await,
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
        if live.lingers() && self.machines.links().has_lost_tap(instance).await {
            // Its tap was deleted: only a new process gets a network.
            live.kill().await.map_err(Unwoken::Asleep)?;
        }
        let lingering = self.lingering.take(live, instance.id).await.map_err(Unwoken::Asleep)?;
        if let Some(machine) = lingering {
            match self.resume_marked(live, instance, machine).await {
                Err(Unwoken::Asleep(problem)) => {
                    tracing::warn!(
                        instance = %instance.reference(),
                        "its process did not take up, it is woken from its snapshot: {problem}"
                    );
                    self.lingering.unresumed.inc();
                }
                outcome => return outcome.map(|machine| (machine, WayUp::Lingering)),
            }
        }
        let machine = self.machines.restore(tenant, instance).await.map_err(Unwoken::Asleep)?;
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
        let files = self.machines.files(instance.id);
        live.machine = Some(machine.clone());
        let resumed = match mark(&files).await {
            Ok(()) => machine.resume().await.or_problem(),
            Err(problem) => Err(problem),
        };
        let Err(problem) = resumed else { return Ok(machine) };
        // At once: asked to end in order it would first do what it was told before.
        self.machines.end_process(&machine.process()).await.map_err(Unwoken::Unsure)?;
        live.kill().await.map_err(Unwoken::Unsure)?;
        match self.machines.snapshot_of(instance) {
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
}
