//! Recovery at start: completes or undoes what the last agent left unfinished, and adopts its
//! machines.

use crate::Result;
use crate::blocking::{blocking, paths_in};
use crate::caches::Caches;
use crate::instances::Recovery;
use crate::jobs::Dispatcher;
use crate::leases::Leases;
use crate::links::Links;
use crate::records::Records;
use crate::state_dir::{StateDir, remove_dir, remove_tree};
use crate::templates::Templates;
use mvm_model::lease::Purpose;
use mvm_model::{Instance, InstanceId, Job, Name};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Brings records, machines, links and files in line at start.
pub(crate) struct Startup {
    records: Arc<Records>,
    links: Arc<Links>,
    recovery: Arc<Recovery>,
    leftovers: Leftovers,
    dispatcher: Arc<Dispatcher>,
    leases: Arc<Leases>,
}

impl Startup {
    /// Makes the service for these records.
    pub(crate) fn new(
        records: Arc<Records>,
        links: Arc<Links>,
        recovery: Arc<Recovery>,
        leftovers: Leftovers,
        dispatcher: Arc<Dispatcher>,
        leases: Arc<Leases>,
    ) -> Startup {
        Startup { records, links, recovery, leftovers, dispatcher, leases }
    }

    /// Recovers once, before any other work. Afterwards every instance is in the state that its
    /// record says, and no process, link or directory of this state directory is without a record.
    pub(crate) async fn run(&self) -> Result<()> {
        self.links.restore(self.recovery.has_machines()?).await?;
        self.leftovers.restore_tenant_dirs().await?;
        let instances = self.recovery.recover().await?;
        self.leftovers.sweep(&instances).await?;
        self.dispatcher.recover().await?;
        self.end_orphaned_leases();
        Ok(())
    }

    /// Ends the leases that have no holder any more: those of ended jobs, of claims whose
    /// connection was to the last agent, and of templates. A job that goes on keeps its lease, and
    /// a fleet's claims are ended by its coordinator.
    fn end_orphaned_leases(&self) {
        let orphans: Vec<InstanceId> = self.records.read(|records| {
            let kept: BTreeSet<InstanceId> =
                records.jobs.values().filter_map(Job::runs_in).collect();
            let orphaned = |i: &&Instance| {
                i.lease.as_ref().is_some_and(|lease| match lease.purpose {
                    Purpose::Run => !kept.contains(&i.id) && !lease.id.is_claim(),
                    Purpose::Template => true,
                    Purpose::Manual | Purpose::Expose => false,
                })
            };
            records.instances.values().filter(orphaned).map(|i| i.id).collect()
        });
        for id in orphans {
            let leases = self.leases.clone();
            tokio::spawn(async move { leases.end(id).await });
        }
    }
}

/// The files in the state directory that have no record, and those that a record lacks.
pub(crate) struct Leftovers {
    records: Arc<Records>,
    state_dir: StateDir,
    templates: Arc<Templates>,
    caches: Arc<Caches>,
}

impl Leftovers {
    /// Makes the service for this state directory.
    pub(crate) fn new(
        records: Arc<Records>,
        state_dir: StateDir,
        templates: Arc<Templates>,
        caches: Arc<Caches>,
    ) -> Leftovers {
        Leftovers { records, state_dir, templates, caches }
    }

    /// Makes the missing directories of tenants, which hold their SSH keys, and removes those of
    /// destroyed tenants.
    async fn restore_tenant_dirs(&self) -> Result<()> {
        let root = self.state_dir.clone();
        let tenants: Vec<Name> =
            self.records.read(|records| records.tenants.keys().cloned().collect());
        blocking(move || {
            for tenant in &tenants {
                crate::identity::tenant_key(&root, tenant)?;
            }
            for dir in paths_in(&root.tenants()) {
                let name = dir.file_name();
                if tenants.iter().all(|tenant| name != Some(tenant.as_str().as_ref())) {
                    tracing::info!("removing {}, whose tenant is gone", dir.display());
                    remove_dir(&dir)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Removes the files that belong to none of these instances, which are all that exist, and to
    /// no pool.
    async fn sweep(&self, instances: &[Instance]) -> Result<()> {
        self.remove_stray_dirs(instances).await?;
        self.templates.sweep().await?;
        self.caches.sweep().await
    }

    async fn remove_stray_dirs(&self, instances: &[Instance]) -> Result<()> {
        let all = self.state_dir.instances();
        for dir in blocking(move || Ok(paths_in(&all))).await? {
            let name = dir.file_name().and_then(|name| name.to_str());
            let id = name.and_then(|name| name.parse::<InstanceId>().ok());
            if id.is_some_and(|id| instances.iter().all(|instance| instance.id != id)) {
                tracing::info!("removing {}, which has no record", dir.display());
                remove_tree(dir).await?;
            }
        }
        Ok(())
    }
}
