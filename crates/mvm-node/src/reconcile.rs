//! The reconcile loop: asks the model for a plan and has it carried out, a few steps at a time.

use crate::idle::IdleTimes;
use crate::passes::Passes;
use crate::pool_filler::PoolFiller;
use crate::pressure::HostPressure;
use crate::records::Records;
use crate::template_maker::TemplateMaker;
use crate::upkeep::Upkeep;
use crate::wake::Wake;
use mvm_model::action::Action;
use mvm_model::{PoolRef, reconcile};
use std::sync::Arc;
use std::time::Duration;

/// The period at which the loop runs even if nothing has happened.
const PERIOD: Duration = Duration::from_secs(2);

/// Brings pools to their desired state.
pub(crate) struct Reconciler {
    pub(crate) upkeep: Upkeep,
    pub(crate) filler: Arc<PoolFiller>,
    pub(crate) template_maker: Arc<TemplateMaker>,
    pub(crate) records: Arc<Records>,
    pub(crate) idle: Arc<IdleTimes>,
    pub(crate) pressure: HostPressure,
    pub(crate) passes: Arc<Passes>,
    /// Starts a pass before its time.
    pub(crate) wake: Wake,
}

impl Reconciler {
    /// Runs passes until the task is aborted.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let freed = self.upkeep.begin_pass().await;
            self.pass(freed).await;
            self.upkeep.trim_consoles().await;
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    async fn pass(&self, freed: bool) {
        let pressed = self.pressure.is_high();
        self.passes.pressed.set(i64::from(pressed));
        // The ended lingering processes have just freed memory: the next pass sees whether that
        // suffices.
        if pressed && !freed {
            self.filler.relieve_memory().await;
        }
        let pools: Vec<PoolRef> =
            self.records.read(|records| records.pools.keys().cloned().collect());
        for pool in pools {
            // A host that is short of memory gets no more machines.
            let slots = if pressed { 0 } else { self.filler.free_slots() };
            for action in self.plan(&pool, slots) {
                self.filler.begin(&pool, action).await;
            }
            self.filler.discard_failed(&pool).await;
        }
        self.template_maker.renew_and_collect(!pressed).await;
        self.passes.made.inc();
    }

    /// Returns the actions that the pool needs; if it needs none, those of its policy for idle
    /// instances.
    fn plan(&self, reference: &PoolRef, slots: usize) -> Vec<Action> {
        let (failures, now) = (self.filler.failures(reference), self.records.clock().now());
        self.records.read(|records| {
            let Some(pool) = records.pools.get(reference) else { return Vec::new() };
            let instances: Vec<_> = records.of_pool(reference).collect();
            let idle_since = |id| self.idle.since(id);
            reconcile::next(pool, &instances, failures, slots, idle_since, now)
        })
    }
}
