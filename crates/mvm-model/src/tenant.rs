//! A tenant: the boundary of security, network, quota and audit.

use crate::Millis;
use crate::admission::Quotas;
use crate::name::Name;
use crate::network::TenantNetwork;
use serde::{Deserialize, Serialize};

/// The durable record of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name.
    pub name: Name,
    /// Its bridge and subnet.
    pub network: TenantNetwork,
    /// What it may use.
    pub quotas: Quotas,
    /// When it was made.
    pub created_at: Millis,
}
