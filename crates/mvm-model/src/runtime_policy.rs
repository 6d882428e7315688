//! What a pool says about the life of its instances; what follows from it is decided in
//! [`policy`](crate::policy).

use crate::error::Fault;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A pool's policy. All times are in seconds; 0 means never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimePolicy {
    /// How long a running instance is idle before it is made warm.
    pub warm_after_s: u64,
    /// How long an instance stays warm before it is put to sleep.
    pub sleep_after_s: u64,
    /// The shortest time that an instance runs.
    pub min_running_s: u64,
    /// The shortest time that an instance stays warm.
    pub min_warm_s: u64,
    /// The age at which an instance is destroyed and replaced.
    pub max_age_s: u64,
    /// How many leases an instance serves before it is destroyed and replaced.
    pub max_jobs: u32,
    /// How long the hypervisor's process of a sleeping instance is kept, so that a wake in that
    /// time starts no process. The instance's memory is in its file, and under memory pressure the
    /// process ends earlier.
    pub linger_s: u64,
    /// How long a running guest may leave liveness probes unanswered before its machine is ended.
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
