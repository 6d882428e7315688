//! Processes that outlast the sleep of their machine: woken soon, it needs none to be started.
//!
//! The snapshot is the machine; what lingers is a cache of it, in memory only. It is given up at any
//! time without loss: when its time is over, when memory is short, when the agent ends. One that a
//! killed agent left is ended by the next.

use super::slot::Live;
use super::slots::Slots;
use crate::Result;
use crate::locks::locked;
use crate::now;
use crate::pressure::HostPressure;
use crate::problem::OrProblem;
use crate::records::Records;
use crate::templates::is_template_builder;
use futures::FutureExt;
use mvm_hypervisor::Machine;
use mvm_model::policy::{lingers_until, overstayed};
use mvm_model::{Instance, InstanceId};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// The processes of sleeping instances, and the metrics of them.
pub(crate) struct Lingering {
    records: Arc<Records>,
    slots: Arc<Slots>,
    pressure: HostPressure,
    current: Gauge,
    /// Processes that did not take up: their instances were woken from disk.
    pub unresumed: Counter,
}

impl Lingering {
    /// Of a host whose pressure is this.
    pub(crate) fn new(
        records: Arc<Records>,
        slots: Arc<Slots>,
        pressure: HostPressure,
    ) -> Lingering {
        let (current, unresumed) = (Gauge::default(), Counter::default());
        Lingering { records, slots, pressure, current, unresumed }
    }

    /// Registers what is counted.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let what = "Processes of sleeping instances, kept for a quick wake";
        registry.register("lingering", what, self.current.clone());
        let what = "Kept processes that did not take up: their instances were woken from disk";
        registry.register("lingering_unresumed", what, self.unresumed.clone());
    }

    /// The snapshot of this machine is whole: its process stays for a while, or ends.
    pub(crate) async fn keep(&self, live: &mut Live, instance: &Instance) -> Result<()> {
        let policy =
            self.records.read(|world| world.pool(&instance.pool).map(|pool| pool.runtime_policy));
        // A clone's memory is its own alone, and would be held in full; a template's is taken at once.
        let cheap = instance.template.is_none()
            && !is_template_builder(instance)
            && !self.pressure.is_high();
        if !cheap || policy?.linger_s == 0 {
            return live.kill().await;
        }
        live.channel = None;
        live.lingering = live.machine.take();
        locked(&self.slots.lingering).insert(instance.id);
        Ok(())
    }

    /// The process that this sleeping instance still has, paused as it was when it was snapshotted.
    pub(crate) async fn take(
        &self,
        live: &mut Live,
        id: InstanceId,
    ) -> Result<Option<Arc<dyn Machine>>> {
        locked(&self.slots.lingering).remove(&id);
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
        let lingering = locked(&self.slots.lingering).len();
        self.current.set(i64::try_from(lingering).unwrap_or(i64::MAX));
        let over = self.overstayed().await;
        for id in &over {
            self.end(*id).await;
        }
        !over.is_empty()
    }

    /// Those that are to end now.
    pub(crate) async fn overstayed(&self) -> Vec<InstanceId> {
        let lingering = locked(&self.slots.lingering).clone();
        if lingering.is_empty() {
            return Vec::new();
        }
        let (pressed, now) = (self.pressure.is_high(), now());
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
    pub(crate) async fn end_all(&self) {
        let all = locked(&self.slots.lingering).clone();
        for id in all {
            self.end(id).await;
        }
    }

    /// Whether its process will be ended in time, if it has one.
    #[cfg(test)]
    pub(crate) fn watches(&self, id: InstanceId) -> bool {
        locked(&self.slots.lingering).contains(&id)
    }

    /// Ends the process that a sleeping instance still has, if it has one.
    pub(crate) async fn end(&self, id: InstanceId) {
        let slot = self.slots.of(id);
        // Where somebody is at it, it is being woken or destroyed.
        let Ok(mut live) = slot.gate.try_lock() else { return };
        if live.lingers()
            && let Err(problem) = live.kill().await
        {
            return tracing::warn!(instance = %id, "its process lingers on: {problem}");
        }
        locked(&self.slots.lingering).remove(&id);
    }
}
