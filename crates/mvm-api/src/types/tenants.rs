//! Requests and responses about tenants.

use mvm_model::network::TenantNetwork;
use mvm_model::{Mib, Name, Quotas, Timestamp, Usage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Request of `POST /v1/tenants`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// The tenant's name.
    pub name: Name,
    /// The tenant's network.
    pub network: TenantNetwork,
    /// The tenant's quotas.
    #[serde(default)]
    pub quotas: Quotas,
}

/// Request of `PATCH /v1/tenants/{tenant}`. Absent quotas stay as they are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct QuotaPatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vcpus: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_mem_mib: Option<Mib>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_warm: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pools: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_instances_per_pool: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_disk_gib: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_queued_jobs: Option<u64>,
}

impl QuotaPatch {
    /// Returns the quotas with the given fields replaced.
    pub fn apply(&self, to: Quotas) -> Quotas {
        Quotas {
            max_vcpus: self.max_vcpus.unwrap_or(to.max_vcpus),
            max_mem_mib: self.max_mem_mib.unwrap_or(to.max_mem_mib),
            max_running: self.max_running.unwrap_or(to.max_running),
            max_warm: self.max_warm.unwrap_or(to.max_warm),
            max_pools: self.max_pools.unwrap_or(to.max_pools),
            max_instances_per_pool: self
                .max_instances_per_pool
                .unwrap_or(to.max_instances_per_pool),
            max_disk_gib: self.max_disk_gib.unwrap_or(to.max_disk_gib),
            max_queued_jobs: self.max_queued_jobs.unwrap_or(to.max_queued_jobs),
        }
    }
}

/// Makes the patch that turns any quotas into these.
impl From<Quotas> for QuotaPatch {
    fn from(quotas: Quotas) -> Self {
        QuotaPatch {
            max_vcpus: Some(quotas.max_vcpus),
            max_mem_mib: Some(quotas.max_mem_mib),
            max_running: Some(quotas.max_running),
            max_warm: Some(quotas.max_warm),
            max_pools: Some(quotas.max_pools),
            max_instances_per_pool: Some(quotas.max_instances_per_pool),
            max_disk_gib: Some(quotas.max_disk_gib),
            max_queued_jobs: Some(quotas.max_queued_jobs),
        }
    }
}

/// A tenant as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TenantView {
    /// The tenant's name.
    pub tenant_id: Name,
    /// The tenant's network.
    pub network: TenantNetwork,
    /// The gateway's IPv4 address.
    pub gateway: Ipv4Addr,
    /// The name of the tenant's bridge.
    pub bridge: String,
    /// The tenant's quotas.
    pub quotas: Quotas,
    /// What the tenant uses of its quotas.
    pub usage: Usage,
    /// When the tenant was created; ms since the Unix epoch.
    pub created_at: Timestamp,
}
