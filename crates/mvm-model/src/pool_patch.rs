//! Changes of a pool.

use crate::Pool;
use crate::cache::{self, Cache};
use crate::cpu_model::CpuModel;
use crate::desired::source;
use crate::egress::Egress;
use crate::error::Fault;
use crate::mib::Mib;
use crate::pool::Recycle;
use crate::runtime_policy::RuntimePolicy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Request of `PATCH /v1/tenants/{tenant}/pools/{pool}`. Absent fields stay as they are. Changes
/// apply to new instances.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct UpdatePool {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flake_ref: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_mib: Option<Mib>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_disk_mib: Option<Mib>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_disk_mib: Option<Mib>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recycle: Option<Recycle>,
    /// All caches of the pool from now on. Caches that exist already keep their contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caches: Option<Vec<Cache>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prewarm: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<CpuModel>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub override_inputs: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "PolicyPatch::is_empty")]
    pub runtime_policy: PolicyPatch,
    /// Replaces the whole setting. It applies to running instances at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
}

/// Changes of a pool's policy. Absent fields stay as they are. Times are in seconds; 0 means never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct PolicyPatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_after_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleep_after_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_running_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_warm_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_jobs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linger_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_timeout_s: Option<u64>,
}

impl PolicyPatch {
    /// Returns whether the patch changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == PolicyPatch::default()
    }

    /// Returns the policy with the given fields replaced.
    pub fn apply(&self, to: RuntimePolicy) -> RuntimePolicy {
        RuntimePolicy {
            warm_after_s: self.warm_after_s.unwrap_or(to.warm_after_s),
            sleep_after_s: self.sleep_after_s.unwrap_or(to.sleep_after_s),
            min_running_s: self.min_running_s.unwrap_or(to.min_running_s),
            min_warm_s: self.min_warm_s.unwrap_or(to.min_warm_s),
            max_age_s: self.max_age_s.unwrap_or(to.max_age_s),
            max_jobs: self.max_jobs.unwrap_or(to.max_jobs),
            linger_s: self.linger_s.unwrap_or(to.linger_s),
            guest_timeout_s: self.guest_timeout_s.unwrap_or(to.guest_timeout_s),
        }
    }
}

/// Makes the patch that turns any policy into this one.
impl From<RuntimePolicy> for PolicyPatch {
    fn from(policy: RuntimePolicy) -> Self {
        PolicyPatch {
            warm_after_s: Some(policy.warm_after_s),
            sleep_after_s: Some(policy.sleep_after_s),
            min_running_s: Some(policy.min_running_s),
            min_warm_s: Some(policy.min_warm_s),
            max_age_s: Some(policy.max_age_s),
            max_jobs: Some(policy.max_jobs),
            linger_s: Some(policy.linger_s),
            guest_timeout_s: Some(policy.guest_timeout_s),
        }
    }
}

impl Pool {
    /// Returns the pool with the patch applied. The new values are checked by themselves; whether host,
    /// tenant and other tenants allow them is for the caller to decide. Errors: those of the values.
    pub fn apply(&self, patch: UpdatePool) -> Result<Pool, Fault> {
        let mut pool = self.clone();
        pool.override_inputs = patch.override_inputs.unwrap_or(pool.override_inputs);
        pool.flake_ref = patch.flake_ref.unwrap_or(pool.flake_ref);
        pool.profile = patch.profile.unwrap_or(pool.profile);
        source(&pool.flake_ref, &pool.profile, "$")?;
        let same = pool.flake_ref == self.flake_ref
            && pool.profile == self.profile
            && pool.override_inputs == self.override_inputs;
        pool.stale |= !same && pool.current.is_some();
        pool.recycle = patch.recycle.unwrap_or(pool.recycle);
        pool.cpu_model = patch.cpu_model.unwrap_or(pool.cpu_model);
        if let Some(command) = patch.prewarm {
            pool.prewarm = Some(command).filter(|command| !command.is_empty());
        }
        pool.runtime_policy = patch.runtime_policy.apply(pool.runtime_policy);
        pool.runtime_policy.validate()?;
        // Only a new setting is checked: an invalid one that an earlier agent accepted must not
        // prevent other changes.
        if let Some(egress) = patch.egress {
            egress.validate()?;
            pool.egress = egress;
        }
        let shape = &mut pool.resources;
        shape.vcpus = patch.vcpus.unwrap_or(shape.vcpus);
        shape.mem_mib = patch.mem_mib.unwrap_or(shape.mem_mib);
        shape.data_disk_mib = patch.data_disk_mib.unwrap_or(shape.data_disk_mib);
        shape.scratch_disk_mib = patch.scratch_disk_mib.unwrap_or(shape.scratch_disk_mib);
        shape.validate()?;
        if let Some(wanted) = patch.caches {
            pool.caches = cache::change(&pool.caches, wanted)?;
        }
        Ok(pool)
    }
}
