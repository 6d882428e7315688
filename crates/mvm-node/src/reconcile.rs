//! The reconcile loop: asks the model for a plan and carries it out, a few steps at a time.

use crate::node::Node;
use crate::state_dir::StateDir;
use crate::{Result, now};
use mvm_api::Problem;
use mvm_model::action::Action;
use mvm_model::{Code, InstanceId, Mover, PoolRef, State};
use mvm_model::{policy, reconcile};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How often the loop looks even when nothing happened.
const PERIOD: Duration = Duration::from_secs(2);

/// Runs until the task is ended.
pub async fn run(node: Arc<Node>) {
    let in_flight = Arc::new(AtomicUsize::new(0));
    loop {
        node.recovery.settle_again().await;
        node.leases.expire().await;
        node.link_keeper.keep().await;
        node.idle.measure().await;
        let freed = node.lingering.end_overstayed().await;
        tick(&node, &in_flight, freed).await;
        trim_consoles(&node.parts.root);
        tokio::select! {
            () = node.wake.notified() => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// How many machines may be brought up at once: booting is bound by the CPU.
fn most_in_flight() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

async fn tick(node: &Arc<Node>, in_flight: &Arc<AtomicUsize>, freed: bool) {
    let pressed = node.pressure.is_high();
    node.passes.pressed.set(i64::from(pressed));
    // What lingered has just made room: whether that is enough the next pass sees.
    if pressed && !freed {
        relieve(node).await;
    }
    let pools: Vec<PoolRef> = node.records.read(|world| world.pools.keys().cloned().collect());
    for reference in pools {
        let free = most_in_flight().saturating_sub(in_flight.load(Ordering::SeqCst));
        // A host without memory gets no more machines.
        let slots = if pressed { 0 } else { free };
        let failures = node.health.of(&reference).failures;
        let actions = node.records.read(|world| {
            let Some(pool) = world.pools.get(&reference) else { return Vec::new() };
            let instances: Vec<_> = world.of_pool(&reference).collect();
            let idle_since = |id| node.idle.since(id);
            reconcile::next(pool, &instances, failures, slots, idle_since, now())
        });
        for action in actions {
            begin(node, &reference, action, in_flight).await;
        }
        discard_failed(node, &reference).await;
    }
    if !pressed {
        node.template_maker.renew().await;
    }
    node.templates.collect().await;
    node.passes.made.inc();
}

/// Puts the longest idle warm instance to sleep, before the kernel begins to kill.
async fn relieve(node: &Arc<Node>) {
    let longest = node.records.read(|world| policy::relieve(world.instances.values()));
    let Some(id) = longest else { return };
    tracing::warn!(instance = %id, "the host is short of memory: putting it to sleep");
    if let Ok(Some((id, to))) = node.spares.claim(id, State::Sleeping).await {
        let outcome = node
            .auditor
            .as_agent_on("instance.sleep", id, node.instances.bring(id, to, &Mover::Agent))
            .await;
        node.spares.clear_goal(id).await;
        if let Err(problem) = outcome {
            tracing::warn!(instance = %id, "cannot put to sleep: {problem}");
        }
    }
}

/// Marks the instance in the records, then lets the work go on beside the loop.
async fn begin(node: &Arc<Node>, pool: &PoolRef, action: Action, in_flight: &Arc<AtomicUsize>) {
    tracing::debug!(%pool, ?action, "reconcile");
    let marked = match action {
        Action::Create { to } => node
            .transitions
            .create(pool, Some(to))
            .await
            .map(|i| Some((i.id, to, "instance.create"))),
        Action::Move { id, to } => {
            node.spares.claim(id, to).await.map(|free| free.map(|(id, to)| (id, to, verb(to))))
        }
        Action::Destroy { id } => {
            let node = node.clone();
            tokio::spawn(async move {
                if let Err(problem) = node.spares.destroy(id).await {
                    tracing::warn!(instance = %id, "cannot destroy: {problem}");
                }
            });
            return;
        }
    };
    match marked {
        Ok(None) => {}
        Ok(Some((id, to, verb))) => {
            in_flight.fetch_add(1, Ordering::SeqCst);
            let (node, pool, in_flight) = (node.clone(), pool.clone(), in_flight.clone());
            tokio::spawn(async move {
                node.auditor.as_agent_on(verb, id, work(&node, &pool, id, to)).await.ok();
                in_flight.fetch_sub(1, Ordering::SeqCst);
                node.wake.notify();
            });
        }
        Err(problem) => node.health.failed(pool, &problem),
    }
}

/// What the log calls the bringing of an instance to a state.
fn verb(to: State) -> &'static str {
    match to {
        State::Warm => "instance.warm",
        State::Sleeping => "instance.sleep",
        State::Stopped => "instance.stop",
        State::Destroyed => "instance.destroy",
        State::Created | State::Running | State::Failed => "instance.wake",
    }
}

async fn work(node: &Arc<Node>, pool: &PoolRef, id: InstanceId, to: State) -> Result<()> {
    let outcome = async {
        node.template_maker.ensure(id).await?;
        node.instances.bring(id, to, &Mover::Agent).await
    };
    let outcome = outcome.await;
    let gone = node.spares.clear_goal(id).await;
    match &outcome {
        Ok(_) => node.health.succeeded(pool),
        // Destroyed by somebody while it was being brought up: nothing failed.
        Err(problem) if gone || problem.code == Code::Destroyed => {}
        // Taken by somebody since the plan was made: it is theirs.
        Err(problem) if problem.code == Code::Leased => {}
        Err(problem) => node.health.failed(pool, problem),
    }
    outcome.map(drop)
}

/// A spare that failed serves nobody: its reason is kept with the pool, and it is replaced.
async fn discard_failed(node: &Arc<Node>, pool: &PoolRef) {
    let failed: Vec<(InstanceId, String)> = node.records.read(|world| {
        let Some(record) = world.pools.get(pool) else { return Vec::new() };
        let failed = reconcile::failed_spares(record, world.of_pool(pool));
        failed.iter().map(|i| (i.id, i.reason.clone().unwrap_or_default())).collect()
    });
    for (id, reason) in failed {
        if node.health.of(pool).last_failure.is_none() {
            node.health.failed(pool, &Problem::new(Code::InstanceFailed, reason));
        }
        if let Err(problem) = node.spares.destroy(id).await {
            tracing::warn!(instance = %id, "cannot destroy: {problem}");
        }
    }
}

/// Keeps every console log below its bound, whatever a guest prints.
fn trim_consoles(root: &StateDir) {
    let Ok(entries) = std::fs::read_dir(root.instances()) else { return };
    for entry in entries.flatten() {
        for log in ["vm/console.log", "vm/qemu.log"] {
            let path = entry.path().join(log);
            let limit = mvm_hypervisor::CONSOLE_MAX_BYTES;
            if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > limit)
                && let Err(error) = mvm_hypervisor::trim_log(&path, limit)
            {
                tracing::warn!("cannot trim {}: {error}", path.display());
            }
        }
    }
}
