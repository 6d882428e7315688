//! The checks of a document beyond its types.

use super::document::{DesiredPool, DesiredTenant, SCHEMA_VERSION};
use crate::admission::Quotas;
use crate::digest::Digest;
use crate::error::Fault;
use crate::mib::Mib;
use crate::name::Name;
use mvm_code::Code;
use std::collections::BTreeMap;

/// How many nodes a document is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One node: a tenant's instances share its subnet.
    Node,
    /// Many nodes: each has the tenant's whole subnet for itself.
    Fleet,
}

pub(crate) fn version(found: u32) -> Result<(), Fault> {
    if found == SCHEMA_VERSION {
        return Ok(());
    }
    let message = format!("schema_version is {found}");
    Err(Fault::new(Code::UnsupportedVersion, message).at("$.schema_version"))
}

pub(crate) fn tenants(tenants: &[DesiredTenant], scope: Scope) -> Result<(), Fault> {
    unique(tenants.iter().map(|t| &t.tenant_id), "$.tenants", "tenant_id")?;
    for (index, tenant) in tenants.iter().enumerate() {
        let path = format!("$.tenants[{index}]");
        tenant.network.validate().map_err(below(format!("{path}.network")))?;
        for other in &tenants[..index] {
            if let Some(fault) = tenant.network.conflicts_with(&other.network) {
                let message = format!("{} (tenant {})", fault.message, other.tenant_id);
                return Err(below(format!("{path}.network"))(Fault { message, ..fault }));
            }
        }
        pools(tenant, &path, scope)?;
    }
    Ok(())
}

fn pools(tenant: &DesiredTenant, path: &str, scope: Scope) -> Result<(), Fault> {
    let pools = &tenant.pools;
    unique(pools.iter().map(|p| &p.pool_id), &format!("{path}.pools"), "pool_id")?;
    if pools.len() as u64 > tenant.quotas.max_pools {
        let limit = tenant.quotas.max_pools;
        return Err(above("max_pools", limit, pools.len() as u64, &tenant.tenant_id)
            .at(format!("{path}.pools")));
    }
    let mut sum = Sum::default();
    for (index, pool) in pools.iter().enumerate() {
        let path = format!("{path}.pools[{index}]");
        source(&pool.flake_ref, &pool.profile, &path)?;
        if pool.revision.as_deref().is_some_and(|digest| !is_digest(digest)) {
            return Err(Fault::new(Code::InvalidValue, "revision is not the digest of an image")
                .at(format!("{path}.revision"))
                .hint("a digest is 64 hexadecimal digits, as `mvm image list -o json` shows"));
        }
        if let Some(source) = &pool.revision_from {
            let path = format!("{path}.revision_from");
            let fault = if pool.revision.is_none() {
                "revision_from without revision: of which image?"
            } else if !is_digest(&source.content) {
                "content is not 64 hexadecimal digits"
            } else if source.nodes.is_empty() || source.nodes.len() > 64 {
                "nodes names none, or more than 64"
            } else {
                ""
            };
            if !fault.is_empty() {
                return Err(Fault::new(Code::InvalidValue, fault).at(path));
            }
        }
        let prewarm = pool.prewarm.as_deref();
        if prewarm.is_some_and(|command| command.is_empty() || command.len() > 65536) {
            let message = "prewarm is empty or longer than 65536 bytes";
            return Err(Fault::new(Code::InvalidValue, message).at(format!("{path}.prewarm")));
        }
        pool.instance_resources.validate().map_err(below(format!("{path}.instance_resources")))?;
        pool.runtime_policy.validate().map_err(below(format!("{path}.runtime_policy")))?;
        pool.egress.validate().map_err(below(path.clone()))?;
        crate::cache::validate(&pool.caches).map_err(below(path.clone()))?;
        sum.add(pool);
        sum.admit(&tenant.quotas, pool, &tenant.tenant_id, &path)?;
    }
    let capacity = u64::from(tenant.network.capacity());
    if scope == Scope::Node && sum.instances > capacity {
        let message = format!(
            "{} holds {capacity} instances, and the pools of tenant {} ask for {}",
            tenant.network.ipv4_subnet, tenant.tenant_id, sum.instances
        );
        return Err(Fault::new(Code::SubnetTooSmall, message)
            .at(format!("{path}.network.ipv4_subnet"))
            .hint("give the tenant a larger subnet, or ask for fewer instances"));
    }
    Ok(())
}

