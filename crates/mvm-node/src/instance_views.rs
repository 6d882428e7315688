//! Instances as the API shows them.

use crate::Result;
use crate::blocking::blocking;
use crate::deadlines::STATS;
use crate::holders::LeaseHolders;
use crate::idle::IdleTimes;
use crate::instances::{Halted, Slots, disk_use_kib};
use crate::links::Links;
use crate::records::Records;
use crate::shown::Shown;
use crate::state_dir::StateDir;
use mvm_api::types::{InstanceStats, InstanceView};
use mvm_hypervisor::Machine;
use mvm_model::policy::{self, Next};
use mvm_model::{Instance, InstanceRef, State, Timestamp};
use std::sync::Arc;

/// Makes the views of instances.
pub(crate) struct InstanceViews {
    pub(crate) records: Arc<Records>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) links: Arc<Links>,
    pub(crate) halted: Arc<Halted>,
    pub(crate) idle: Arc<IdleTimes>,
    pub(crate) holders: Arc<LeaseHolders>,
    pub(crate) state_dir: StateDir,
    /// Whether machines are simulated.
    pub(crate) simulated: bool,
}

impl InstanceViews {
    fn view(
        &self,
        instance: &Instance,
        pid: Option<u32>,
        lingers_until: Option<Timestamp>,
        next: Option<Next>,
    ) -> InstanceView {
        InstanceView {
            reference: instance.reference(),
            tenant_id: instance.pool.tenant.clone(),
            pool_id: instance.pool.pool.clone(),
            instance_id: instance.id.to_string(),
            state: instance.state,
            going_to: instance.goal.or(instance.intent.map(|intent| intent.to)),
            reason: instance.reason.clone(),
            paused: self.halted.paused(instance.id),
            address: instance.address,
            mac: instance.mac,
            instance_resources: instance.resources,
            revision: instance.revision,
            lease: instance.lease.as_ref().map(|lease| self.holders.shown(lease)),
            leases_served: instance.leases_served,
            way_up: instance.way_up,
            accelerator: instance.processor.as_ref().map(|processor| processor.accelerator),
            cpu_model: instance.processor.as_ref().map(|processor| processor.model.clone()),
            pid,
            simulated: self.simulated,
            node_id: None,
            created_at: instance.created_at,
            state_since: instance.state_since,
            lingers_until,
            next,
        }
    }

    /// Returns the present view of the instance, with its process.
    pub(crate) fn show(&self, reference: &InstanceRef) -> Result<InstanceView> {
        let (instance, until, next) = self.records.read(|records| {
            let instance = records.instance(reference)?;
            let (pool, idle) = (records.pool(&instance.pool)?, self.idle.since(instance.id));
            let next = policy::next(pool, instance, idle);
            let until = policy::lingers_until(&pool.runtime_policy, instance);
            Ok::<_, crate::Error>((instance.clone(), until, next))
        })?;
        let slot = self.slots.of(instance.id);
        // A transition that holds the gate may be changing the process; the view does not wait for
        // it.
        let (pid, lingers) = match slot.gate.try_lock() {
            Ok(live) => (live.process().map(|machine| machine.process().pid), live.lingers()),
            Err(_) => (None, false),
        };
        let view = self.view(&instance, pid, lingers.then_some(until), next);
        Ok(view.shown(self.records.clock()))
    }

    /// Returns the statistics of an instance, as the host and its guest count them.
    pub(crate) async fn stats(&self, reference: &InstanceRef) -> Result<InstanceStats> {
        let instance = self.records.read(|records| records.instance(reference).cloned())?;
        let dir = self.state_dir.files(instance.id).dir;
        let disk_kib = blocking(move || Ok(disk_use_kib(&dir))).await?;
        let mut stats = InstanceStats {
            state: instance.state,
            cpu_time_ms: 0,
            resident_kib: 0,
            proportional_kib: 0,
            footprint: None,
            net_sent_bytes: 0,
            net_received_bytes: 0,
            disk_kib,
            guest: None,
        };
        // The tap counts from the host's side: what the tap receives, the guest has sent.
        if let Ok(tap) = self.links.counters(&instance).await {
            stats.net_sent_bytes = tap.rx_bytes;
            stats.net_received_bytes = tap.tx_bytes;
        }
        let machine = self.machine_for_stats(&instance, &mut stats).await;
        let Some(machine) = machine else { return Ok(stats) };
        let used = match machine.stats().await {
            // A lingering process may end at any time.
            Err(_) if instance.state == State::Sleeping => return Ok(stats),
            used => used?,
        };
        stats.cpu_time_ms = used.cpu_time_ms;
        stats.resident_kib = used.resident_kib;
        stats.proportional_kib = used.proportional_kib;
        stats.footprint = machine.footprint().await.ok();
        Ok(stats)
    }

    /// Returns the process of an instance, and its guest's statistics. Waits only briefly for
    /// either.
    async fn machine_for_stats(
        &self,
        instance: &Instance,
        stats: &mut InstanceStats,
    ) -> Option<Arc<dyn Machine>> {
        let (slot, until) = (self.slots.of(instance.id), STATS.begin());
        let Ok(mut live) = tokio::time::timeout_at(until.at, slot.gate.lock()).await else {
            stats.guest = Some("a transition is under way".into());
            return None;
        };
        let machine = live.process()?.clone();
        if instance.state == State::Running {
            let channel = tokio::time::timeout_at(until.at, live.channel()).await;
            // The gate is released before the guest is asked, so that others need not wait for its
            // answer.
            drop(live);
            let said = match channel {
                Ok(Ok(channel)) => slot.waits.guest(until, channel.stats()).await.ok(),
                _ => None,
            };
            let said = said.and_then(|said| serde_json::to_value(said).ok());
            stats.guest = said.or_else(|| Some("does not answer".into()));
        }
        Some(machine)
    }
}
