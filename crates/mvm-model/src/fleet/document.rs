//! The fleet's document, `schema_version` 1: tenants and pools with totals, and placement rules.

use super::rules::Rules;
use crate::admission::Quotas;
use crate::cache::Cache;
use crate::cpu_model::CpuModel;
use crate::desired::{self, DesiredPool, DesiredTenant, check};
use crate::egress::Egress;
use crate::error::Fault;
use crate::mib::Mib;
use crate::name::{Name, PoolRef};
use crate::network::TenantNetwork;
use crate::pool::{Counts, Recycle};
use crate::resources::Resources;
use crate::runtime_policy::RuntimePolicy;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The desired state of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FleetState {
    /// Always 1.
    #[schemars(extend("const" = 1))]
    pub schema_version: u32,
    /// The fleet's name; a coordinator refuses another fleet's document.
    pub fleet_id: Name,
    /// How long a node may be out of reach before other nodes get its share, in seconds.
    #[serde(default = "default_grace")]
    #[schemars(range(min = 1, max = 86400))]
    pub node_grace_s: u64,
    /// The tenants, each with its pools.
    pub tenants: Vec<FleetTenant>,
}

fn default_grace() -> u64 {
    60
}

/// One tenant of the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FleetTenant {
    /// The tenant's name, unique in the document.
    pub tenant_id: Name,
    /// The tenant's net id and subnet, unique in the document. Every node has the whole subnet for
    /// itself.
    pub network: TenantNetwork,
    /// The tenant's quotas over all nodes. Quotas left out have their default values.
    #[serde(default)]
    pub quotas: Quotas,
    /// The tenant's weight among tenants whose claims wait, 1 to 1000.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
    /// The tenant's pools.
    #[serde(default)]
    pub pools: Vec<FleetPool>,
}

fn one() -> u32 {
    1
}

fn is_one(weight: &u32) -> bool {
    *weight == 1
}

/// One pool of the document: the settings of a node's pool, with totals over all nodes, and
/// placement rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FleetPool {
    /// The pool's name, unique in the tenant.
    pub pool_id: Name,
    /// The flake that the pool's image is built from. Every node must reach it; a relative path
    /// starts at the document's folder.
    #[schemars(length(min = 1, max = 4096))]
    pub flake_ref: String,
    /// The flake's attribute.
    #[schemars(length(min = 1, max = 255))]
    pub profile: String,
    /// Flake inputs to override, as in `nix build --override-input`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub override_inputs: BTreeMap<String, String>,
    /// Digest of the image to use, which the node must have; nothing is built then. Where absent,
    /// the flake is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub revision: Option<String>,
    /// The vCPUs, memory and disks of an instance.
    pub instance_resources: Resources,
    /// Disks whose contents jobs pass on to later jobs. Every node has its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub caches: Vec<Cache>,
    /// What happens to an instance after a job.
    #[serde(default)]
    pub recycle: Recycle,
    /// The CPU model of the pool's machines: `host`, or a name that QEMU knows.
    #[serde(default, skip_serializing_if = "CpuModel::is_host")]
    pub cpu_model: CpuModel,
    /// A shell command that the template's guest runs before its snapshot is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub prewarm: Option<String>,
    /// What happens to instances that nobody uses.
    #[serde(default)]
    pub runtime_policy: RuntimePolicy,
    /// The outside addresses that instances may reach. By default all but those that are always
    /// closed.
    #[serde(default)]
    pub egress: Egress,
    /// How many unleased instances of each temperature to keep ready on all nodes together.
    #[serde(default)]
    pub desired_counts: Counts,
    /// The nodes where the instances may and should be.
    #[serde(default)]
    pub placement: Rules,
}

impl FleetPool {
    /// Returns what an instance takes of a node, including the disks of its caches.
    pub fn footprint(&self) -> Resources {
        let caches: Mib = self.caches.iter().map(|cache| cache.size_mib).sum();
        let shape = self.instance_resources;
        Resources { scratch_disk_mib: shape.scratch_disk_mib + caches, ..shape }
    }

    /// Returns the pool's part of a node's document, for a node that shall hold `counts` of it.
    pub fn on_node(&self, counts: Counts) -> DesiredPool {
        DesiredPool {
            pool_id: self.pool_id.clone(),
            flake_ref: self.flake_ref.clone(),
            profile: self.profile.clone(),
            override_inputs: self.override_inputs.clone(),
            instance_resources: self.instance_resources,
            caches: self.caches.clone(),
            recycle: self.recycle,
            cpu_model: self.cpu_model.clone(),
            prewarm: self.prewarm.clone(),
            revision: self.revision.clone(),
            revision_from: None,
            runtime_policy: self.runtime_policy,
            egress: self.egress.clone(),
            desired_counts: counts,
        }
    }
}

