//! Destroys instances at any moment: an operation that holds the instance's gate is interrupted.

use super::interrupt::Interrupt;
use super::lifecycle::Instances;
use super::slot::{Live, Slot};
use crate::Error;
use crate::deadlines::SEIZE;
use crate::error::MachineError;
use mvm_model::{Actor, InstanceId};
use tokio::sync::MutexGuard;

impl Instances {
    /// Returns the gate of an instance that is to be destroyed on behalf of `by`. Waits for the
    /// instance's guest are interrupted at once. If the gate is still held a moment later, the
    /// machine is killed, as if it had died by itself. No wait for the guest can begin before the
    /// returned interrupt is dropped. The reconciler, and an actor that may not destroy the
    /// instance, wait for the gate like any other operation.
    pub(super) async fn seize<'a>(
        &self,
        slot: &'a Slot,
        id: InstanceId,
        by: &Actor,
    ) -> (MutexGuard<'a, Live>, Option<Interrupt>) {
        let interrupt = self
            .records
            .alone(|records| {
                // The records cannot change meanwhile, so no lease can be made in between.
                let may = *by != Actor::Agent && by.check(records.instances.get(&id)?).is_ok();
                let why = || Error::from(MachineError::BeingDestroyed(id));
                may.then(|| slot.waits.interrupt(why()))
            })
            .await;
        if interrupt.is_none() {
            return (slot.gate.lock().await, None);
        }
        let turn = slot.gate.lock();
        tokio::pin!(turn);
        loop {
            tokio::select! {
                biased;
                live = &mut turn => return (live, interrupt),
                () = tokio::time::sleep(SEIZE.limit()) => self.end_process(id).await,
            }
        }
    }

    /// Ends the hypervisor process of an instance whose gate another operation holds.
    async fn end_process(&self, id: InstanceId) {
        let process = match self.machines.processes() {
            Ok(mut processes) => processes.remove(&id),
            Err(error) => return tracing::warn!(instance = %id, "cannot look: {error}"),
        };
        let Some(process) = process else { return };
        tracing::info!(instance = %id, pid = process.pid, "ending it under whoever holds it");
        if let Err(error) = self.machines.end_process(&process).await {
            tracing::warn!(instance = %id, "cannot end its process: {error}");
        }
    }
}
