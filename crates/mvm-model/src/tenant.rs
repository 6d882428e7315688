//! A tenant: the boundary of security, network, quota and audit.

use crate::admission::Quotas;
use crate::name::Name;
use crate::network::TenantNetwork;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

/// The durable record of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// The tenant's name.
    pub name: Name,
    /// The net id of its bridge, and its subnet.
    pub network: TenantNetwork,
    /// The most that its pools may use together.
    pub quotas: Quotas,
    /// When the tenant was created.
    pub created_at: Timestamp,
}