impl FleetTenant {
    /// Returns the tenant's part of a node's document, with these quotas and pools.
    pub fn on_node(&self, quotas: Quotas, pools: Vec<DesiredPool>) -> DesiredTenant {
        let (tenant_id, network) = (self.tenant_id.clone(), self.network.clone());
        DesiredTenant { tenant_id, network, quotas, pools }
    }

    /// Returns the full reference of one of its pools.
    pub fn reference(&self, pool: &FleetPool) -> PoolRef {
        PoolRef { tenant: self.tenant_id.clone(), pool: pool.pool_id.clone() }
    }
}

impl FleetState {
    /// Reads and checks a document. A fault names its JSON path.
    pub fn parse(text: &[u8]) -> Result<Self, Fault> {
        let state: FleetState = desired::read(text)?;
        state.validate()?;
        Ok(state)
    }

    /// Reads and checks a document that lies in `folder`; `inputs` are replaced in every flake in
    /// addition to its own.
    pub fn parse_in(
        text: &[u8],
        folder: &str,
        inputs: &BTreeMap<String, String>,
    ) -> Result<Self, Fault> {
        let mut document = Self::parse(text)?;
        for pool in document.tenants.iter_mut().flat_map(|tenant| &mut tenant.pools) {
            desired::rebase(&mut pool.flake_ref, folder);
            pool.override_inputs.values_mut().for_each(|input| desired::rebase(input, folder));
            pool.override_inputs.extend(inputs.clone());
        }
        Ok(document)
    }

    /// Refuses a document with a relative flake reference: its reader should have resolved it.
    pub fn settled(&self) -> Result<(), Fault> {
        let places = self.tenants.iter().enumerate().flat_map(|(tenant, t)| {
            t.pools
                .iter()
                .enumerate()
                .map(move |(pool, p)| (tenant, pool, &p.flake_ref, &p.override_inputs))
        });
        desired::settled_all(places)
    }

    /// Checks what types cannot express: everything that a node's document must satisfy, and the
    /// placement rules.
    pub fn validate(&self) -> Result<(), Fault> {
        check::version(self.schema_version)?;
        if !(1..=86_400).contains(&self.node_grace_s) {
            let message = format!("node_grace_s is {}; allowed are 1 to 86400", self.node_grace_s);
            return Err(Fault::new(Code::InvalidValue, message).at("$.node_grace_s"));
        }
        let totals: Vec<DesiredTenant> = self.tenants.iter().map(total).collect();
        check::tenants(&totals, check::Scope::Fleet)?;
        for (index, tenant) in self.tenants.iter().enumerate() {
            let path = format!("$.tenants[{index}]");
            if !(1..=1000).contains(&tenant.weight) {
                let message = format!("weight is {}; allowed are 1 to 1000", tenant.weight);
                return Err(Fault::new(Code::InvalidValue, message).at(format!("{path}.weight")));
            }
            for (index, pool) in tenant.pools.iter().enumerate() {
                let path = format!("{path}.pools[{index}].placement");
                pool.placement.validate().map_err(check::below(path))?;
            }
        }
        Ok(())
    }

    /// Refuses pools of which the quotas admit not a single machine; called when a document is put
    /// in force.
    pub fn admit_machines(&self) -> Result<(), Fault> {
        let totals: Vec<DesiredTenant> = self.tenants.iter().map(total).collect();
        check::admit_machines(&totals)
    }

    /// Returns the JSON Schema of the document.
    pub fn json_schema() -> serde_json::Value {
        let mut schema = schemars::schema_for!(FleetState);
        schema.insert("title".into(), "The desired state of an mvm fleet".into());
        schema.to_value()
    }

    /// Returns all pools with their tenants, in the document's order.
    pub fn pools(&self) -> impl Iterator<Item = (&FleetTenant, &FleetPool)> {
        self.tenants.iter().flat_map(|tenant| tenant.pools.iter().map(move |pool| (tenant, pool)))
    }

    /// Returns the tenant with this name; `None` if the document lacks it.
    pub fn tenant(&self, name: &Name) -> Option<&FleetTenant> {
        self.tenants.iter().find(|tenant| tenant.tenant_id == *name)
    }

    /// Returns the pool with this reference; `None` if the document lacks it.
    pub fn pool(&self, reference: &PoolRef) -> Option<&FleetPool> {
        let tenant = self.tenant(&reference.tenant)?;
        tenant.pools.iter().find(|pool| pool.pool_id == reference.pool)
    }
}

fn total(tenant: &FleetTenant) -> DesiredTenant {
    let pools = tenant.pools.iter().map(|pool| pool.on_node(pool.desired_counts)).collect();
    tenant.on_node(tenant.quotas, pools)
}
