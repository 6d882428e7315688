//! The steps from what a node holds to what a document says.

use super::source::{rebase, settled_all};
use super::{DesiredPool, DesiredState, DesiredTenant};
use crate::admission::Quotas;
use crate::cache;
use crate::error::Fault;
use crate::name::{Name, PoolRef};
use crate::network::TenantNetwork;
use crate::pool::{Counts, Pool};
use crate::tenant::Tenant;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One step from a node's present state towards a document. The document has its details.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Remove a pool that the document does not name, once its leases have ended.
    DestroyPool {
        /// The pool.
        pool: PoolRef,
    },
    /// Remove a tenant that the document does not name.
    DestroyTenant {
        /// The tenant.
        tenant: Name,
    },
    /// Make a tenant.
    CreateTenant {
        /// The tenant.
        tenant: Name,
    },
    /// Give a tenant other quotas.
    UpdateTenant {
        /// The tenant.
        tenant: Name,
        /// The quotas in the document.
        quotas: Quotas,
    },
    /// Make a pool.
    CreatePool {
        /// The pool.
        pool: PoolRef,
    },
    /// Change a pool.
    UpdatePool {
        /// The pool.
        pool: PoolRef,
        /// The fields that change, as the document names them.
        changed: Vec<String>,
    },
    /// Build a pool's image, or use the one that the document names.
    Build {
        /// The pool.
        pool: PoolRef,
    },
    /// Set how many instances a pool keeps ready.
    Scale {
        /// The pool.
        pool: PoolRef,
        /// The counts in the document.
        counts: Counts,
    },
}

impl Step {
    /// Returns the pool that the step is about; `None` if it is about a tenant.
    pub fn pool(&self) -> Option<&PoolRef> {
        match self {
            Step::DestroyPool { pool }
            | Step::CreatePool { pool }
            | Step::UpdatePool { pool, .. }
            | Step::Build { pool }
            | Step::Scale { pool, .. } => Some(pool),
            _ => None,
        }
    }

    /// Returns the tenant that the step is about, directly or by its pool.
    pub fn tenant(&self) -> &Name {
        match self {
            Step::DestroyTenant { tenant }
            | Step::CreateTenant { tenant }
            | Step::UpdateTenant { tenant, .. } => tenant,
            Step::DestroyPool { pool }
            | Step::CreatePool { pool }
            | Step::UpdatePool { pool, .. }
            | Step::Build { pool }
            | Step::Scale { pool, .. } => &pool.tenant,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::DestroyPool { pool } => write!(f, "destroy pool {pool}"),
            Step::DestroyTenant { tenant } => write!(f, "destroy tenant {tenant}"),
            Step::CreateTenant { tenant } => write!(f, "create tenant {tenant}"),
            Step::UpdateTenant { tenant, .. } => write!(f, "change the quotas of tenant {tenant}"),
            Step::CreatePool { pool } => write!(f, "create pool {pool}"),
            Step::UpdatePool { pool, changed } => {
                write!(f, "change {} of pool {pool}", changed.join(", "))
            }
            Step::Build { pool } => write!(f, "build pool {pool}"),
            Step::Scale { pool, counts } => write!(
                f,
                "scale pool {pool} to {} running, {} warm, {} sleeping",
                counts.running, counts.warm, counts.sleeping
            ),
        }
    }
}

/// Returns the steps from what a node holds to `document`, in an order in which each can be done;
/// with `prune`, also those that remove what the document does not name. Empty if there is nothing
/// to do. A document that this node cannot hold is refused, with the JSON path of the fault.
pub fn diff(
    document: &DesiredState,
    tenants: &BTreeMap<Name, Tenant>,
    pools: &BTreeMap<PoolRef, Pool>,
    prune: bool,
) -> Result<Vec<Step>, Fault> {
    let mut steps = Vec::new();
    if prune {
        removals(document, tenants, pools, &mut steps);
    }
    for (index, wanted) in document.tenants.iter().enumerate() {
        let path = format!("$.tenants[{index}]");
        tenant(document, wanted, tenants, &path, &mut steps)?;
        if !prune {
            room_for_pools(wanted, pools, &path)?;
        }
    }
    for (index, wanted) in document.tenants.iter().enumerate() {
        for (number, pool_wanted) in wanted.pools.iter().enumerate() {
            let reference = pool_wanted.reference(&wanted.tenant_id);
            if let Some(known) = pools.get(&reference) {
                let path = format!("$.tenants[{index}].pools[{number}].caches");
                cache::change(&known.caches, pool_wanted.caches.clone())
                    .map_err(|fault| fault.at(path))?;
            }
            pool(pool_wanted, pools.get(&reference), reference, &mut steps);
        }
    }
    Ok(steps)
}

