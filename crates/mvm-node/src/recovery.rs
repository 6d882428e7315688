//! At start: what the last agent left is finished or undone, and what is ours is taken over. The
//! same is done for one instance whose last operation has failed on its way.

use crate::Result;
use crate::holders::is_claim;
use crate::node::Node;
use crate::operations::discard_memory;
use crate::operations::wake::unmark;
use crate::problem::OrProblem;
use crate::slot::Live;
use crate::state_dir::{remove_dir, remove_file};
use mvm_api::Problem;
use mvm_hypervisor::{Machine, ProcessIdentity};
use mvm_model::lease::Purpose;
use mvm_model::recovery::{Verdict, recover};
use mvm_model::{Instance, InstanceId, Job, Mover, Name, State};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Why a machine failed that was to be adopted.
const ENDED: &str = "its hypervisor process ended while the agent started";

/// Brings records and reality together. Afterwards every instance is in the state that its record
/// says, and there is no process, link or directory of ours that has no record.
pub async fn run(node: &Arc<Node>) -> Result<()> {
    node.restore_wires().await?;
    restore_tenant_dirs(node).await?;
    let mut processes = ours(node)?;
    let instances: Vec<Instance> =
        node.records.read(|world| world.instances.values().cloned().collect());
    for instance in &instances {
        let process = processes.remove(&instance.id);
        let slot = node.slot(instance.id);
        let mut live = slot.gate.lock().await;
        if let Err(problem) = settle(node, instance, process, &mut live).await {
            tracing::error!(instance = %instance.reference(), "cannot recover: {problem}");
            node.set_failed(instance.id, &problem.to_string()).await?;
        }
    }
    for (id, process) in processes {
        tracing::info!(instance = %id, pid = process.pid, "ending a machine that has no record");
        node.parts.hypervisor.kill_stray(&process).await.or_problem()?;
    }
    remove_stray_dirs(node, &instances)?;
    node.sweep_templates()?;
    node.sweep_caches().await?;
    node.recover_jobs().await?;
    end_orphaned_leases(node).await;
    Ok(())
}

/// Looks at the instances whose last operation has failed: a disk that was full for a moment, or a
/// process that would not end, may have kept it from its end.
pub async fn settle_again(node: &Arc<Node>) {
    for id in node.unsettled() {
        let slot = node.slot(id);
        // Where somebody is at it, its turn comes.
        let Ok(mut live) = slot.gate.try_lock() else { continue };
        if let Err(problem) = settle_now(node, id, &mut live).await {
            tracing::warn!(instance = %id, "cannot settle: {problem}");
        }
    }
}

/// Brings record and reality of one instance together, if its last operation has failed.
pub async fn settle_now(node: &Arc<Node>, id: InstanceId, live: &mut Live) -> Result<()> {
    if !node.is_unsettled(id) {
        return Ok(());
    }
    if let Ok(instance) = node.records.read(|world| world.by_id(id).cloned()) {
        let whole = live.machine.is_some() == instance.state.has_process();
        if !whole || instance.is_busy() {
            let process = ours(node)?.remove(&id);
            settle(node, &instance, process, live).await?;
        }
    }
    node.settled(id);
    Ok(())
}

/// Our hypervisor processes by instance.
pub(crate) fn ours(node: &Node) -> Result<HashMap<InstanceId, ProcessIdentity>> {
    let prefix = node.parts.root.marker_prefix();
    let found = node.parts.hypervisor.find(&prefix).or_problem()?;
    Ok(found
        .into_iter()
        .filter_map(|process| {
            let id = process.marker.strip_prefix(&prefix)?.parse().ok()?;
            Some((id, process))
        })
        .collect())
}

async fn settle(
    node: &Arc<Node>,
    instance: &Instance,
    process: Option<ProcessIdentity>,
    live: &mut Live,
) -> Result<()> {
    let files = node.parts.root.files(instance.id);
    // What an agent that was killed had not finished writing.
    remove_file(&files.snapshot_part())?;
    let verdict = recover(instance, process.is_some(), node.snapshot_of(instance, &files));
    tracing::debug!(instance = %instance.reference(), ?verdict, "recover");
    match verdict {
        Verdict::Adopt(state) => {
            let outcome = async {
                let adopted = match (live.machine.take(), &process) {
                    (Some(machine), _) => Some(machine),
                    (None, Some(process)) => adopt(node, instance, process).await?,
                    (None, None) => None,
                };
                let machine = adopted.ok_or_else(|| Problem::new(500, "machine_died", ENDED))?;
                discard_memory(instance, &files)?;
                take_over(node, instance, machine, state, live).await
            };
            let outcome = outcome.await;
            match outcome {
                // Its guest may not have run yet: then it sleeps on.
                Err(problem) if files.resuming().exists() => {
                    tracing::warn!(instance = %instance.reference(), "not resumed: {problem}");
                    end_at_once(node, process, live).await?;
                    Box::pin(settle(node, instance, None, live)).await
                }
                Err(problem) if problem.detail == ENDED => {
                    node.set_failed(instance.id, ENDED).await
                }
                outcome => outcome,
            }
        }
        Verdict::Settle(state) => {
            end(node, process, live).await?;
            match state {
                State::Sleeping => unmark(&files)?,
                _ => {
                    remove_file(&files.snapshot())?;
                    remove_file(&files.resuming())?;
                    remove_file(&files.memory())?;
                }
            }
            record(node, instance.id, state).await
        }
        Verdict::Destroy => {
            end(node, process, live).await?;
            let destroyed = node.destroy_live(live, instance.id, &Mover::Force);
            node.as_agent_on("instance.destroy", instance.id, destroyed).await
        }
        Verdict::Fail(reason) => {
            end(node, process, live).await?;
            remove_file(&files.resuming())?;
            node.records.update(instance.id, |instance| instance.goal = None).await?;
            node.set_failed(instance.id, &reason).await
        }
    }
}

