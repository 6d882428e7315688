//! What a pool says about the life of its instances; what follows from it is decided in
//! [`policy`](crate::policy).

use crate::error::Fault;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A pool's policy. All times are in seconds; 0 is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimePolicy {
    /// How long a running instance is idle before it is made warm.
    pub warm_after_s: u64,
    /// How long an instance is warm before it is put to sleep.
    pub sleep_after_s: u64,
    /// How long an instance runs at least.
    pub min_running_s: u64,
    /// How long an instance is warm at least.
    pub min_warm_s: u64,
    /// How old an instance grows before it is destroyed and replaced.
    pub max_age_s: u64,
    /// How many leases an instance serves before it is destroyed and replaced.
    pub max_jobs: u32,
    /// How long the process of an instance that was put to sleep is kept: woken meanwhile it needs
    /// none to be started. Its memory is in its file, and under memory pressure it ends first.
    pub linger_s: u64,
    /// How long a running guest may give no sign of life, asked for it, before its machine is ended.
    pub guest_timeout_s: u64,
}

impl Default for RuntimePolicy {
    /// Warm after 5 minutes, asleep after 15 more, its process gone after another 5; nothing replaced;
    /// dead after half a minute of silence.
    fn default() -> Self {
        RuntimePolicy {
            warm_after_s: 300,
            sleep_after_s: 900,
            min_running_s: 10,
            min_warm_s: 10,
            max_age_s: 0,
            max_jobs: 0,
            linger_s: 300,
            guest_timeout_s: 30,
        }
    }
}

/// The longest `guest_timeout_s`: a day.
const MAX_GUEST_TIMEOUT_S: u64 = 86_400;

impl RuntimePolicy {
    /// Checks every field's range; the path of the fault is the field's name.
    pub fn validate(&self) -> Result<(), Fault> {
        let seconds = self.guest_timeout_s;
        if seconds <= MAX_GUEST_TIMEOUT_S {
            return Ok(());
        }
        Err(Fault::new(Code::InvalidValue, format!("guest_timeout_s is {seconds}"))
            .at("guest_timeout_s")
            .hint(format!("allowed are 0 (never) to {MAX_GUEST_TIMEOUT_S} s")))
    }
}
