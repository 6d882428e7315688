//! Measures how busy instances and the host are, for the sleep policy.

use crate::instances::Slots;
use crate::links::Links;
use crate::locks::locked;
use crate::records::Records;
use mvm_model::policy::{Idle, Sample};
use mvm_model::{Instance, InstanceId, State, Timestamp};
use std::collections::HashMap;
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;

/// How often an instance is measured.
const EVERY: Duration = Duration::from_secs(5);

/// Since when instances have been idle, as far as this agent has measured.
pub(crate) struct IdleTimes {
    records: Arc<Records>,
    slots: Arc<Slots>,
    links: Arc<Links>,
    samples: Lock<HashMap<InstanceId, Idle>>,
}

impl IdleTimes {
    /// Makes the service without measurements.
    pub(crate) fn new(records: Arc<Records>, slots: Arc<Slots>, links: Arc<Links>) -> IdleTimes {
        IdleTimes { records, slots, links, samples: Lock::default() }
    }

    /// Returns since when a running instance has been idle, as far as this agent has measured.
    pub(crate) fn since(&self, id: InstanceId) -> Option<Timestamp> {
        locked(&self.samples).get(&id).map(|idle| idle.since)
    }

    /// Measures the running instances without a lease, and forgets the others.
    pub(crate) async fn measure(&self) {
        let free: Vec<Instance> = self.records.read(|records| {
            let free =
                |i: &&Instance| i.state == State::Running && i.lease.is_none() && !i.is_busy();
            records.instances.values().filter(free).cloned().collect()
        });
        locked(&self.samples).retain(|id, _| free.iter().any(|instance| instance.id == *id));
        for instance in free {
            let last = locked(&self.samples).get(&instance.id).copied();
            let due = last.is_none_or(|idle| self.records.clock().now() >= idle.last.at + EVERY);
            if !due {
                continue;
            }
            if let Some(sample) = self.sample(&instance).await {
                let idle = last.map_or_else(|| Idle::begin(sample), |idle| idle.after(sample));
                locked(&self.samples).insert(instance.id, idle);
            }
        }
    }

    async fn sample(&self, instance: &Instance) -> Option<Sample> {
        let slot = self.slots.of(instance.id);
        // An instance in a transition is not idle, and changes its state at the end.
        let machine = slot.gate.try_lock().ok()?.machine.clone()?;
        let stats = machine.stats().await.ok()?;
        let tap = self.links.counters(instance).await.ok();
        Some(Sample {
            at: self.records.clock().now(),
            cpu_ms: stats.cpu_time_ms,
            net_bytes: tap.map_or(0, |tap| tap.rx_bytes + tap.tx_bytes),
            sessions: slot.sessions(),
        })
    }
}
