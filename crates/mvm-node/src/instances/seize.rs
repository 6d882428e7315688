//! Destroying works at any moment: whoever holds the instance then is made to let go of it.

use super::interrupt::Interrupt;
use super::lifecycle::Instances;
use super::slot::{Live, Slot};
use crate::deadlines::SEIZE;
use mvm_api::Problem;
use mvm_model::{Code, InstanceId, Mover};
use tokio::sync::MutexGuard;

impl Instances {
    /// The gate of an instance that is to be destroyed on behalf of `by`. Waits for its guest end at
    /// once; who still holds the gate a moment later loses the machine, as if it had died by itself.
    /// Nobody waits for the guest before what is given back is dropped. The reconciler, and whoever may
    /// not destroy it, gets the gate in its turn.
    pub(super) async fn seize<'a>(
        &self,
        slot: &'a Slot,
        id: InstanceId,
        by: &Mover,
    ) -> (MutexGuard<'a, Live>, Option<Interrupt>) {
        let interrupt = self
            .records
            .alone(|world| {
                // Nobody changes the records meanwhile: no lease can come in between.
                let may = *by != Mover::Agent && by.check(world.instances.get(&id)?).is_ok();
                let what = format!("instance {id} is being destroyed");
                may.then(|| slot.waits.interrupt(Problem::new(Code::Destroyed, what)))
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

    /// Ends the hypervisor's process of an instance whose gate somebody else holds.
    async fn end_process(&self, id: InstanceId) {
        let process = match self.machines.processes() {
            Ok(mut processes) => processes.remove(&id),
            Err(problem) => return tracing::warn!(instance = %id, "cannot look: {problem}"),
        };
        let Some(process) = process else { return };
        tracing::info!(instance = %id, pid = process.pid, "ending it under whoever holds it");
        if let Err(problem) = self.machines.end_process(&process).await {
            tracing::warn!(instance = %id, "cannot end its process: {problem}");
        }
    }
}