/// Refuses pools of which their tenant's quotas admit not a single machine.
pub(crate) fn admit_machines(tenants: &[DesiredTenant]) -> Result<(), Fault> {
    for (t, tenant) in tenants.iter().enumerate() {
        for (p, pool) in tenant.pools.iter().enumerate() {
            let caches = pool.caches.iter().map(|cache| cache.size_mib).sum();
            let shape = &pool.instance_resources;
            crate::admission::admit_machine(&tenant.tenant_id, &tenant.quotas, shape, caches)
                .map_err(below(format!("$.tenants[{t}].pools[{p}].instance_resources")))?;
        }
    }
    Ok(())
}

/// What the pools up to one of them require together.
#[derive(Default)]
struct Sum {
    running: u64,
    warm: u64,
    vcpus: u64,
    mem_mib: Mib,
    disk_mib: Mib,
    instances: u64,
}

impl Sum {
    fn add(&mut self, pool: &DesiredPool) {
        let (counts, shape) = (&pool.desired_counts, &pool.instance_resources);
        let hot = u64::from(counts.running) + u64::from(counts.warm);
        self.running += u64::from(counts.running);
        self.warm += u64::from(counts.warm);
        self.vcpus += hot * u64::from(shape.vcpus);
        self.mem_mib += hot * shape.mem_mib;
        let caches: Mib = pool.caches.iter().map(|cache| cache.size_mib).sum();
        self.disk_mib += counts.total() * (shape.disk_mib() + caches);
        self.instances += counts.total();
    }

    /// Checks whether the quotas suffice for all pools up to `pool`.
    fn admit(
        &self,
        quotas: &Quotas,
        pool: &DesiredPool,
        tenant: &Name,
        path: &str,
    ) -> Result<(), Fault> {
        let counts = format!("{path}.desired_counts");
        let total = pool.desired_counts.total();
        let checks = [
            ("max_running", quotas.max_running, self.running, format!("{counts}.running")),
            ("max_warm", quotas.max_warm, self.warm, format!("{counts}.warm")),
            ("max_vcpus", quotas.max_vcpus, self.vcpus, counts.clone()),
            ("max_mem_mib", quotas.max_mem_mib.0, self.mem_mib.0, counts.clone()),
            ("max_instances_per_pool", quotas.max_instances_per_pool, total, counts.clone()),
            ("max_disk_gib", quotas.max_disk_gib, self.disk_mib.gib_rounded_up(), counts),
        ];
        for (quota, limit, asked, at) in checks {
            if asked > limit {
                return Err(above(quota, limit, asked, tenant).at(at));
            }
        }
        Ok(())
    }
}

fn is_digest(text: &str) -> bool {
    text.parse::<Digest>().is_ok()
}

fn above(quota: &str, limit: u64, asked: u64, tenant: &Name) -> Fault {
    let message = format!("quota {quota} of tenant {tenant}: limit {limit}, asked {asked}");
    Fault::new(Code::QuotaExceeded, message).hint("ask for less, or raise the quota")
}

/// Refuses a flake, or an attribute, that Nix would not accept as one; `path` is the JSON path of
/// the object that has them.
pub fn source(flake_ref: &str, profile: &str, path: &str) -> Result<(), Fault> {
    text(flake_ref, 4096, "flake_ref", path)?;
    text(profile, 255, "profile", path)
}

fn text(value: &str, longest: usize, field: &str, path: &str) -> Result<(), Fault> {
    let fault = if value.is_empty() {
        "is empty"
    } else if value.len() > longest {
        "is too long"
    } else if value.chars().any(char::is_control) || value.starts_with('-') {
        "begins with a hyphen or has a control character"
    } else {
        return Ok(());
    };
    Err(Fault::new(Code::InvalidValue, format!("{field} {fault}")).at(format!("{path}.{field}")))
}

/// Refuses a duplicate name; the fault is at its second place.
fn unique<'a>(names: impl Iterator<Item = &'a Name>, list: &str, field: &str) -> Result<(), Fault> {
    let mut seen = BTreeMap::new();
    for (index, name) in names.enumerate() {
        if let Some(first) = seen.insert(name, index) {
            let message = format!("{field} {name} stands at {list}[{first}] already");
            return Err(Fault::new(Code::Duplicate, message).at(format!("{list}[{index}].{field}")));
        }
    }
    Ok(())
}

/// Puts a fault's own path below `parent`.
pub(crate) fn below(parent: String) -> impl Fn(Fault) -> Fault {
    move |fault| {
        let path = match fault.path.is_empty() {
            true => parent.clone(),
            false => format!("{parent}.{}", fault.path),
        };
        fault.at(path)
    }
}