fn removals(
    document: &DesiredState,
    tenants: &BTreeMap<Name, Tenant>,
    pools: &BTreeMap<PoolRef, Pool>,
    steps: &mut Vec<Step>,
) {
    let unnamed = pools.keys().filter(|pool| document.pool(pool).is_none());
    steps.extend(unnamed.map(|pool| Step::DestroyPool { pool: pool.clone() }));
    let unnamed = tenants.keys().filter(|tenant| document.tenant(tenant).is_none());
    steps.extend(unnamed.map(|tenant| Step::DestroyTenant { tenant: tenant.clone() }));
}

fn tenant(
    document: &DesiredState,
    wanted: &DesiredTenant,
    tenants: &BTreeMap<Name, Tenant>,
    path: &str,
    steps: &mut Vec<Step>,
) -> Result<(), Fault> {
    let name = wanted.tenant_id.clone();
    let Some(known) = tenants.get(&name) else {
        // A tenant that will be removed counts, too: it exists until its last lease has ended.
        let unnamed = tenants.values().filter(|other| document.tenant(&other.name).is_none());
        for other in unnamed {
            if let Some(fault) = wanted.network.conflicts_with(&other.network) {
                let message = format!("{} (tenant {} on this node)", fault.message, other.name);
                return Err(Fault { message, ..fault }
                    .at(format!("{path}.network"))
                    .hint("choose another, or remove that tenant first"));
            }
        }
        steps.push(Step::CreateTenant { tenant: name });
        return Ok(());
    };
    if !known.network.is_same(&wanted.network) {
        let message = format!(
            "tenant {name} has net id {} and {}; a network is not changed while its tenant exists",
            known.network.tenant_net_id, known.network.ipv4_subnet
        );
        return Err(Fault::new(Code::Conflict, message)
            .at(format!("{path}.network"))
            .hint("give the tenant its present network, or destroy it first"));
    }
    if known.quotas != wanted.quotas {
        steps.push(Step::UpdateTenant { tenant: name, quotas: wanted.quotas });
    }
    Ok(())
}

/// Checks the quota of pools, including those that the document does not name and that stay.
fn room_for_pools(
    wanted: &DesiredTenant,
    pools: &BTreeMap<PoolRef, Pool>,
    path: &str,
) -> Result<(), Fault> {
    let tenant = &wanted.tenant_id;
    let here: BTreeSet<&Name> =
        pools.keys().filter(|pool| pool.tenant == *tenant).map(|pool| &pool.pool).collect();
    let named: BTreeSet<&Name> = wanted.pools.iter().map(|pool| &pool.pool_id).collect();
    let (limit, all) = (wanted.quotas.max_pools, here.union(&named).count() as u64);
    if all <= limit || named.is_subset(&here) {
        return Ok(());
    }
    let in_use = here.len();
    let message = format!(
        "quota max_pools of tenant {tenant}: limit {limit}, in use {in_use}, with the document's {all}"
    );
    Err(Fault::new(Code::QuotaExceeded, message)
        .at(format!("{path}.pools"))
        .hint("apply it with --prune, or raise the quota"))
}

fn pool(wanted: &DesiredPool, known: Option<&Pool>, reference: PoolRef, steps: &mut Vec<Step>) {
    let (mut build, mut counts) = (true, None);
    match known {
        None => steps.push(Step::CreatePool { pool: reference.clone() }),
        Some(known) => {
            let changed = changes(wanted, known);
            let of_image =
                |field: &&str| ["flake_ref", "profile", "override_inputs"].contains(field);
            build = known.current_revision().is_none() || known.stale;
            build |= changed.iter().any(of_image);
            if let Some(pinned) = &wanted.revision {
                build = known
                    .current_revision()
                    .is_none_or(|current| current.digest.to_string() != *pinned);
            }
            counts = known.desired;
            if !changed.is_empty() {
                let changed = changed.into_iter().map(str::to_owned).collect();
                steps.push(Step::UpdatePool { pool: reference.clone(), changed });
            }
        }
    }
    if build {
        steps.push(Step::Build { pool: reference.clone() });
    }
    // A pool that was never scaled keeps nothing ready, like one that is scaled to zero.
    if counts.unwrap_or_default() != wanted.desired_counts {
        steps.push(Step::Scale { pool: reference, counts: wanted.desired_counts });
    }
}

