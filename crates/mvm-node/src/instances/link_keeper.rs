//! Keeps links and rules as they are to be, and fails the machines that have lost their tap.

use super::slots::Slots;
use super::transitions::Transitions;
use crate::links::Links;
use crate::records::Records;
use crate::wake::Wake;
use mvm_api::Problem;
use mvm_model::{Code, InstanceId};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;

/// How long it is waited before the kernel is listened to again.
const AGAIN: Duration = Duration::from_secs(1);

/// Looks after links and rules, as long as the agent runs.
pub(crate) struct LinkKeeper {
    links: Arc<Links>,
    records: Arc<Records>,
    slots: Arc<Slots>,
    transitions: Arc<Transitions>,
    wake: Wake,
    /// Machines whose tap was deleted under them, and that failed for it.
    pub taps_lost: Counter,
}

impl LinkKeeper {
    /// Looks after these links.
    pub fn new(
        links: Arc<Links>,
        records: Arc<Records>,
        slots: Arc<Slots>,
        transitions: Arc<Transitions>,
        wake: Wake,
    ) -> LinkKeeper {
        LinkKeeper { links, records, slots, transitions, wake, taps_lost: Counter::default() }
    }

    /// Registers what is counted.
    pub fn register(&self, registry: &mut Registry) {
        let what = "Machines whose tap was deleted under them, and that failed for it";
        registry.register("taps_lost", what, self.taps_lost.clone());
    }

    /// Puts rules and links back as soon as somebody has changed them; until the task is ended. Besides,
    /// every pass of the reconcile loop looks.
    pub async fn run(self: Arc<Self>) {
        loop {
            let failed = match self.links.network().watch() {
                Ok(mut watch) => loop {
                    // At first for what happened before somebody listened.
                    self.keep().await;
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
    pub async fn keep(self: &Arc<Self>) {
        for id in self.links.keep().await {
            let keeper = self.clone();
            tokio::spawn(async move { keeper.unplugged(id).await });
        }
    }

    /// A machine whose tap is gone has no network for as long as its process lives: it fails with that
    /// reason. The reconciler replaces a spare; any other can be started again.
    async fn unplugged(&self, id: InstanceId) {
        let slot = self.slots.of(id);
        // Whoever is at it makes the tap, or takes the machine away; if not, the next pass comes.
        let Ok(mut live) = slot.gate.try_lock() else { return };
        let Ok(instance) = self.records.read(|world| world.by_id(id).cloned()) else { return };
        let lives = instance.state.has_process() && !instance.is_busy() && live.machine.is_some();
        if !lives || !self.links.has_lost_tap(&instance).await {
            return;
        }
        let what = format!(
            "its network link {} was deleted under it: the machine cannot get it back",
            self.links.tap_name(&instance)
        );
        let hint = format!("start it again: mvm instance start {}", instance.reference());
        let why = Problem::new(Code::NetworkLost, what).hint(hint);
        self.taps_lost.inc();
        slot.note_end(why.clone());
        // What comes back is the reason itself.
        let _ = self.transitions.give_up(&mut live, id, why).await;
        self.wake.notify();
    }
}
