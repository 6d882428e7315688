//! Makes, changes and removes tenants.

use crate::Result;
use crate::blocking::blocking;
use crate::error::{Overlap, PoolError};
use crate::links::Links;
use crate::records::Records;
use crate::remains;
use crate::state_dir::{StateDir, is_root, remove_tree};
use crate::wake::Wake;
use mvm_api::types::{CreateTenant, QuotaPatch};
use mvm_model::{Fault, Name, Tenant};
use mvm_network::Conflict;
use std::sync::Arc;

/// The tenants of the node.
pub(crate) struct Tenants {
    records: Arc<Records>,
    links: Arc<Links>,
    state_dir: StateDir,
    wake: Wake,
}

impl Tenants {
    /// Makes the service for the tenants of these records.
    pub(crate) fn new(
        records: Arc<Records>,
        links: Arc<Links>,
        state_dir: StateDir,
        wake: Wake,
    ) -> Tenants {
        Tenants { records, links, state_dir, wake }
    }

    /// Makes a tenant: its record, bridge and rules. Does nothing if an equal tenant exists.
    pub async fn create(&self, wanted: CreateTenant) -> Result<()> {
        wanted.network.validate()?;
        let tenant = Tenant {
            name: wanted.name,
            network: wanted.network,
            quotas: wanted.quotas,
            created_at: self.records.clock().wall(),
        };
        let known = self.records.read(|records| records.tenants.get(&tenant.name).cloned());
        if let Some(known) = known {
            if known.network.is_same(&tenant.network) && known.quotas == tenant.quotas {
                return Ok(());
            }
            return Err(PoolError::TenantExists(tenant.name).into());
        }
        crate::audit::note_target(&tenant.name);
        let subnet = tenant.network.ipv4_subnet;
        let resolvers = crate::names::resolvers();
        let conflict = self.links.network().conflicts(subnet, &resolvers).await?;
        if let Some(conflict) = conflict {
            let by = blocking(|| Ok(overlap(conflict))).await?;
            return Err(PoolError::SubnetTaken { subnet, by }.into());
        }
        let recorded = async {
            let put = self.records.change(|records, changes| {
                for other in records.tenants.values() {
                    if let Some(fault) = tenant.network.conflicts_with(&other.network) {
                        let message = format!("{} (tenant {})", fault.message, other.name);
                        return Err(Fault { message, ..fault }.into());
                    }
                }
                changes.put_tenant(tenant.clone());
                Ok(())
            });
            put.await?;
            let (state_dir, name) = (self.state_dir.clone(), tenant.name.clone());
            blocking(move || crate::identity::tenant_key(&state_dir, &name)).await.map(drop)
        };
        self.links.set_up_tenant(&tenant, recorded).await
    }

    /// Changes quotas. A quota below the present use only keeps the use from growing.
    pub async fn update(&self, name: &Name, patch: QuotaPatch) -> Result<()> {
        self.records
            .change(|records, changes| {
                let mut tenant = records.tenant(name)?.clone();
                tenant.quotas = patch.apply(tenant.quotas);
                changes.put_tenant(tenant);
                Ok(())
            })
            .await?;
        self.wake.notify();
        Ok(())
    }

    /// Removes a tenant that has no pools left.
    pub async fn destroy(&self, name: &Name) -> Result<()> {
        let tenant = self
            .records
            .change(|records, changes| {
                let tenant = records.tenant(name)?.clone();
                let pools: Vec<_> =
                    records.pools.keys().filter(|p| p.tenant == *name).cloned().collect();
                if !pools.is_empty() {
                    return Err(PoolError::TenantHasPools { tenant: tenant.name, pools }.into());
                }
                changes.remove_tenant(name.clone());
                Ok(tenant)
            })
            .await?;
        self.links.disconnect_tenant(&tenant).await?;
        remove_tree(self.state_dir.tenant(name)).await
    }
}

/// Returns what has a tenant's subnet: the host, or another state directory.
fn overlap(conflict: Conflict) -> Overlap {
    match conflict {
        Conflict::Host(what) => Overlap::Host(what),
        Conflict::Root { what, root: None, .. } => Overlap::Unknown { what },
        Conflict::Root { what, root: Some(root), owner } => {
            match (is_root(&root, &owner), remains::agent_of(&root, &owner)) {
                (true, _) => Overlap::Root { what, root },
                (false, Some(pid)) => Overlap::Agent { what, root, pid },
                (false, None) => Overlap::Orphan { what, root },
            }
        }
    }
}
