//! Processes that outlast the sleep of their machine: woken soon, it needs none to be started.
//!
//! The snapshot is the machine; what lingers is a cache of it, in memory only. It is given up at any
//! time without loss: when its time is over, when memory is short, when the agent ends. One that a
//! killed agent left is ended by the next.

use crate::Result;
use crate::locks::locked;
use crate::node::Node;
use crate::now;
use crate::problem::OrProblem;
use crate::slot::Live;
use crate::template::is_mould;
use futures::FutureExt;
use mvm_hypervisor::Machine;
use mvm_model::policy::{lingers_until, overstayed};
use mvm_model::{Instance, InstanceId};
use std::sync::Arc;

impl Node {
    /// The snapshot of this machine is whole: its process stays for a while, or ends.
    pub(crate) async fn linger(&self, live: &mut Live, instance: &Instance) -> Result<()> {
        let policy =
            self.records.read(|world| world.pool(&instance.pool).map(|pool| pool.runtime_policy));
        // A clone's memory is its own alone, and would be held in full; a template's is taken at once.
        let cheap = instance.template.is_none() && !is_mould(instance) && !self.is_pressed();
        if !cheap || policy?.linger_s == 0 {
            return self.kill(live).await;
        }
        live.channel = None;
        live.lingering = live.machine.take();
        locked(&self.lingering).insert(instance.id);
        Ok(())
    }

    /// The process that this sleeping instance still has, paused as it was when it was snapshotted.
    pub(crate) async fn take_lingering(
        &self,
        live: &mut Live,
        id: InstanceId,
    ) -> Result<Option<Arc<dyn Machine>>> {
        locked(&self.lingering).remove(&id);
        let Some(machine) = live.lingering.take() else { return Ok(None) };
        if machine.exited().now_or_never().is_none() {
            return Ok(Some(machine));
        }
        // Ended by whoever needed its memory: its sockets are still to be removed.
        machine.kill().await.or_problem()?;
        Ok(None)
    }

    /// Ends the processes that have lingered for long enough, and all where memory is short. Says
    /// whether there were any.
    pub(crate) async fn end_overstayed(&self) -> bool {
        let lingering = locked(&self.lingering).len();
        self.passes.lingering.set(i64::try_from(lingering).unwrap_or(i64::MAX));
        let over = self.overstayed().await;
        for id in &over {
            self.end_lingering(*id).await;
        }
        !over.is_empty()
    }

    /// Those that are to end now.
    pub(crate) async fn overstayed(&self) -> Vec<InstanceId> {
        let lingering = locked(&self.lingering).clone();
        if lingering.is_empty() {
            return Vec::new();
        }
        let (pressed, now) = (self.is_pressed(), now());
        self.records.read(|world| {
            let of = |id: &InstanceId| {
                let instance = world.instances.get(id)?;
                let policy = world.pools.get(&instance.pool)?.runtime_policy;
                Some((instance, lingers_until(&policy, instance)))
            };
            overstayed(lingering.iter().filter_map(of), pressed, now)
        })
    }

    /// Ends all of them: nobody will be there to wake them.
    pub(crate) async fn end_all_lingering(&self) {
        let all = locked(&self.lingering).clone();
        for id in all {
            self.end_lingering(id).await;
        }
    }

    /// Whether its process will be ended in time, if it has one.
    #[cfg(test)]
    pub(crate) fn watches_lingering(&self, id: InstanceId) -> bool {
        locked(&self.lingering).contains(&id)
    }

    /// Ends the process that a sleeping instance still has, if it has one.
    pub(crate) async fn end_lingering(&self, id: InstanceId) {
        let slot = self.slot(id);
        // Where somebody is at it, it is being woken or destroyed.
        let Ok(mut live) = slot.gate.try_lock() else { return };
        if live.lingers()
            && let Err(problem) = self.kill(&mut live).await
        {
            return tracing::warn!(instance = %id, "its process lingers on: {problem}");
        }
        locked(&self.lingering).remove(&id);
    }
}
