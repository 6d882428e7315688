//! Keeps links and rules in their desired state, and fails the machines that have lost their tap.

use super::slots::Slots;
use super::transitions::Transitions;
use crate::Error;
use crate::error::MachineError;
use crate::links::Links;
use crate::records::Records;
use crate::wake::Wake;
use mvm_model::InstanceId;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;

/// The pause before the kernel's notifications are subscribed to again after an error.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps links and rules in order as long as the agent runs.
pub(crate) struct LinkKeeper {
    links: Arc<Links>,
    records: Arc<Records>,
    slots: Arc<Slots>,
    transitions: Arc<Transitions>,
    wake: Wake,
    /// The number of machines that failed because their tap was deleted while they ran.
    pub taps_lost: Counter,
}

impl LinkKeeper {
    /// Makes the keeper of these links.
    pub fn new(
        links: Arc<Links>,
        records: Arc<Records>,
        slots: Arc<Slots>,
        transitions: Arc<Transitions>,
        wake: Wake,
    ) -> LinkKeeper {
        LinkKeeper { links, records, slots, transitions, wake, taps_lost: Counter::default() }
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let what = "Machines whose tap was deleted under them, and that failed for it";
        registry.register("taps_lost", what, self.taps_lost.clone());
    }

    /// Restores rules and links as soon as they were changed from outside, until the task is
    /// aborted. Every pass of the reconcile loop checks them as well.
    pub async fn run(self: Arc<Self>) {
        loop {
            let failed = match self.links.network().watch() {
                Ok(mut watch) => loop {
                    // The first call repairs the changes that came before the subscription.
                    self.repair().await;
                    if let Err(error) = watch.changed().await {
                        break error;
                    }
                },
                Err(error) => error,
            };
            tracing::warn!("changes of rules and links are seen late: {failed}");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Brings rules and links in line with records, host and kernel.
    pub async fn repair(self: &Arc<Self>) {
        for id in self.links.repair_all().await {
            let keeper = self.clone();
            tokio::spawn(async move { keeper.fail_lost_tap(id).await });
        }
    }

    /// Fails a machine whose tap is gone, since its process cannot get a network any more. The
    /// reconciler replaces a spare; any other instance can be started again.
    async fn fail_lost_tap(&self, id: InstanceId) {
        let slot = self.slots.of(id);
        // If the gate is held, the operation makes the tap or ends the machine; otherwise the next
        // pass looks.
        let Ok(mut live) = slot.gate.try_lock() else { return };
        let Ok(instance) = self.records.read(|records| records.by_id(id).cloned()) else { return };
        let lives = instance.state.has_process() && !instance.is_busy() && live.machine.is_some();
        if !lives || !self.links.has_lost_tap(&instance).await {
            return;
        }
        let (link, reference) = (self.links.tap_name(&instance), instance.reference());
        let why = Arc::new(Error::from(MachineError::NetworkLost { link, reference }));
        self.taps_lost.inc();
        slot.note_end(why.clone());
        // The returned error is the reason itself.
        let _ = self.transitions.fail(&mut live, id, why.into()).await;
        self.wake.notify();
    }
}
