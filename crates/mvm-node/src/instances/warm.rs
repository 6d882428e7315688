//! Leases and resumes a warm instance with one record.
//!
//! While the records are changed, the gate is tried and never waited for. The task that gets the
//! gate writes that the instance is leased and runs, and resumes it after the commit. A crash in
//! between leaves a record that says `running` and a machine that is paused: recovery resumes it,
//! as after any other resume.

use super::halted::no_space_error;
use super::lifecycle::Instances;
use super::slot::{Live, Slot};
use super::transitions::reached;
use crate::Result;
use crate::stages::operation;
use mvm_hypervisor::Machine;
use mvm_model::{Instance, InstanceId, State, Timestamp, WayUp};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::OwnedMutexGuard;

/// A warm instance whose gate is held.
pub(crate) struct HeldWarm {
    id: InstanceId,
    began: Instant,
    slot: Arc<Slot>,
    live: OwnedMutexGuard<Live>,
    machine: Arc<dyn Machine>,
}

impl HeldWarm {
    /// Sets the record's state to running since `now`.
    pub(crate) fn note(&self, instance: &mut Instance, now: Timestamp) {
        instance.way_up = Some(WayUp::Warm);
        reached(instance, State::Running, now);
    }

    /// Resumes the instance, whose record already says that it runs.
    pub(crate) async fn resume(self, instances: &Instances) -> Result<()> {
        let HeldWarm { id, began, slot, mut live, machine } = self;
        let outcome =
            operation("resume", id, instances.perform_resume(&mut live, id, &machine)).await;
        instances.recovery.note_failure(id, &outcome);
        if outcome.is_ok() {
            instances.records.events().moved(State::Warm, State::Running, began.elapsed());
        }
        outcome.map_err(|error| slot.waits.interrupted().unwrap_or(error))
    }
}

impl Instances {
    /// Returns whether warm instances may be resumed now: there is disk space, and the firewall is
    /// in place.
    pub(crate) async fn may_resume(&self) -> bool {
        self.machines.check_space().is_ok() && self.machines.links().ensure_rules().await.is_ok()
    }

    /// Holds the gate of a warm instance, so that the instance can be resumed as soon as its record
    /// says that it runs. Returns `None` if the gate is held already, or if the record must first
    /// be compared with the machine: then [`Instances::transition_to`] resumes the instance like any
    /// other.
    pub(crate) fn hold_warm(&self, instance: &Instance) -> Option<HeldWarm> {
        let (id, began) = (instance.id, Instant::now());
        if instance.state != State::Warm || instance.intent.is_some() {
            return None;
        }
        let slot = self.slots.of(id);
        let live = slot.gate.clone().try_lock_owned().ok()?;
        let machine = live.machine.clone()?;
        let is_whole = slot.waits.interrupted().is_none() && !self.slots.needs_check(id);
        is_whole.then_some(HeldWarm { id, began, slot, live, machine })
    }

    /// Carries out a resume that is recorded: one hypervisor call, and one guest round trip.
    pub(super) async fn perform_resume(
        &self,
        live: &mut Live,
        id: InstanceId,
        machine: &Arc<dyn Machine>,
    ) -> Result<()> {
        let outcome = async {
            machine.resume().await?;
            live.greet(self.records.clock()).await
        };
        match outcome.await {
            Ok(()) => Ok(()),
            Err(error) => match no_space_error(machine) {
                // The machine runs, as its record says, as soon as there is disk space.
                Some(held) => Err(held),
                None => self.transitions.fail(live, id, error).await,
            },
        }
    }
}
