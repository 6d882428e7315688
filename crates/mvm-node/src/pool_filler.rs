//! Carries out the model's plan for a pool: marks an instance in the records, then works in the
//! background.

use crate::Result;
use crate::audit::Auditor;
use crate::error::MachineError;
use crate::health::Health;
use crate::instances::Instances;
use crate::records::Records;
use crate::spares::Spares;
use crate::template_maker::TemplateMaker;
use crate::wake::Wake;
use mvm_model::action::Action;
use mvm_model::plan::Failures;
use mvm_model::{Actor, Code, InstanceId, PoolRef, State};
use mvm_model::{policy, reconcile};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fills pools with instances, and removes instances from them.
pub(crate) struct PoolFiller {
    records: Arc<Records>,
    instances: Arc<Instances>,
    spares: Arc<Spares>,
    template_maker: Arc<TemplateMaker>,
    health: Arc<Health>,
    auditor: Arc<Auditor>,
    wake: Wake,
    /// The number of instances that are being brought to a state.
    in_flight: AtomicUsize,
}

impl PoolFiller {
    /// Makes the service for these instances. No work is under way yet.
    pub(crate) fn new(
        records: Arc<Records>,
        instances: Arc<Instances>,
        spares: Arc<Spares>,
        template_maker: Arc<TemplateMaker>,
        health: Arc<Health>,
        auditor: Arc<Auditor>,
        wake: Wake,
    ) -> PoolFiller {
        let in_flight = AtomicUsize::new(0);
        PoolFiller { records, instances, spares, template_maker, health, auditor, wake, in_flight }
    }

    /// Returns how many more machines may be brought up now: one at a time for each CPU, which
    /// limits booting.
    pub(crate) fn free_slots(&self) -> usize {
        let most = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        most.saturating_sub(self.in_flight.load(Ordering::SeqCst))
    }

    /// Returns the pool's failures, for the back-off.
    pub(crate) fn failures(&self, pool: &PoolRef) -> Failures {
        self.health.of(pool).failures
    }

    /// Puts the warm instance that has been idle longest to sleep, before the kernel starts to kill
    /// processes.
    pub(crate) async fn relieve_memory(&self) {
        let longest = self.records.read(|records| policy::relieve(records.instances.values()));
        let Some(id) = longest else { return };
        tracing::warn!(instance = %id, "the host is short of memory: putting it to sleep");
        if let Ok(Some((id, to))) = self.spares.claim(id, State::Sleeping).await {
            let outcome = self
                .auditor
                .as_agent_on(
                    "instance.sleep",
                    id,
                    self.instances.transition_to(id, to, &Actor::Agent),
                )
                .await;
            self.spares.clear_goal(id).await;
            if let Err(error) = outcome {
                tracing::warn!(instance = %id, "cannot put to sleep: {error}");
            }
        }
    }

    /// Marks the instance in the records, and starts the work in the background.
    pub(crate) async fn begin(self: &Arc<Self>, pool: &PoolRef, action: Action) {
        tracing::debug!(%pool, ?action, "reconcile");
        let marked = match action {
            Action::Create { to } => self
                .instances
                .transitions()
                .create(pool, Some(to))
                .await
                .map(|i| Some((i.id, to, "instance.create"))),
            Action::Move { id, to } => {
                self.spares.claim(id, to).await.map(|free| free.map(|(id, to)| (id, to, verb(to))))
            }
            Action::Destroy { id } => {
                let spares = self.spares.clone();
                tokio::spawn(async move {
                    if let Err(error) = spares.destroy(id).await {
                        tracing::warn!(instance = %id, "cannot destroy: {error}");
                    }
                });
                return;
            }
        };
        match marked {
            Ok(None) => {}
            Ok(Some((id, to, verb))) => {
                self.in_flight.fetch_add(1, Ordering::SeqCst);
                let (filler, pool) = (self.clone(), pool.clone());
                tokio::spawn(async move {
                    filler.auditor.as_agent_on(verb, id, filler.work(&pool, id, to)).await.ok();
                    filler.in_flight.fetch_sub(1, Ordering::SeqCst);
                    filler.wake.notify();
                });
            }
            Err(error) => self.health.failed(pool, &error),
        }
    }

    async fn work(&self, pool: &PoolRef, id: InstanceId, to: State) -> Result<()> {
        let outcome = async {
            self.template_maker.ensure(id).await?;
            self.instances.transition_to(id, to, &Actor::Agent).await
        };
        let outcome = outcome.await;
        let gone = self.spares.clear_goal(id).await;
        match &outcome {
            Ok(_) => self.health.succeeded(pool),
            // The instance was destroyed in the meantime, which is no failure.
            Err(error) if gone || error.code() == Code::Destroyed => {}
            // The instance was leased after the plan was made, and belongs to its holder.
            Err(error) if error.code() == Code::Leased => {}
            Err(error) => self.health.failed(pool, error),
        }
        outcome.map(drop)
    }

    /// Destroys spares that have failed, and keeps the reason with the pool. The reconciler
    /// replaces them.
    pub(crate) async fn discard_failed(&self, pool: &PoolRef) {
        let failed: Vec<(InstanceId, String)> = self.records.read(|records| {
            let Some(record) = records.pools.get(pool) else { return Vec::new() };
            let failed = reconcile::failed_spares(record, records.of_pool(pool));
            failed.iter().map(|i| (i.id, i.reason.clone().unwrap_or_default())).collect()
        });
        for (id, reason) in failed {
            if self.health.of(pool).last_failure.is_none() {
                self.health.failed(pool, &MachineError::SpareFailed(reason).into());
            }
            if let Err(error) = self.spares.destroy(id).await {
                tracing::warn!(instance = %id, "cannot destroy: {error}");
            }
        }
    }
}

/// Returns the audit log's name for bringing an instance to a state.
fn verb(to: State) -> &'static str {
    match to {
        State::Warm => "instance.warm",
        State::Sleeping => "instance.sleep",
        State::Stopped => "instance.stop",
        State::Destroyed => "instance.destroy",
        State::Created | State::Running | State::Failed => "instance.wake",
    }
}