async fn adopt(
    node: &Node,
    instance: &Instance,
    process: &ProcessIdentity,
) -> Result<Option<Arc<dyn Machine>>> {
    let tenant = node.records.read(|world| world.tenant(&instance.pool.tenant).cloned())?;
    let spec = node.spec(&tenant, instance)?;
    node.parts.hypervisor.adopt(&spec, process).await.or_problem()
}

/// Puts an adopted machine into its slot, with the vCPUs as the record says.
async fn take_over(
    node: &Arc<Node>,
    instance: &Instance,
    machine: Arc<dyn Machine>,
    state: State,
    live: &mut Live,
) -> Result<()> {
    match state {
        State::Running => machine.resume().await.or_problem()?,
        _ => machine.pause().await.or_problem()?,
    }
    live.machine = Some(machine.clone());
    node.watch(instance.id, machine);
    remove_file(&node.parts.root.files(instance.id).resuming())?;
    record(node, instance.id, state).await?;
    if state == State::Running {
        // The last agent may have been killed between the resume and the setting of the clock.
        let (node, id) = (node.clone(), instance.id);
        tokio::spawn(async move {
            let slot = node.slot(id);
            let mut live = slot.gate.lock().await;
            if live.machine.is_some()
                && let Err(problem) = node.greet(&mut live).await
            {
                tracing::warn!(instance = %id, "the guest of an adopted machine: {problem}");
            }
        });
    }
    Ok(())
}

/// Ends a process that does not take up, before it does what it was told.
async fn end_at_once(node: &Node, process: Option<ProcessIdentity>, live: &mut Live) -> Result<()> {
    let process = live.process().map(|machine| machine.process()).or(process);
    if let Some(process) = process {
        node.parts.hypervisor.kill_stray(&process).await.or_problem()?;
    }
    node.kill(live).await
}

async fn end(node: &Node, process: Option<ProcessIdentity>, live: &mut Live) -> Result<()> {
    match process {
        _ if live.process().is_some() => node.kill(live).await,
        Some(process) => node.parts.hypervisor.kill_stray(&process).await.or_problem(),
        None => Ok(()),
    }
}

async fn record(node: &Node, id: InstanceId, state: State) -> Result<()> {
    node.records
        .update(id, |instance| {
            instance.goal = None;
            let (since, reason, paused) = match instance.state == state {
                true => (instance.state_since, instance.reason.take(), instance.paused.take()),
                false => (crate::now(), None, None),
            };
            instance.reach(state, since);
            // Whether it still is, its machine tells.
            (instance.reason, instance.paused) = (reason, paused);
        })
        .await
}

/// A tenant's directory holds its SSH key: it comes and goes with the record.
async fn restore_tenant_dirs(node: &Node) -> Result<()> {
    let root = &node.parts.root;
    let tenants: Vec<Name> = node.records.read(|world| world.tenants.keys().cloned().collect());
    for tenant in &tenants {
        crate::identity::tenant_key(root, tenant)?;
    }
    let Ok(entries) = std::fs::read_dir(root.tenants()) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if tenants.iter().all(|tenant| *tenant.as_str() != *name) {
            tracing::info!("removing {}, whose tenant is gone", entry.path().display());
            remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_stray_dirs(node: &Node, instances: &[Instance]) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(node.parts.root.instances()) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let known = instances.iter().any(|instance| *instance.id.to_string() == *name);
        if !known && name.to_str().is_some_and(|name| name.parse::<InstanceId>().is_ok()) {
            tracing::info!("removing {}, which has no record", entry.path().display());
            remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

/// Leases that nobody holds any more: those of jobs that have ended, of claims whose connection was
/// to the last agent, and of templates. A job that goes on has its own, and a fleet's claims are its
/// coordinator's to end.
async fn end_orphaned_leases(node: &Arc<Node>) {
    let orphans: Vec<InstanceId> = node.records.read(|world| {
        let kept: BTreeSet<InstanceId> = world.jobs.values().filter_map(Job::runs_in).collect();
        let orphaned = |i: &&Instance| {
            i.lease.as_ref().is_some_and(|lease| match lease.purpose {
                Purpose::Run => !kept.contains(&i.id) && !is_claim(&lease.id),
                Purpose::Template => true,
                Purpose::Manual | Purpose::Expose => false,
            })
        };
        world.instances.values().filter(orphaned).map(|i| i.id).collect()
    });
    for id in orphans {
        let node = node.clone();
        tokio::spawn(async move { node.end_lease(id).await });
    }
}
