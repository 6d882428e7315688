//! Makes, changes and removes tenants.

use crate::Result;
use crate::clock::wall;
use crate::links::Links;
use crate::problem::{OrProblem, exists};
use crate::records::Records;
use crate::remains;
use crate::state_dir::{StateDir, is_root, remove_dir};
use crate::wake::Wake;
use ipnet::Ipv4Net;
use mvm_api::Problem;
use mvm_api::types::{CreateTenant, QuotaPatch};
use mvm_model::{Code, Name, Tenant};
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
            created_at: wall(),
        };
        let known = self.records.read(|world| world.tenants.get(&tenant.name).cloned());
        if let Some(known) = known {
            if known.network.is_same(&tenant.network) && known.quotas == tenant.quotas {
                return Ok(());
            }
            return Err(exists(format!("tenant {}", tenant.name), "mvm tenant update"));
        }
        crate::audit::note_target(&tenant.name);
        let subnet = tenant.network.ipv4_subnet;
        let resolvers = crate::names::resolvers();
        let conflict = self.links.network().conflicts(subnet, &resolvers).await.or_problem()?;
        if let Some(conflict) = conflict {
            return Err(subnet_taken(subnet, conflict));
        }
        self.records
            .change(|world, changes| {
                for other in world.tenants.values() {
                    if let Some(fault) = tenant.network.conflicts_with(&other.network) {
                        let message = format!("{} (tenant {})", fault.message, other.name);
                        return Err(Problem { detail: message, ..fault.into() });
                    }
                }
                changes.put_tenant(tenant.clone());
                Ok(())
            })
            .await?;
        crate::identity::tenant_key(&self.state_dir, &tenant.name)?;
        self.links.set_up_tenant(&tenant).await
    }

    /// Changes quotas. A quota below the present use only keeps the use from growing.
    pub async fn update(&self, name: &Name, patch: QuotaPatch) -> Result<()> {
        self.records
            .change(|world, changes| {
                let mut tenant = world.tenant(name)?.clone();
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
            .change(|world, changes| {
                let tenant = world.tenant(name)?.clone();
                let pools: Vec<_> = world
                    .pools
                    .keys()
                    .filter(|p| p.tenant == *name)
                    .map(|p| p.to_string())
                    .collect();
                if !pools.is_empty() {
                    let message = format!("tenant {name} still has pools: {}", pools.join(", "));
                    return Err(Problem::new(Code::InUse, message)
                        .hint("destroy them first: mvm pool destroy"));
                }
                changes.remove_tenant(name.clone());
                Ok(tenant)
            })
            .await?;
        self.links.disconnect_tenant(&tenant).await?;
        remove_dir(&self.state_dir.tenant(name))
    }
}

/// Returns the problem that the host or another state directory uses a tenant's subnet.
fn subnet_taken(subnet: Ipv4Net, conflict: Conflict) -> Problem {
    let (what, hint) = match conflict {
        Conflict::Host(what) => (what, "choose a subnet that this host does not use".to_owned()),
        Conflict::Root { what, root: Some(root), owner } => {
            let at = root.display();
            match (is_root(&root, &owner), remains::agent_of(&root, &owner)) {
                (true, _) => (
                    format!("{what}, which another mvm root on this host holds: {at}"),
                    format!("choose another subnet, or look there: mvm --root {at} tenant list"),
                ),
                (false, Some(pid)) => (
                    format!(
                        "{what}, of a state directory that is gone: {at}; its agent lives (pid {pid})"
                    ),
                    format!(
                        "agent pid {pid} has its lock open: end it first (kill {pid}), then see what is left: \
                         mvm net clean"
                    ),
                ),
                (false, None) => (
                    format!("{what}, an orphan: its state directory {at} is gone"),
                    "see what else is left of it, and remove it: mvm net clean".to_owned(),
                ),
            }
        }
        Conflict::Root { what, root: None, .. } => (
            format!("{what}, which another mvm root on this host holds (it does not say which)"),
            "choose another subnet; a newer mvm agent there would say where it is".to_owned(),
        ),
    };
    Problem::new(Code::SubnetTaken, format!("{subnet} overlaps with {what}")).hint(hint)
}
