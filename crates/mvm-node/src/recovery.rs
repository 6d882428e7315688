//! At start: what the last agent left is finished or undone, and what is ours is taken over.

use crate::Result;
use crate::holders::is_claim;
use crate::node::Node;
use crate::state_dir::remove_dir;
use mvm_model::lease::Purpose;
use mvm_model::{Instance, InstanceId, Job, Name};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Brings records and reality together. Afterwards every instance is in the state that its record
/// says, and there is no process, link or directory of ours that has no record.
pub async fn run(node: &Arc<Node>) -> Result<()> {
    node.links.restore(node.recovery.has_machines()?).await?;
    restore_tenant_dirs(node).await?;
    let instances = node.recovery.recover().await?;
    remove_stray_dirs(node, &instances)?;
    node.templates.sweep()?;
    node.caches.sweep().await?;
    node.dispatcher.recover().await?;
    end_orphaned_leases(node).await;
    Ok(())
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
        tokio::spawn(async move { node.leases.end(id).await });
    }
}
