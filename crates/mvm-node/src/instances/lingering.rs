//! Hypervisor processes that are kept for a while after their machine went to sleep. A wake that
//! comes soon need not start a process.
//!
//! The snapshot holds the machine's state. A lingering process is a cache of it, known in memory
//! only, and can be ended at any time without loss: when its time is over, when memory is short, or
//! when the agent ends. A lingering process that a killed agent left is ended by the next agent.

use super::slot::Live;
use super::slots::Slots;
use crate::Result;
use crate::locks::locked;
use crate::pressure::HostPressure;
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

/// The processes of sleeping instances, and their metrics.
pub(crate) struct Lingering {
    records: Arc<Records>,
    slots: Arc<Slots>,
    pressure: HostPressure,
    current: Gauge,
    /// The number of processes that did not resume, so that their instances were woken from disk.
    pub unresumed: Counter,
}

impl Lingering {
    /// Makes the service, on a host with this memory pressure.
    pub(crate) fn new(
        records: Arc<Records>,
        slots: Arc<Slots>,
        pressure: HostPressure,
    ) -> Lingering {
        let (current, unresumed) = (Gauge::default(), Counter::default());
        Lingering { records, slots, pressure, current, unresumed }
    }

    /// Registers the metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let what = "Processes of sleeping instances, kept for a quick wake";
        registry.register("lingering", what, self.current.clone());
        let what = "Kept processes that did not take up: their instances were woken from disk";
        registry.register("lingering_unresumed", what, self.unresumed.clone());
    }

    /// Keeps the process of a machine whose snapshot is complete for a while, or ends it.
    pub(crate) async fn retain_process(&self, live: &mut Live, instance: &Instance) -> Result<()> {
        let policy = self
            .records
            .read(|records| records.pool(&instance.pool).map(|pool| pool.runtime_policy));
        // A clone's process would hold all of the clone's private memory, and a template's files
        // are taken at once.
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

    /// Takes the process that a sleeping instance still has, paused as it was at the snapshot;
    /// `None` where there is none or it has ended.
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
        // The process was ended from outside, for its memory say: its sockets must still be
        // removed.
        machine.kill().await?;
        Ok(None)
    }

    /// Ends the processes whose time is over, those over the limit, or all if memory is short.
    /// Returns whether there were any.
    pub(crate) async fn end_overstayed(&self) -> bool {
        let lingering = locked(&self.slots.lingering).len();
        self.current.set(i64::try_from(lingering).unwrap_or(i64::MAX));
        let over = self.overstayed();
        for id in &over {
            self.end(*id).await;
        }
        !over.is_empty()
    }

    /// Returns the instances whose processes are to end now.
    pub(crate) fn overstayed(&self) -> Vec<InstanceId> {
        let lingering = locked(&self.slots.lingering).clone();
        if lingering.is_empty() {
            return Vec::new();
        }
        let (pressed, now) = (self.pressure.is_high(), self.records.clock().now());
        self.records.read(|records| {
            let of = |id: &InstanceId| {
                let instance = records.instances.get(id)?;
                let policy = records.pools.get(&instance.pool)?.runtime_policy;
                Some((instance, lingers_until(&policy, instance)))
            };
            overstayed(lingering.iter().filter_map(of), pressed, now)
        })
    }

    /// Ends all lingering processes: once the agent ends, no wake can use them.
    pub(crate) async fn end_all(&self) {
        let all = locked(&self.slots.lingering).clone();
        for id in all {
            self.end(id).await;
        }
    }

    /// Returns whether the instance is among those whose process will be ended in time.
    #[cfg(test)]
    pub(crate) fn watches(&self, id: InstanceId) -> bool {
        locked(&self.slots.lingering).contains(&id)
    }

    /// Ends the process that a sleeping instance still has, if there is one.
    pub(crate) async fn end(&self, id: InstanceId) {
        let slot = self.slots.of(id);
        // If the gate is held, the instance is being woken or destroyed.
        let Ok(mut live) = slot.gate.try_lock() else { return };
        if live.lingers()
            && let Err(error) = live.kill().await
        {
            return tracing::warn!(instance = %id, "its process lingers on: {error}");
        }
        locked(&self.slots.lingering).remove(&id);
    }
}