/// Returns the fields in which a pool differs from the document, except its counts.
fn changes(wanted: &DesiredPool, known: &Pool) -> Vec<&'static str> {
    let differs = [
        ("flake_ref", wanted.flake_ref != known.flake_ref),
        ("profile", wanted.profile != known.profile),
        ("override_inputs", wanted.override_inputs != known.override_inputs),
        ("instance_resources", wanted.instance_resources != known.resources),
        ("caches", !wanted.caches.iter().eq(known.caches.iter().map(|disk| &disk.cache))),
        ("recycle", wanted.recycle != known.recycle),
        ("runtime_policy", wanted.runtime_policy != known.runtime_policy),
        ("cpu_model", wanted.cpu_model != known.cpu_model),
        ("prewarm", wanted.prewarm != known.prewarm),
        ("egress", wanted.egress != known.egress),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(field, _)| field).collect()
}

impl DesiredPool {
    /// Returns the full reference of the pool in this tenant.
    pub fn reference(&self, tenant: &Name) -> PoolRef {
        PoolRef { tenant: tenant.clone(), pool: self.pool_id.clone() }
    }
}

impl DesiredState {
    /// Returns what a node holds as a document that changes nothing when it is applied there.
    pub fn of<'a>(
        node_id: Name,
        tenants: impl IntoIterator<Item = &'a Tenant>,
        pools: &BTreeMap<PoolRef, Pool>,
    ) -> DesiredState {
        let tenants = tenants.into_iter().map(|tenant| DesiredTenant {
            tenant_id: tenant.name.clone(),
            // The tenant may have been made before this field existed.
            network: TenantNetwork {
                allow_public_subnet: tenant.network.is_public(),
                ..tenant.network.clone()
            },
            quotas: tenant.quotas,
            pools: pools
                .values()
                .filter(|pool| pool.reference.tenant == tenant.name)
                .map(|pool| DesiredPool {
                    pool_id: pool.reference.pool.clone(),
                    flake_ref: pool.flake_ref.clone(),
                    profile: pool.profile.clone(),
                    override_inputs: pool.override_inputs.clone(),
                    revision: None,
                    revision_from: None,
                    instance_resources: pool.resources,
                    caches: pool.caches.iter().map(|disk| disk.cache.clone()).collect(),
                    recycle: pool.recycle,
                    cpu_model: pool.cpu_model.clone(),
                    prewarm: pool.prewarm.clone(),
                    runtime_policy: pool.runtime_policy,
                    egress: pool.egress.clone(),
                    desired_counts: pool.desired.unwrap_or_default(),
                })
                .collect(),
        });
        let tenants = tenants.collect();
        DesiredState { schema_version: super::SCHEMA_VERSION, node_id, tenants }
    }

    /// Returns the references of all pools.
    pub fn references(&self) -> impl Iterator<Item = PoolRef> {
        self.tenants
            .iter()
            .flat_map(|tenant| tenant.pools.iter().map(|pool| pool.reference(&tenant.tenant_id)))
    }

    /// Returns the tenant with this name; `None` if the document lacks it.
    pub fn tenant(&self, name: &Name) -> Option<&DesiredTenant> {
        self.tenants.iter().find(|tenant| tenant.tenant_id == *name)
    }

    /// Returns the pool with this reference; `None` if the document lacks it.
    pub fn pool(&self, reference: &PoolRef) -> Option<&DesiredPool> {
        let tenant = self.tenant(&reference.tenant)?;
        tenant.pools.iter().find(|pool| pool.pool_id == reference.pool)
    }

    /// Reads and checks a document that lies in `folder`; `inputs` are replaced in every flake in
    /// addition to its own.
    pub fn parse_in(
        text: &[u8],
        folder: &str,
        inputs: &BTreeMap<String, String>,
    ) -> Result<Self, Fault> {
        let mut document = Self::parse(text)?;
        document.rebase(folder);
        for pool in document.tenants.iter_mut().flat_map(|tenant| &mut tenant.pools) {
            pool.override_inputs.extend(inputs.clone());
        }
        Ok(document)
    }

    /// Resolves relative paths of flakes, which start at the document, against `folder`.
    pub fn rebase(&mut self, folder: &str) {
        for pool in self.tenants.iter_mut().flat_map(|tenant| &mut tenant.pools) {
            rebase(&mut pool.flake_ref, folder);
            pool.override_inputs.values_mut().for_each(|input| rebase(input, folder));
        }
    }

    /// Refuses a document with a relative flake reference: its reader should have resolved it.
    pub fn settled(&self) -> Result<(), Fault> {
        let places = self.tenants.iter().enumerate().flat_map(|(tenant, t)| {
            t.pools
                .iter()
                .enumerate()
                .map(move |(pool, p)| (tenant, pool, &p.flake_ref, &p.override_inputs))
        });
        settled_all(places)
    }
}
